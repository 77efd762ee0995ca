"""PgBouncer between fanwire and PostgreSQL: who publishes may be behind it, who listens may not."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Literal

import psycopg
import pytest

import fanwire
from tests.broker_proxy import broker_proxy
from tests.conftest import PgBouncerFactory, PublisherFactory, Watcher, WatcherFactory
from tests.deadlines import bounded, until
from tests.postgres_server import PostgresServer
from tests.pubsub import Recorder


def numbers(watcher: Watcher) -> list[int]:
    """Of the messages; who watches before the listener is up is told first where it stands."""
    messages = [json.loads(text) for text in watcher.connection.texts]
    return [message["n"] for message in messages if "n" in message]


@pytest.mark.parametrize("pool_size", [1, 20])
@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_a_listener_behind_a_pool_is_told(
    postgres_server: PostgresServer,
    make_pgbouncer: PgBouncerFactory,
    mode: Literal["transaction", "statement"],
    pool_size: int,
) -> None:
    pool = make_pgbouncer(postgres_server, mode=mode, pool_size=pool_size)
    pubsub = fanwire.PostgresPubSub(pool.url, connect_timeout_seconds=10)
    with pytest.raises(fanwire.BrokerError, match="LISTEN needs a session of its own"):
        await bounded(pubsub.start())
    await pubsub.stop()


@contextlib.asynccontextmanager
async def busy(url: str, clients: int) -> AsyncIterator[None]:
    """Has so many clients make one transaction after another, all at once."""
    over, begun = asyncio.Event(), asyncio.Semaphore(0)

    async def client() -> None:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
        async with connection:
            connection.prepare_threshold = None
            while not over.is_set():
                async with connection.transaction():
                    await connection.execute("SELECT 1")
                begun.release()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
        try:
            for _ in range(10 * clients):
                await bounded(begun.acquire())
            yield
        finally:
            over.set()


@pytest.mark.parametrize("round_robin", [False, True])
async def test_a_busy_pool_is_found_out_each_time(
    postgres_server: PostgresServer, make_pgbouncer: PgBouncerFactory, round_robin: bool
) -> None:
    """Whatever session it happens to lend the listener for its second statement."""
    pool = make_pgbouncer(postgres_server, mode="transaction", round_robin=round_robin)
    async with busy(pool.url, 4):
        for _ in range(6):
            pubsub = fanwire.PostgresPubSub(pool.url, connect_timeout_seconds=3)
            with pytest.raises(fanwire.BrokerError, match="LISTEN needs a session of its own"):
                await bounded(pubsub.start())
            await pubsub.stop()


async def test_a_pool_without_a_second_session(
    postgres_server: PostgresServer,
    make_pgbouncer: PgBouncerFactory,
    make_publisher: PublisherFactory,
) -> None:
    """It cannot be found out what kind of pool it is, and nothing is wrong with it."""
    pool = make_pgbouncer(postgres_server, mode="session", pool_size=1)
    publisher = make_publisher(postgres_server.url, strict=True)
    pubsub = fanwire.PostgresPubSub(pool.url, strict=True)
    recorder = Recorder()
    await bounded(pubsub.start())
    await pubsub.subscribe_topic("session", "topic", recorder)
    await publisher.broadcast("topic", 1)
    assert await recorder.received(1) == [1]
    await pubsub.stop()


async def test_a_pool_that_lends_whole_sessions_is_as_good_as_none(
    postgres_server: PostgresServer,
    make_pgbouncer: PgBouncerFactory,
    make_watcher: WatcherFactory,
) -> None:
    pool = make_pgbouncer(postgres_server, mode="session")
    watcher = await make_watcher(pool.url, strict=True, history=fanwire.History())
    await watcher.publisher.publish_progress(watcher.upload_id, {"n": 1})
    await until(lambda: numbers(watcher) == [1], "the message, behind the state there was")


@pytest.mark.parametrize("pool_size", [2, 3])
async def test_a_quiet_pool_that_takes_turns_is_found_out_each_time(
    postgres_server: PostgresServer, make_pgbouncer: PgBouncerFactory, pool_size: int
) -> None:
    """It lends the session that listens for some statements, and for others it does not."""
    pool = make_pgbouncer(
        postgres_server, mode="transaction", pool_size=pool_size, round_robin=True
    )
    with contextlib.ExitStack() as stack:  # so that it has all the sessions it may have
        for _ in range(pool_size):
            connection = stack.enter_context(psycopg.connect(pool.url))
            connection.execute("SELECT 1")
    for _ in range(4):
        pubsub = fanwire.PostgresPubSub(pool.url, connect_timeout_seconds=10)
        with pytest.raises(fanwire.BrokerError, match="LISTEN needs a session of its own"):
            await bounded(pubsub.start())
        await pubsub.stop()


async def test_a_slow_server_is_not_taken_for_a_pool(own_postgres: PostgresServer) -> None:
    """It hears what is notified to find that out, and later than it is otherwise waited for."""
    held: list[int] = []
    async with broker_proxy(own_postgres) as proxy:

        def alter(asked: bytes) -> bytes:
            if b"pg_notify('fanwire_" in asked and not held:
                ((listener,),) = own_postgres.rows(
                    "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN fanwire_%%'"
                )
                held.append(listener)
                os.kill(listener, signal.SIGSTOP)
                asyncio.get_running_loop().call_later(3.5, os.kill, listener, signal.SIGCONT)
            return asked

        proxy.alters = alter
        pubsub = fanwire.PostgresPubSub(proxy.url, strict=True, connect_timeout_seconds=6)
        await bounded(pubsub.start())
        assert held
        await pubsub.stop()


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_publishing_through_a_pool(
    postgres_server: PostgresServer,
    make_pgbouncer: PgBouncerFactory,
    make_watcher: WatcherFactory,
    make_publisher: PublisherFactory,
    mode: Literal["transaction", "statement"],
) -> None:
    """With a history too, which a pool in statement mode lets be made and used as well."""
    pool = make_pgbouncer(postgres_server, mode=mode, pool_size=2)
    watcher = await make_watcher(postgres_server.url, strict=True, history=fanwire.History())
    recorder = Recorder()
    await watcher.publisher.subscribe_topic("session", "topic", recorder)
    publishers = [
        make_publisher(pool.url, strict=True, history=fanwire.History(), manager=watcher.manager)
        for _ in range(4)
    ]
    await asyncio.gather(
        *(
            publisher.publish_progress(watcher.upload_id, {"action": "said", "n": n, "by": by})
            for n in range(20)
            for by, publisher in enumerate(publishers)
        )
    )
    await asyncio.gather(*(publisher.broadcast("topic", 1) for publisher in publishers))
    await until(lambda: len(numbers(watcher)) == 80, "all of them")
    assert sorted(numbers(watcher)) == sorted(list(range(20)) * 4)
    assert await recorder.received(4) == [1] * 4


async def test_a_probe_does_not_stay_in_a_transaction(postgres_server: PostgresServer) -> None:
    """The second connection, by which a pool is found out, is gone when the listener is up."""
    pubsub = fanwire.PostgresPubSub(postgres_server.url, strict=True)
    await pubsub.start()
    await until(lambda: len(postgres_server.backends()) == 1, "only the listener is left")
    await pubsub.stop()
