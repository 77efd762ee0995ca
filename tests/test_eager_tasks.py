"""Tasks that begin when they are made: each Task of ours that makes the next is inside it then."""

import asyncio
import sys
from typing import Any

import pytest

import fanwire
from tests.connections import RecordingConnection
from tests.deadlines import until

MANY = 3_000

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="eager tasks came with Python 3.12"
)


class Suspending(RecordingConnection):
    async def send_text(self, data: str) -> None:
        await asyncio.sleep(0)
        await super().send_text(data)


@pytest.fixture(autouse=True)
async def eager_tasks() -> None:
    if sys.version_info >= (3, 12):
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)


async def test_many_handlers_that_wait() -> None:
    pubsub, heard = fanwire.MemoryPubSub(), list[int]()

    async def handle(topic: str, message: Any) -> None:
        await asyncio.sleep(0)
        heard.append(message)

    await pubsub.start()
    for n in range(MANY):
        await pubsub.subscribe_topic(f"s{n}", "t", handle)
    for n in range(2):
        await pubsub.broadcast("t", n)
    await until(lambda: len(heard) == 2 * MANY, "all have heard both")
    assert pubsub.stats()["handler_failed"] == 0
    await pubsub.stop()


async def test_many_sends_that_wait() -> None:
    manager = fanwire.ConnectionManager()
    publisher = fanwire.UploadProgressPublisher("memory://", manager=manager)
    connections = [Suspending() for _ in range(MANY)]
    await publisher.start()
    for n, connection in enumerate(connections):
        await manager.connect(f"u{n}", connection)
        await manager.subscribe_upload(f"u{n}", "x")
    await publisher.publish_progress("x", "hello")
    await until(lambda: all(connection.texts for connection in connections), "all have got it")
    assert manager.stats()["send_failed"] == 0
    await publisher.stop()
