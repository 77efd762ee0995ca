"""Ways to reach PostgreSQL, and what is said where there is none."""

import stat
from pathlib import Path
from typing import Any

import pytest

import fanwire
from tests.conftest import (
    PgBouncerFactory,
    PostgresFactory,
    PublisherFactory,
    WatcherFactory,
)
from tests.deadlines import bounded, until
from tests.outages import publish_until_received
from tests.postgres_server import DATABASE, GUARDED, GUEST, OWNER, PASSWORD, PostgresServer
from tests.pubsub import Recorder

Environment = pytest.MonkeyPatch


async def round_trip(pubsub: fanwire.PostgresPubSub) -> None:
    recorder = Recorder()
    await bounded(pubsub.start())
    await pubsub.subscribe_topic("s", "t", recorder)
    await pubsub.broadcast("t", {"n": 1})
    assert await recorder.received(1) == [{"n": 1}]
    await pubsub.stop()


async def refused(url: str, **options: Any) -> str:
    """What is said where a connection is refused for good."""
    pubsub = fanwire.PostgresPubSub(url, **options)
    with pytest.raises(fanwire.BrokerError) as raised:
        await bounded(pubsub.start())
    said = f"{raised.value} {pubsub!r} {pubsub.url} {pubsub.stats()} {pubsub.health()}"
    assert PASSWORD not in said and "wr0ng" not in said
    return str(raised.value)


# Addresses


@pytest.mark.parametrize("way", ["tcp", "unix", "guarded", "postgres scheme"])
async def test_ways_to_the_server(postgres_server: PostgresServer, way: str) -> None:
    urls = {
        "tcp": postgres_server.url,
        "unix": postgres_server.unix_url,
        "guarded": postgres_server.guarded_url,
        "postgres scheme": postgres_server.url.replace("postgresql://", "postgres://"),
    }
    await round_trip(fanwire.PostgresPubSub(urls[way]))


async def test_what_the_environment_says(
    postgres_server: PostgresServer, monkeypatch: Environment, tmp_path: Path
) -> None:
    """As libpq has it; a password out of a file that only its owner can read."""
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", str(postgres_server.port))
    monkeypatch.setenv("PGUSER", GUARDED)
    monkeypatch.setenv("PGDATABASE", DATABASE)
    monkeypatch.setenv("PGAPPNAME", "the app")
    escaped = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    passwords = tmp_path / "passwords"
    passwords.write_text(f"127.0.0.1:{postgres_server.port}:*:{GUARDED}:{escaped}\n")
    passwords.chmod(stat.S_IRUSR | stat.S_IWUSR)
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    await round_trip(fanwire.PostgresPubSub("postgresql://"))
    pubsub = fanwire.PostgresPubSub("postgresql://")
    await pubsub.start()
    names = "SELECT DISTINCT application_name FROM pg_stat_activity WHERE usename = %s"
    assert postgres_server.rows(names, GUARDED) == [("the app",)]
    await pubsub.stop()
    passwords.chmod(0o644)
    with pytest.raises(fanwire.BrokerError, match="passwords"):
        await bounded(fanwire.PostgresPubSub("postgresql://").start())


async def test_several_hosts(
    postgres_server: PostgresServer, make_postgres: PostgresFactory
) -> None:
    down = make_postgres(listening=False)
    standby = make_postgres(standby=True)
    hosts = ",".join(f"127.0.0.1:{each.port}" for each in (down, standby, postgres_server))
    url = f"postgresql://{OWNER}@{hosts}/{DATABASE}?target_session_attrs=read-write"
    await round_trip(fanwire.PostgresPubSub(url))


# TLS


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full", "prefer"])
async def test_tls(make_postgres: PostgresFactory, mode: str) -> None:
    server = make_postgres(tls_only=True)
    await round_trip(fanwire.PostgresPubSub(server.tls_url.replace("verify-full", mode)))


async def test_tls_that_is_not_as_it_should_be(
    make_postgres: PostgresFactory, own_postgres: PostgresServer
) -> None:
    server, other = make_postgres(tls_only=True), make_postgres(tls=True)
    assert other.certificates is not None
    another = server.url_of(
        OWNER, sslmode="verify-full", sslrootcert=str(other.certificates.authority)
    )
    assert "certificate" in await refused(another)
    assert "no encryption" in await refused(f"{server.url}?sslmode=disable")
    pubsub = fanwire.PostgresPubSub(f"{own_postgres.url}?sslmode=require")
    with pytest.raises(fanwire.BrokerError, match=r"TLS|SSL"):
        await bounded(pubsub.start())


# Refused for good


async def test_a_wrong_password(postgres_server: PostgresServer) -> None:
    said = await refused(postgres_server.url_of(f"{GUARDED}:wr0ng"))
    assert "password" in said and f"127.0.0.1:{postgres_server.port}" in said and GUARDED in said
    assert "password" in await refused(postgres_server.url_of(GUARDED))


async def test_a_database_and_a_role_that_do_not_exist(postgres_server: PostgresServer) -> None:
    assert 'database "nowhere"' in await refused(postgres_server.url_of(OWNER, "nowhere"))
    assert 'role "nobody"' in await refused(postgres_server.url_of("nobody"))


async def test_a_database_that_does_not_keep_text_as_it_is(make_postgres: PostgresFactory) -> None:
    server = make_postgres()
    server.client.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    assert "LATIN1" in await refused(server.url_of(OWNER, "latin"))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql+asyncpg://app@127.0.0.1/app", "postgresql://"),
        ("postgresql://app@127.0.0.1/app?pool_size=5", "pool_size"),
        ("postgresql://app@127.0.0.1/app?sslmode=perhaps", "sslmode"),
        ("postgresql://app@127.0.0.1:port/app", "port"),
        ("postgresql://app:se%cret@127.0.0.1/app", "%"),
        ("redis://127.0.0.1", "RedisPubSub"),
    ],
)
def test_an_address_that_makes_no_sense(url: str, says: str) -> None:
    with pytest.raises(fanwire.ConfigError, match="(?i)" + says.replace("%", "%")) as raised:
        fanwire.PostgresPubSub(url).health()
    assert "se%cret" not in str(raised.value)


# What may pass


async def test_a_server_that_has_no_connection_left(make_postgres: PostgresFactory) -> None:
    server = make_postgres(settings={"max_connections": "5", "superuser_reserved_connections": "3"})
    first = fanwire.PostgresPubSub(server.url)
    await first.start()
    await first.broadcast("t", 1)
    second = fanwire.PostgresPubSub(server.url)
    await bounded(second.start())
    await until(lambda: second.health()["error"] is not None, "the trouble is known")
    assert "connection slots" in second.health()["error"]
    await first.stop()
    await until(lambda: second.health()["state"] == "live", "there is room again")
    await second.stop()


async def test_a_standby_is_named_until_it_is_promoted(
    make_postgres: PostgresFactory, make_publisher: PublisherFactory
) -> None:
    server = make_postgres(standby=True)
    pubsub = fanwire.PostgresPubSub(server.url)
    await bounded(pubsub.start())
    await until(lambda: pubsub.health()["error"] is not None, "the trouble is known")
    assert "recovery" in pubsub.health()["error"] or "standby" in pubsub.health()["error"]
    publisher = make_publisher(server.url, history=fanwire.History())
    receipt = await bounded(publisher.publish_progress("u", {"n": 1}, receipt=True))
    assert receipt.queued
    server.rows("SELECT pg_promote()")
    await until(lambda: pubsub.health()["state"] == "live", "it has become the primary")
    await until(lambda: publisher.stats()["published"] == 1, "what waited is published")
    await round_trip(pubsub)


# Pools


async def test_a_pool_in_session_mode_will_do(
    own_postgres: PostgresServer, make_pgbouncer: PgBouncerFactory, make_watcher: WatcherFactory
) -> None:
    pool = make_pgbouncer(own_postgres, mode="session")
    await round_trip(fanwire.PostgresPubSub(pool.url))
    watcher = await make_watcher(pool.url)
    await publish_until_received(watcher.publisher, watcher)


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_a_pool_that_shares_connections_is_told_apart(
    own_postgres: PostgresServer, make_pgbouncer: PgBouncerFactory, mode: str
) -> None:
    pool = make_pgbouncer(own_postgres, mode=mode)
    said = await refused(pool.url)
    assert "LISTEN" in said and "session" in said and f"127.0.0.1:{pool.port}" in said


@pytest.mark.parametrize("history", [None, fanwire.History()], ids=["plain", "recorded"])
async def test_publishing_through_such_a_pool_works(
    own_postgres: PostgresServer,
    make_pgbouncer: PgBouncerFactory,
    make_watcher: WatcherFactory,
    make_publisher: PublisherFactory,
    history: fanwire.History | None,
) -> None:
    pool = make_pgbouncer(own_postgres, mode="transaction", pool_size=2)
    watcher = await make_watcher(own_postgres.url, history=history)
    workers = [make_publisher(pool.url, history=history, strict=True) for _ in range(5)]
    for n in range(10):
        for worker in workers:
            await worker.publish_progress(watcher.upload_id, {"action": "note", "n": n})
    assert len(await watcher.connection.received(50)) == 50


# Privileges


async def test_who_may_not_create_tables_is_told_what_to_do(
    own_postgres: PostgresServer, make_publisher: PublisherFactory
) -> None:
    guest = own_postgres.url_of(GUEST)
    publisher = make_publisher(guest, history=fanwire.History(), strict=True)
    with pytest.raises(fanwire.PublishError, match="python -m fanwire migrate"):
        await bounded(publisher.publish_progress("u", {"n": 1}))
    plain = make_publisher(guest, strict=True)
    await plain.publish_progress("u", {"n": 1})
    await round_trip(fanwire.PostgresPubSub(guest))
