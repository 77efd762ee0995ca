"""``async with track``: the last message is awaited, and cancellation is a failure."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

import fanwire
from tests.conftest import Broker, PublisherFactory, WatcherFactory
from tests.deadlines import bounded, until
from tests.outages import troubles
from tests.redis_server import RedisServer
from tests.tracking import Ear, brief

Publisher = fanwire.UploadProgressPublisher


async def test_watchers_see_a_job_on_every_broker(
    broker: Broker, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(broker.url)
    async with watcher.publisher.track(watcher.upload_id, 2, user_id=watcher.user_id) as tracker:
        tracker.advance()
        tracker.stage("indexing")
    # The user watches the upload, and gets both.
    await until(lambda: sum("upload_completed" in text for text in watcher.connection.texts) == 2)
    assert any('"progress_percent":50' in text for text in watcher.connection.texts)


async def test_the_broker_has_the_last_message_when_the_block_is_left(
    worker: Publisher, ear: Ear
) -> None:
    async with worker.track("u1"):
        pass
    assert brief(ear.messages("upload:u1")) == [(0, "queued"), "completed"]
    with pytest.raises(LookupError):
        async with worker.track("u1"):
            raise LookupError
    assert brief(ear.messages("upload:u1")) == [(0, "queued"), "failed"]


async def track_for_ever(publisher: Publisher, entered: asyncio.Event, **options: Any) -> None:
    async with publisher.track("u1", **options):
        entered.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("times", [1, 3])
async def test_cancellation_is_a_failure_and_goes_on(
    worker: Publisher, ear: Ear, times: int
) -> None:
    entered = asyncio.Event()
    task = asyncio.create_task(track_for_ever(worker, entered))
    await entered.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    # Who is cancelled again while the last message is on its way has published it all the same.
    _, failed = await ear.until("upload:u1", lambda heard: len(heard) == 2)
    assert (failed["action"], failed["error_message"]) == ("upload_failed", "cancelled")


async def test_a_timeout_is_told_and_stays_one(worker: Publisher, ear: Ear) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await track_for_ever(worker, asyncio.Event())
    assert brief(ear.messages("upload:u1")) == [(0, "queued"), "failed"]


async def test_generators_and_coroutines_that_are_closed(worker: Publisher, ear: Ear) -> None:
    async def chunks() -> AsyncIterator[int]:
        async with worker.track("u1") as tracker:
            async for n in tracker.wrap(numbers()):
                yield n

    async def numbers() -> AsyncIterator[int]:
        for n in range(3):
            yield n

    generator: Any = chunks()
    assert await anext(generator) == 0
    await generator.aclose()
    coroutine = track_for_ever(worker, asyncio.Event())
    coroutine.send(None)
    coroutine.close()  # it may await nothing
    heard = await ear.until("upload:u1", lambda heard: len(heard) == 4)
    assert brief(heard) == [(0, "queued"), "failed"] * 2


async def test_a_coroutine_that_is_closed_where_no_loop_runs_waits_for_nobody(
    own_redis: RedisServer,
) -> None:
    publisher = fanwire.UploadProgressPublisher(own_redis.url, publish_timeout_seconds=60)
    await publisher.publish_progress("u1", 1)
    loop = asyncio.new_event_loop()
    coroutine = track_for_ever(publisher, asyncio.Event(), exit_timeout_seconds=60)

    def run_and_close() -> None:
        async def begin() -> None:
            coroutine.send(None)

        loop.run_until_complete(begin())
        own_redis.pause()
        coroutine.close()
        loop.close()

    try:
        await bounded(asyncio.to_thread(run_and_close), deadline_seconds=1.5)
    finally:
        own_redis.resume()
    await until(lambda: publisher.stats()["published"] == 3)


async def test_work_in_a_thread_is_told_by_its_coroutine(worker: Publisher, ear: Ear) -> None:
    def work(tracker: fanwire.Tracker) -> None:
        tracker.stage("working")
        tracker.advance(10)

    async with worker.track("u1", 10, min_interval=0) as tracker:
        await asyncio.to_thread(work, tracker)
    assert brief(ear.messages("upload:u1")) == [
        *[(0, "queued"), (0, "working"), (100, "working")],
        "completed",
    ]


async def test_a_loop_that_is_closed_leaves_the_rest_to_the_thread(
    worker: Publisher, ear: Ear
) -> None:
    loop = asyncio.new_event_loop()
    tracker = worker.track("u1", 10, min_interval=1e6)

    def enter_and_close_the_loop() -> None:
        loop.run_until_complete(tracker.__aenter__())
        loop.close()

    await asyncio.to_thread(enter_and_close_the_loop)
    tracker.advance()
    tracker.advance()
    tracker.stage("on")
    await tracker.__aexit__(None, None, None)
    assert brief(ear.messages("upload:u1")) == [(0, "queued"), (20, "on"), "completed"]


async def test_with_in_a_coroutine_does_not_wait(own_redis: RedisServer) -> None:
    publisher = fanwire.UploadProgressPublisher(own_redis.url)
    await publisher.publish_progress("u1", 1)
    # It is answered a moment before it is taken off what is pending.
    await until(lambda: not publisher.stats()["pending_messages"])
    own_redis.pause()
    try:
        turns = threading.Event()
        asyncio.get_running_loop().call_soon(turns.set)
        with publisher.track("u1"):
            pass
        assert publisher.stats()["pending_messages"] == 2
    finally:
        own_redis.resume()
    await until(lambda: publisher.stats()["published"] == 3)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_broker_that_is_down_is_no_trouble_of_the_job_s(
    own_redis: RedisServer,
    make_publisher: PublisherFactory,
    caplog: pytest.LogCaptureFixture,
    strict: bool,
    fails: bool,
) -> None:
    publisher = make_publisher(own_redis.url, strict=strict)
    own_redis.kill()

    async def job() -> None:
        async with publisher.track("u1", 10, user_id="ada", min_interval=0) as tracker:
            tracker.advance()
            if fails:
                raise KeyError("mine")

    if fails:
        with pytest.raises(KeyError, match="mine") as caught:
            await bounded(job())
        assert caught.value.__context__ is None
    else:
        await bounded(job())
    stats = publisher.stats()
    assert (stats["publish_failed"] > 0) == strict
    assert len(troubles(caplog)) == 1, "an outage is told once"


async def test_what_a_broker_missed_comes_when_it_is_back(
    own_redis: RedisServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_redis.url, history=fanwire.History())
    own_redis.kill()
    while True:  # until the outage is known
        receipt = await publisher.publish_progress("u2", {"n": 1}, receipt=True)
        if receipt.queued:
            break
    async with publisher.track("u1", 100, min_interval=0) as tracker:
        for _ in range(100):
            tracker.advance()
    assert publisher.stats()["publish_coalesced"] == 100
    own_redis.start()
    await until(lambda: not publisher.stats()["pending_messages"])
    kept: Any = own_redis.client.xrange("fanwire:{u1}:log")
    # Progress was overwritten while it waited, the end was not.
    texts = [str(fields) for _, fields in kept]
    assert len(texts) == 2
    assert '"progress_percent":100' in texts[0] and '"upload_completed"' in texts[1]


async def test_a_broker_that_stands_still_holds_nobody_for_long(own_redis: RedisServer) -> None:
    publisher = fanwire.UploadProgressPublisher(own_redis.url, publish_timeout_seconds=20)
    await publisher.publish_progress("u1", 1)

    def blocking() -> None:
        with publisher.track("u1", exit_timeout_seconds=0.1):
            pass

    own_redis.pause()
    try:
        async with publisher.track("u1", exit_timeout_seconds=0.1):
            pass
        await bounded(asyncio.to_thread(blocking), deadline_seconds=10)
        assert publisher.stats()["published"] == 1
    finally:
        own_redis.resume()
    await until(lambda: publisher.stats()["published"] == 5, "it was sent all the same")


async def test_the_last_message_of_a_coroutine_is_cancelled_with_it(
    own_redis: RedisServer,
) -> None:
    """While it is waited for: the job is done, and its Task is cancelled."""
    publisher = fanwire.UploadProgressPublisher(own_redis.url, publish_timeout_seconds=20)
    await publisher.publish_progress("u1", 1)

    async def job() -> None:
        async with publisher.track("u1", exit_timeout_seconds=20):
            pass

    own_redis.pause()
    try:
        task = asyncio.create_task(job())
        await until(lambda: publisher.stats()["pending_messages"] == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        own_redis.resume()
    await until(lambda: publisher.stats()["published"] == 3)
