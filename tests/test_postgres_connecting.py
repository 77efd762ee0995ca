"""How a PostgreSQL server is reached: addresses, passwords, TLS, and what is refused in words."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import quote

import pytest

import fanwire
from tests.conftest import PostgresFactory
from tests.deadlines import bounded
from tests.outages import impostor
from tests.postgres_server import DATABASE, GUARDED, OWNER, PASSWORD, PostgresServer, own
from tests.pubsub import Recorder
from tests.redis_server import free_port

PG_VARIABLES = (
    "PGHOST PGPORT PGUSER PGPASSWORD PGDATABASE PGPASSFILE PGSSLMODE PGSSLROOTCERT PGAPPNAME "
    "PGOPTIONS PGCONNECT_TIMEOUT PGTARGETSESSIONATTRS"
)


@pytest.fixture(autouse=True)
def nobodys_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the one who runs the tests has set, and has in the home directory."""
    for name in PG_VARIABLES.split():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def connected(
    stack: AsyncExitStack, url: str, *, limit_seconds: float = 10
) -> fanwire.PostgresPubSub:
    """A pub/sub object that listens and publishes at this address; raises what is wrong with it."""
    pubsub = fanwire.PostgresPubSub(url, strict=True, connect_timeout_seconds=limit_seconds)
    stack.push_async_callback(pubsub.stop)
    await bounded(pubsub.start())
    recorder = Recorder()
    await pubsub.subscribe_topic("session", "topic", recorder)
    await pubsub.broadcast("topic", "hello")
    assert await recorder.received(1) == ["hello"]
    return pubsub


async def refusal(stack: AsyncExitStack, url: str) -> str:
    with pytest.raises(fanwire.BrokerError) as raised:
        await connected(stack, url)
    assert PASSWORD not in str(raised.value)
    assert quote(PASSWORD, safe="") not in str(raised.value)
    return str(raised.value)


# Addresses


async def test_over_tcp_over_a_socket_and_with_a_password(
    stack: AsyncExitStack, postgres_server: PostgresServer
) -> None:
    for url in (postgres_server.url, postgres_server.unix_url, postgres_server.guarded_url):
        await connected(stack, url)
        await connected(stack, url.replace("postgresql://", "postgres://"))


async def test_the_environment_says_what_the_url_does_not(
    stack: AsyncExitStack, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOST", str(postgres_server.directory))
    monkeypatch.setenv("PGPORT", str(postgres_server.port))
    monkeypatch.setenv("PGUSER", GUARDED)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    monkeypatch.setenv("PGDATABASE", DATABASE)
    monkeypatch.setenv("PGAPPNAME", "some app")
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=12345")
    await connected(stack, "postgresql://")
    names = {
        (name, database, user)
        for name, database, user in postgres_server.rows(
            "SELECT application_name, datname, usename FROM pg_stat_activity WHERE usename = %s",
            GUARDED,
        )
    }
    assert names == {("some app", DATABASE, GUARDED)}


async def test_of_several_servers_the_one_that_can_be_written_to(
    stack: AsyncExitStack, postgres_server: PostgresServer, make_postgres: PostgresFactory
) -> None:
    standby = make_postgres(standby=True)
    hosts = [f"127.0.0.1:{port}" for port in (free_port(), standby.port, postgres_server.port)]
    await connected(stack, f"postgresql://{OWNER}@{','.join(hosts)}/{DATABASE}")
    assert "standby" in await refusal(stack, standby.url)


async def test_a_server_that_does_not_answer_leaves_time_for_the_others(
    stack: AsyncExitStack, postgres_server: PostgresServer
) -> None:
    silent = (await stack.enter_async_context(impostor(None))).split("//")[1]
    hosts = f"{silent},127.0.0.1:{postgres_server.port}"
    await connected(stack, f"postgresql://{OWNER}@{hosts}/{DATABASE}", limit_seconds=4)


# Passwords


async def test_a_file_of_passwords(
    stack: AsyncExitStack, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    url = postgres_server.url_of(GUARDED)
    assert "wants a password" in await refusal(stack, url)
    escaped = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    file = tmp_path / ".pgpass"
    file.write_text(f"# comment\n127.0.0.1:{postgres_server.port}:*:{GUARDED}:{escaped}\n")
    file.chmod(0o600)
    await connected(stack, url)
    file.chmod(0o640)
    text = await refusal(stack, url)
    assert "wants a password" in text
    assert f"{file} is not read, because its permissions are 0640" in text
    # The address counts for more.
    await connected(stack, postgres_server.guarded_url)


async def test_who_and_what_is_not_there_is_said(
    stack: AsyncExitStack, postgres_server: PostgresServer
) -> None:
    wrong = postgres_server.url_of(f"{GUARDED}:nonsense")
    text = await refusal(stack, wrong)
    assert "password authentication failed" in text
    assert "nonsense" not in text
    assert 'role "nobody" does not exist' in await refusal(stack, postgres_server.url_of("nobody"))
    nowhere = postgres_server.url_of(OWNER, database="nowhere")
    assert 'database "nowhere" does not exist' in await refusal(stack, nowhere)


async def test_a_database_in_another_encoding(
    stack: AsyncExitStack, own_postgres: PostgresServer
) -> None:
    own_postgres.client.execute("CREATE DATABASE old ENCODING 'LATIN1' TEMPLATE template0")
    text = await refusal(stack, own_postgres.url_of(OWNER, database="old"))
    assert "encoding is LATIN1" in text


@pytest.mark.parametrize(
    ("answer", "text"),
    [(b"N\x00\x00\x00\x00\x04", "not a PostgreSQL server"), (b"-ERR what?", "error communicating")],
)
async def test_something_that_is_no_database(
    stack: AsyncExitStack, answer: bytes, text: str
) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(answer)
        await reader.read(1000)
        writer.close()

    async with await asyncio.start_server(say, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        said = await refusal(stack, f"postgresql://somebody@127.0.0.1:{port}")
    assert text in said


@pytest.mark.parametrize(
    ("cls", "url", "text"),
    [
        (fanwire.RedisPubSub, "postgresql://db/app", "use fanwire.PostgresPubSub"),
        (fanwire.PostgresPubSub, "redis://localhost", "use fanwire.RedisPubSub"),
        (fanwire.PostgresPubSub, "postgresql+asyncpg://a:hunter2@db", "write postgresql://"),
        (fanwire.PostgresPubSub, "postgresql://a:hunter2@db/?pool_size=5", "pool_size"),
        (fanwire.PostgresPubSub, "postgresql://db/?sslmode=on", "sslmode must be one of"),
        (fanwire.PostgresPubSub, "host=db dbname=app", "no scheme"),
    ],
)
async def test_an_address_that_makes_no_sense(
    cls: type[fanwire.RedisPubSub | fanwire.PostgresPubSub], url: str, text: str
) -> None:
    pubsub = cls(url)
    with pytest.raises(fanwire.ConfigError, match=text) as raised:
        await pubsub.start()
    assert "hunter2" not in f"{raised.value}{pubsub!r}{pubsub.url}"


# TLS


def encrypted(server: PostgresServer) -> set[bool]:
    """Whether the connections over TCP are, as the server sees it."""
    rows = server.rows(
        "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = %s", OWNER
    )
    return {ssl for (ssl,) in rows}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("disable", False), ("allow", False), ("prefer", True), ("require", True), (None, True)],
)
async def test_tls_where_the_server_leaves_the_choice(
    stack: AsyncExitStack, make_postgres: PostgresFactory, mode: str | None, expected: bool
) -> None:
    server = make_postgres(tls=True)
    query = {"sslmode": mode} if mode else {}
    await connected(stack, server.url_of(OWNER, **query))
    assert encrypted(server) == {expected}


async def test_tls_where_the_server_takes_nothing_else(
    stack: AsyncExitStack, make_postgres: PostgresFactory
) -> None:
    server = make_postgres(tls_only=True)
    await connected(stack, server.url)
    await connected(stack, server.url_of(OWNER, sslmode="allow"))
    assert encrypted(server) == {True}
    assert "no encryption" in await refusal(stack, server.url_of(OWNER, sslmode="disable"))
    # With a password the channel is bound to the certificate.
    guarded = f"{GUARDED}:{quote(PASSWORD, safe='')}"
    await connected(stack, server.url_of(guarded, channel_binding="require"))


async def test_tls_where_the_server_has_none(
    stack: AsyncExitStack, postgres_server: PostgresServer
) -> None:
    await connected(stack, postgres_server.url_of(OWNER, sslmode="prefer"))
    text = await refusal(stack, postgres_server.url_of(OWNER, sslmode="require"))
    assert "does not support TLS" in text
    # A socket is as good as encrypted, as for libpq.
    await connected(stack, f"{postgres_server.unix_url}&sslmode=require")


async def test_tls_by_an_authority(
    stack: AsyncExitStack, make_postgres: PostgresFactory, tmp_path: Path
) -> None:
    server, stranger = make_postgres(tls=True), make_postgres(tls=True)
    assert server.certificates is not None
    assert stranger.certificates is not None
    await connected(stack, server.tls_url)
    authority, other = str(server.certificates.authority), str(stranger.certificates.authority)
    for mode in ("require", "verify-ca", "verify-full"):
        await connected(stack, server.url_of(OWNER, sslmode=mode, sslrootcert=authority))
        # As for libpq, `require` verifies where there is something to verify with.
        text = await refusal(stack, server.url_of(OWNER, sslmode=mode, sslrootcert=other))
        assert "certificate" in text
    with pytest.raises(fanwire.ConfigError, match="verify-ca needs sslrootcert"):
        await connected(stack, server.url_of(OWNER, sslmode="verify-ca"))
    text = await refusal(stack, server.url_of(OWNER, sslmode="verify-full"))
    assert "certificate" in text, "of nobody whom the system trusts"
    missing = str(tmp_path / "missing.pem")
    with pytest.raises(fanwire.ConfigError, match=r"cannot read .*missing\.pem"):
        await connected(stack, server.url_of(OWNER, sslmode="verify-ca", sslrootcert=missing))


async def test_tls_with_the_authorities_of_the_system(
    stack: AsyncExitStack, make_postgres: PostgresFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_postgres(tls=True)
    assert server.certificates is not None
    monkeypatch.setenv(
        ssl.get_default_verify_paths().openssl_cafile_env, str(server.certificates.authority)
    )
    await connected(stack, server.url_of(OWNER, sslmode="verify-full"))
    await connected(stack, server.url_of(OWNER, sslmode="verify-full", sslrootcert="system"))
    with pytest.raises(fanwire.ConfigError, match="goes with sslmode=verify-full alone"):
        await connected(stack, server.url_of(OWNER, sslmode="require", sslrootcert="system"))


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


async def test_tls_with_a_certificate_that_is_its_own_authority(
    stack: AsyncExitStack, make_postgres: PostgresFactory
) -> None:
    """As `openssl req -x509` makes it, and PostgreSQL's documentation has it, for another name."""
    server = make_postgres(tls=True, listening=False)
    assert server.certificates is not None
    certificate, key = server.certificates.certificate, server.certificates.key
    made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key)
    name = ("-subj", "/CN=db.example", "-addext", "subjectAltName=DNS:db.example")
    openssl("req", "-x509", "-days", "2", *made, *name, "-out", certificate)
    own(certificate, key)
    server.start()
    root = str(certificate)
    await connected(stack, server.url_of(OWNER, sslmode="verify-ca", sslrootcert=root))
    text = await refusal(stack, server.url_of(OWNER, sslmode="verify-full", sslrootcert=root))
    assert "not valid for" in text


async def test_tls_with_a_certificate_of_our_own(
    stack: AsyncExitStack, make_postgres: PostgresFactory, tmp_path: Path
) -> None:
    server = make_postgres(tls=True, listening=False)
    assert server.certificates is not None
    authority, authority_key = server.certificates.authority, server.directory / "ca.key"
    own(authority)
    rules = server.data / "pg_hba.conf"
    rules.write_text(f"hostssl all {OWNER} 127.0.0.1/32 cert\n{rules.read_text()}")
    server.settings = {"ssl_ca_file": str(authority)}
    server.start()
    key, request, certificate = (tmp_path / name for name in ("key", "request", "certificate"))
    made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key)
    openssl("req", *made, "-subj", f"/CN={OWNER}", "-out", request)
    signed = ("-CA", authority, "-CAkey", authority_key, "-CAcreateserial")
    openssl("x509", "-req", "-days", "2", "-in", request, *signed, "-out", certificate)
    files = {"sslcert": str(certificate), "sslkey": str(key)}
    key.chmod(0o644)
    with pytest.raises(fanwire.ConfigError, match=r"sslkey: .* its permissions are 0644"):
        await connected(stack, server.url_of(OWNER, sslmode="require", **files))
    key.chmod(0o600)
    await connected(stack, server.url_of(OWNER, sslmode="require", **files))
    text = await refusal(stack, server.url_of(OWNER, sslmode="require"))
    assert "certificate" in text
    with pytest.raises(fanwire.ConfigError, match="sslcert needs sslkey"):
        await connected(stack, server.url_of(OWNER, sslmode="require", sslcert=str(certificate)))
