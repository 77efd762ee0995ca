"""The end: what is queued is handed over within the time given for it, and nothing hangs."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

import fanwire
from tests import histories
from tests.conftest import Broker, Unique
from tests.connections import SlowConnection, StallingConnection
from tests.deadlines import DEADLINE_SECONDS, bounded, until, until_blocking
from tests.demo import START_DEADLINE_SECONDS, alive
from tests.histories import InstanceFactory, note, position_of, progress
from tests.interpreters import ROOT
from tests.pubsub import Gated, Recorder
from tests.pyview_server import PyViewServer
from tests.redis_server import RedisServer

make_instance = histories.make_instance

APPS = ROOT / "tests" / "apps"
# Longer than any of what is done here takes, so that a stop which waited it out would be noticed.
LONG_SECONDS = 1_000.0


# What is queued


async def test_what_is_queued_for_slow_connections_is_handed_over(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    connections = [SlowConnection(turns=20) for _ in range(5)]
    for number, connection in enumerate(connections):
        await instance.manager.connect(f"user {number}", connection)
        await instance.manager.subscribe_upload(f"user {number}", upload)
    await instance.until_figure("snapshots", 5)
    for number in range(1, 101):
        assert instance.publisher.publish_nowait(upload, note(number))
    # The loop stands still meanwhile, so that none of them is sent.
    until_blocking(lambda: instance.publisher.stats()["received"] == 100, "all of them are here")
    assert instance.figure("queued_messages") > 0
    await bounded(instance.publisher.stop(drain_seconds=LONG_SECONDS))
    for connection in connections:
        offsets = [position_of(text) for text in connection.texts]
        assert [position[1] for position in offsets if position] == list(range(1, 101))


async def test_what_is_queued_for_sessions_is_handed_over(own_redis: RedisServer) -> None:
    listener, recorder = fanwire.RedisPubSub(own_redis.url), Recorder()

    async def slowly(topic: str, message: Any) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        await recorder(topic, message)

    await listener.start()
    await listener.subscribe_topic("s", "t", slowly)
    await asyncio.gather(*(listener.broadcast("t", n) for n in range(100)))
    await until(lambda: listener.stats()["received"] == 100, "all of them are here")
    await bounded(listener.stop(drain_seconds=LONG_SECONDS))
    assert recorder.messages == list(range(100))


async def test_a_client_that_takes_nothing_holds_nobody_up(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    """Nor is it waited for longer than it takes to find out that it is slow."""
    upload, instance = unique("upload"), await make_instance(broker.url)
    stalled, slow = StallingConnection(), SlowConnection(turns=20)
    for user, connection in (("stalled", stalled), ("slow", slow)):
        await instance.manager.connect(user, connection)
        await instance.manager.subscribe_upload(user, upload)
    await instance.until_figure("snapshots", 2)
    for number in range(50):
        assert instance.publisher.publish_nowait(upload, note(number))
    await stalled.stalled()
    await until(lambda: instance.publisher.stats()["received"] == 50, "all of them are here")
    await bounded(instance.publisher.stop(drain_seconds=LONG_SECONDS))
    assert len(slow.texts) == 50
    assert (stalled.texts, stalled.waiting) == ([], 1)
    stalled.release()
    await stalled.received(50)


async def test_a_handler_that_does_not_return_holds_nobody_up(own_redis: RedisServer) -> None:
    listener, gated = fanwire.RedisPubSub(own_redis.url), Gated()
    await listener.start()
    await listener.subscribe_topic("s", "t", gated)
    for number in range(3):
        await listener.broadcast("t", number)
    await gated.entered()
    await until(lambda: listener.stats()["received"] == 3, "all of them are here")
    await bounded(listener.stop(drain_seconds=0.05))
    await bounded(listener.stop(drain_seconds=0))
    gated.release()
    assert await gated.received(3) == [0, 1, 2]


@pytest.mark.parametrize("seconds", [0, 0.0, 0.05])
async def test_no_time_at_all(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique, seconds: float
) -> None:
    upload, stalled = unique("upload"), StallingConnection()
    instance = await make_instance(own_redis.url)
    await instance.manager.connect("ada", stalled)
    await instance.manager.subscribe_upload("ada", upload)
    await instance.until_figure("snapshots", 1)
    await instance.publish(upload, *map(progress, range(5)))
    await stalled.stalled()
    own_redis.pause()
    try:
        assert instance.publisher.publish_nowait(upload, note(1))
        await bounded(instance.publisher.stop(drain_seconds=seconds))
        assert not instance.publisher.running
        assert instance.publisher.health()["state"] == "stopped"
    finally:
        own_redis.resume()


@pytest.mark.parametrize("history", [None, fanwire.History()], ids=["plain", "with a history"])
async def test_what_an_outage_held_up_goes_out_if_it_ends_in_time(
    own_redis: RedisServer,
    make_instance: InstanceFactory,
    unique: Unique,
    history: fanwire.History | None,
) -> None:
    upload = unique("upload")
    listening = await make_instance(own_redis.unix_url, history=history)
    client = await listening.watch(upload)
    await until(lambda: listening.publisher.health()["state"] == "live")
    worker = await make_instance(own_redis.url, history=history, start=False)
    await worker.publisher.publish_progress(upload, note(0))
    await client.received(1)
    own_redis.kill()
    for number in range(1, 11):
        await bounded(worker.publisher.publish_progress(upload, note(number)))
    await until(lambda: worker.publisher.stats()["publish_queued"] >= 9, "they wait")
    lost = worker.publisher.stats()["publish_failed"]
    stopping = asyncio.ensure_future(worker.publisher.stop(drain_seconds=LONG_SECONDS))
    await asyncio.sleep(0)
    own_redis.start()
    await bounded(stopping)
    stats = worker.publisher.stats()
    assert (stats["published"], stats["publish_failed"]) == (11 - lost, lost)
    # Without a history nobody knows what became of the first, which was under way.
    assert lost == 0 or history is None


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), -0.001])
async def test_a_time_that_is_none(seconds: float) -> None:
    for made in (
        fanwire.UploadProgressPublisher("memory://"),
        fanwire.RedisPubSub("memory://"),
        fanwire.MemoryPubSub(),
    ):
        with pytest.raises(fanwire.ConfigError, match="drain_seconds"):
            await made.stop(drain_seconds=seconds)
        await made.stop(0)  # by position too


# An app under uvicorn


class Server(PyViewServer):
    """uvicorn with an app whose users watch uploads."""

    def __init__(
        self, url: str, *options: str, target: str = "watch_app:create", app_dir: Path = APPS
    ) -> None:
        super().__init__(url, *options, "--app-dir", str(app_dir), target=target)

    @asynccontextmanager
    async def watching(self, upload_id: str, user: str = "ada") -> AsyncIterator[ClientConnection]:
        address = f"ws://127.0.0.1:{self.port}/ws/{user}"
        async with connect(
            address, open_timeout=START_DEADLINE_SECONDS, ping_interval=None, proxy=None
        ) as client:
            await client.send(json.dumps({"action": "subscribe_upload", "upload_id": upload_id}))
            yield client

    async def post(self, upload_id: str, message: Any) -> Any:
        path = f"/uploads/{upload_id}"
        return (await self.instance.request("POST", path, json.dumps(message))).json


async def offset_of_next(client: ClientConnection) -> int:
    text = await asyncio.wait_for(client.recv(), DEADLINE_SECONDS)
    position = position_of(str(text))
    assert position is not None, text
    return position[1]


async def close_code(client: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed):
        await asyncio.wait_for(_read_on(client), DEADLINE_SECONDS)
    return client.close_code


async def _read_on(client: ClientConnection) -> None:
    while True:
        await client.recv()


async def status_of_uvicorn(ending: signal.Signals) -> int:
    """With which uvicorn ends by itself, while a client is connected."""
    with Server("memory://", target="watch_app:bare") as server:
        async with server.watching("u1"):
            server.process.send_signal(ending)
            return await server.until_ended()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
@pytest.mark.parametrize("broker_is", ["well", "hung", "down"])
async def test_uvicorn_is_told_to_end(
    own_redis: RedisServer, ending: signal.Signals, broker_is: str
) -> None:
    """It closes the sockets itself before it lets the app end; without a time limit of its own."""
    with Server(own_redis.url) as server:
        async with server.watching("u1") as client, server.watching("u1", "bob") as other:
            assert await server.post("u1", progress(1)) == "published"
            for watching in (client, other):
                assert await offset_of_next(watching) == 1
            # A client that does not read holds nobody up either.
            other.transport.pause_reading()
            if broker_is == "hung":
                own_redis.pause()
            elif broker_is == "down":
                own_redis.kill()
            try:
                server.process.send_signal(ending)
                assert await close_code(client) == 1012
                status = await server.until_ended()
            finally:
                if broker_is == "hung":
                    own_redis.resume()
            other.transport.abort()
        assert status == await status_of_uvicorn(ending)
        complaints = [line for line in server.complaints if "receiving" not in line]
        assert complaints == [], server.stderr


async def test_a_reload_with_watching_clients(own_redis: RedisServer, tmp_path: Path) -> None:
    app = tmp_path / "the_app.py"
    app.write_text("from tests.apps.watch_app import create\n")
    options = ["--reload", "--reload-dir", str(tmp_path), "--reload-delay", "0.05"]
    with Server(own_redis.url, *options, target="the_app:create", app_dir=tmp_path) as server:
        old = server.state()["pid"]
        async with server.watching("u1") as client:
            assert await server.post("u1", progress(1)) == "published"
            assert await offset_of_next(client) == 1
            changed = app.stat().st_mtime + 1
            os.utime(app, (changed, changed))
            assert await close_code(client) == 1012
        await until(lambda: not alive(old), "the old process ends")
        async with server.watching("u1") as client:
            # The new process gives it what was published before it began.
            assert await offset_of_next(client) == 1
            assert server.state()["pid"] != old
            own_redis.pause()
            try:
                server.process.send_signal(signal.SIGTERM)
                assert await close_code(client) == 1012
                assert await server.until_ended() in (0, -signal.SIGTERM)
            finally:
                own_redis.resume()
        assert server.complaints == []
