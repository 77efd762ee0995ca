"""Watching what a publisher makes of a broker that is not as it should be."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import fanwire
from tests.conftest import Watcher
from tests.deadlines import STOP_SECONDS, SUBSCRIBED_AGAIN_SECONDS, bounded, until
from tests.redis_server import RedisServer
from tests.servers import AnyServer


def troubles(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What fanwire logged at warning or above, less the good news that an outage is over."""
    lines = [
        record.getMessage()
        for record in caplog.records
        if record.name.split(".")[0] == "fanwire" and record.levelno >= logging.WARNING
    ]
    return [line for line in lines if "again" not in line.split(": ")[-1]]


async def publish_until_received(
    publisher: fanwire.UploadProgressPublisher, watcher: Watcher
) -> None:
    """Publishes until a message arrives at the watcher: the way back after an outage is open.

    To be called when the broker has returned: the listener has promised to be back soon after.
    """
    before = len(watcher.connection.texts)

    async def publish() -> None:
        while len(watcher.connection.texts) == before:
            await publisher.publish_progress(watcher.upload_id, "are you there")
            await asyncio.sleep(0.005)

    await bounded(publish(), deadline_seconds=SUBSCRIBED_AGAIN_SECONDS)


async def stop_in_time(publisher: fanwire.UploadProgressPublisher) -> None:
    """Stops a publisher, which has promised to be quick about it whatever the broker does."""
    await bounded(publisher.stop(), deadline_seconds=STOP_SECONDS)
    assert not publisher.running


async def subscribed_anew(server: AnyServer, dropped: set[int]) -> None:
    """Returns when a listener other than the dropped ones is subscribed, soon as promised."""

    def hears_uploads() -> bool:
        return not isinstance(server, RedisServer) or server.client.pubsub_numpat() >= 2

    await until(
        lambda: server.listeners() - dropped and hears_uploads(),
        "a listener is subscribed again",
        deadline_seconds=SUBSCRIBED_AGAIN_SECONDS,
    )


@asynccontextmanager
async def impostor(answer: bytes | None, *, hang_up: bool = False) -> AsyncIterator[str]:
    """Something that listens on a port and is no broker; the URL that leads there."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not hang_up:
                await reader.read(1)
            if answer is not None:
                writer.write(answer)
                await writer.drain()
            if not hang_up:
                await reader.read()
        except ConnectionError:
            pass  # the other side has gone, which is what the tests make it do
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
