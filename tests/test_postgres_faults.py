"""PostgreSQL restarts, cuts connections off, or stands still, while messages pass."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

import fanwire
from tests import histories
from tests.conftest import Unique
from tests.connections import RecordingConnection
from tests.deadlines import SUBSCRIBED_AGAIN_SECONDS, bounded, until
from tests.histories import InstanceFactory, note
from tests.postgres_server import PostgresServer
from tests.pubsub import Recorder

make_instance = histories.make_instance

Change = tuple[str, str, str | None]
# So that a server which stands still is noticed soon by who publishes, and who begins to listen
# does so at the first attempt.
SHORT = {"connect_timeout_seconds": 10.0, "publish_timeout_seconds": 0.5}
TOPICS = [f"t{number}" for number in range(20)]
LARGE = fanwire.History(size=100_000)


@dataclass(frozen=True)
class Trouble:
    """What is done to a server, and what ends it. ``says`` is a part of what is wrong then."""

    begin: Callable[[PostgresServer], Any]
    end: Callable[[PostgresServer], Any]
    says: str
    lines: int = 3
    passes: bool = False


def locked_out(server: PostgresServer) -> None:
    server.client.execute("ALTER ROLE app NOLOGIN")
    server.drop_clients()


TROUBLES = {
    "killed and restarted": Trouble(PostgresServer.kill, PostgresServer.start, "127.0.0.1"),
    "stopped in order": Trouble(PostgresServer.stop, PostgresServer.start, "127.0.0.1"),
    "terminated": Trouble(
        PostgresServer.drop_clients,
        lambda _: None,
        "terminating connection due to administrator command",
        passes=True,
    ),
    "stands still": Trouble(PostgresServer.pause, PostgresServer.resume, "no answer within"),
    "role locked out": Trouble(
        locked_out,
        lambda server: server.client.execute("ALTER ROLE app LOGIN"),
        "not permitted to log in",
        4,
    ),
}


@pytest.mark.parametrize("uploads", [True, False], ids=["uploads and topics", "topics"])
@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
async def test_the_listener_says_so_and_comes_back(
    own_postgres: PostgresServer,
    caplog: pytest.LogCaptureFixture,
    trouble: Trouble,
    uploads: bool,
) -> None:
    caplog.set_level(logging.INFO, "fanwire")
    server, changes = own_postgres, list[Change]()
    recorder, connection = Recorder(), RecordingConnection()
    listener = await made(server, uploads, connection, changes)
    await bounded(listener.start())
    for topic in TOPICS:
        await bounded(listener.subscribe_topic("s", topic, recorder))

    trouble.begin(server)
    if not trouble.passes:
        await until(lambda: listener.health()["state"] == "degraded", "it is noticed")
        await until(lambda: trouble.says in listener.health()["error"], "what is wrong is known")
        assert listener.health()["confirmed_topics"] == 0
    trouble.end(server)
    await until(
        lambda: listener.health()["reconnects"] == 1 and listener.health()["state"] == "live",
        "it is back",
        deadline_seconds=SUBSCRIBED_AGAIN_SECONDS,
    )
    assert trouble.says in listener.health()["error"]
    await until(lambda: listener.health()["confirmed_topics"] == len(TOPICS), "all topics are back")

    for number, topic in enumerate(TOPICS):
        server.publish(f"pyview_{topic}", f"{number}")
    assert await recorder.received(len(TOPICS)) == list(range(len(TOPICS)))
    if uploads:
        server.publish("user:ada", "there")
        await connection.received_text("there")
    await bounded(listener.stop())
    expected = [
        ("stopped", "connecting"),
        ("connecting", "live"),
        ("live", "degraded"),
        ("degraded", "live"),
        ("live", "stopped"),
    ]
    await until(lambda: len(changes) >= len(expected), "every change is told")
    assert [(old, new) for old, new, _ in changes] == expected
    assert [error is not None for _, _, error in changes] == [False, False, True, False, False]
    lines = [record.getMessage() for record in caplog.records if record.name == "fanwire"]
    _, *between, _ = lines  # that it connects, and that it was stopped
    assert len(between) == trouble.lines, lines
    assert all("receiving" in line for line in between)


async def made(
    server: PostgresServer, uploads: bool, connection: RecordingConnection, changes: list[Change]
) -> fanwire.UploadProgressPublisher | fanwire.PostgresPubSub:
    options: dict[str, Any] = {"on_state_change": lambda *change: changes.append(change), **SHORT}
    if not uploads:
        return fanwire.PostgresPubSub(server.url, **options)
    manager = fanwire.ConnectionManager()
    await manager.connect("ada", connection)
    return fanwire.UploadProgressPublisher(
        server.url, manager=manager, channel_prefix="pyview_", **options
    )


async def test_one_backend_stands_still_and_the_server_goes_on(
    own_postgres: PostgresServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    """The listener's connection is up and deaf, while whoever else asks is answered."""
    upload = unique("upload")
    instance = await make_instance(own_postgres.url)
    worker = await make_instance(own_postgres.url, start=False)
    client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    (backend,) = own_postgres.listeners()
    os.kill(backend, signal.SIGSTOP)
    try:
        await worker.publish(upload, note(1), note(2))
        await until(lambda: instance.publisher.health()["reconnects"] == 1, "another connection")
        await client.saw(1, 2)
    finally:
        os.kill(backend, signal.SIGCONT)
    await worker.publish(upload, note(3))
    await client.saw(1, 2, 3)
    assert instance.figure("resyncs") == 0


async def test_one_trouble_after_another_and_nothing_is_lost(
    own_postgres: PostgresServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    server, upload = own_postgres, unique("upload")
    instance = await make_instance(server.url, history=LARGE, **SHORT)
    worker = await make_instance(server.unix_url, history=LARGE, start=False, **SHORT)
    client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    enough, said = asyncio.Event(), 0

    async def pour() -> None:
        nonlocal said
        while not enough.is_set():
            if worker.publisher.publish_nowait(upload, note(said + 1)):
                said += 1
            await asyncio.sleep(0.001)

    async def settled() -> None:
        await until(lambda: instance.publisher.health()["state"] == "live", "it is live")
        behind = said
        await until(lambda: len(client.texts) > behind, "messages come again")

    pouring = asyncio.create_task(pour())
    for trouble in ("terminate listener", "terminate all", "restart", "kill", "pause"):
        await settled()
        before = instance.publisher.health()["reconnects"]
        if trouble == "terminate listener":
            server.drop_listeners()
        elif trouble == "terminate all":
            server.drop_clients()
        elif trouble == "restart":
            await asyncio.to_thread(server.restart)
        elif trouble == "kill":
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        else:
            server.pause()
            try:
                await until(lambda: instance.publisher.health()["state"] == "degraded", "noticed")
            finally:
                server.resume()
        await until(
            lambda before=before: instance.publisher.health()["reconnects"] > before,  # type: ignore[misc]
            f"it is back after: {trouble}",
        )
    await settled()
    enough.set()
    await pouring
    await until(lambda: worker.publisher.stats()["published"] == said, "all of it is published")
    await client.reached(said)
    assert client.seen == list(range(1, said + 1))
    assert instance.figure("resyncs") == 0
    assert worker.publisher.stats()["publish_failed"] == 0
