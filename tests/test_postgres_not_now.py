"""A PostgreSQL that has no room, may not be written to, or gives a role less than it needs."""

import pytest

import fanwire
from tests.conftest import (
    PgBouncerFactory,
    PostgresFactory,
    PublisherFactory,
    WatcherFactory,
)
from tests.deadlines import bounded, until
from tests.postgres_server import GUEST, PostgresServer
from tests.pubsub import Recorder


async def round_trip(pubsub: fanwire.PostgresPubSub) -> None:
    recorder = Recorder()
    await bounded(pubsub.start())
    await pubsub.subscribe_topic("s", "t", recorder)
    await pubsub.broadcast("t", {"n": 1})
    assert await recorder.received(1) == [{"n": 1}]
    await pubsub.stop()


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
    # Who watches before the listener is up may be told first to begin anew, on every broker.
    texts = watcher.connection.texts
    await until(lambda: sum('"note"' in text for text in texts) == 50, "all of them")


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
