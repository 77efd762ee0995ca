"""The publishing side alone: workers that never listen, hot loops that do not wait, and limits."""

import asyncio

import pytest

from tests.conftest import Broker, PublisherFactory, Unique, WatcherFactory
from tests.deadlines import until


async def test_publishing_without_start(
    broker: Broker, make_watcher: WatcherFactory, make_publisher: PublisherFactory
) -> None:
    watcher, worker = await make_watcher(broker.url), make_publisher(broker.url)
    await worker.publish_progress(watcher.upload_id, {"n": 1})
    await worker.publish_to_user(watcher.user_id, {"n": 2})
    assert await watcher.connection.received(2) == ['{"n":1}', '{"n":2}']
    assert not worker.running


async def test_publishing_without_waiting(
    broker: Broker, make_watcher: WatcherFactory, make_publisher: PublisherFactory
) -> None:
    watcher, worker = await make_watcher(broker.url), make_publisher(broker.url)
    for n in range(1_000):
        assert worker.publish_nowait(watcher.upload_id, n) is True
    assert await watcher.connection.received(1_000) == [str(n) for n in range(1_000)]
    await until(lambda: worker.stats()["published"] == 1_000, "all are counted")


async def test_publishing_from_a_thread_without_a_loop(
    broker: Broker, make_watcher: WatcherFactory, make_publisher: PublisherFactory
) -> None:
    watcher, worker = await make_watcher(broker.url), make_publisher(broker.url)
    assert await asyncio.to_thread(worker.publish_nowait, watcher.upload_id, "from a thread")
    assert await watcher.connection.received(1) == ['"from a thread"']


async def test_a_message_that_cannot_be_encoded_is_refused_without_waiting_too(
    broker: Broker, make_publisher: PublisherFactory, unique: Unique
) -> None:
    publisher = make_publisher(broker.url)
    with pytest.raises(TypeError, match="object"):
        publisher.publish_nowait(unique("upload"), {"x": object()})
    with pytest.raises(ValueError):
        publisher.publish_to_user_nowait(unique("user"), float("inf"))
    with pytest.raises(TypeError, match="object"):
        await publisher.publish_progress(unique("upload"), {"x": object()})


async def test_a_message_over_the_limit(broker: Broker, make_watcher: WatcherFactory) -> None:
    watcher = await make_watcher(broker.url, max_message_bytes=100)
    publisher, upload_id = watcher.publisher, watcher.upload_id
    for message in ["x" * 99, "ü" * 50, b'"' + b"x" * 99 + b'"']:
        with pytest.raises(ValueError, match="100"):
            await publisher.publish_progress(upload_id, message)
        with pytest.raises(ValueError, match="100"):
            await publisher.publish_to_user(watcher.user_id, message)
        with pytest.raises(ValueError, match="100"):
            publisher.publish_nowait(upload_id, message)
    await publisher.publish_progress(upload_id, "x" * 98)
    await publisher.publish_progress(upload_id, "ü" * 49)
    assert await watcher.connection.received(2) == ['"' + "x" * 98 + '"', '"' + "ü" * 49 + '"']
