"""``flush``: waiting for what is published, where no event loop runs."""

import asyncio
import signal
import subprocess
import sys
import threading
from typing import Any, NoReturn

import pytest

import fanwire
from tests.conftest import Broker, PublisherFactory
from tests.deadlines import bounded, until_blocking
from tests.interpreters import ROOT, environment
from tests.redis_server import RedisServer
from tests.tracking import Ear

Publisher = fanwire.UploadProgressPublisher


def test_what_is_published_has_been_taken(worker: Publisher, ear: Ear) -> None:
    for n in range(5_000):
        assert worker.publish_nowait("u1", n)
    assert worker.flush(20) is True
    assert ear.messages("upload:u1") == list(range(5_000))


def test_so_it_is_on_every_broker(broker: Broker) -> None:
    publisher = fanwire.UploadProgressPublisher(broker.url)
    for n in range(100):
        publisher.publish_nowait("u1", n)
        publisher.publish_to_user_nowait("ada", n)
    assert publisher.flush()
    stats = publisher.stats()
    assert (stats["published"], stats["pending_messages"]) == (200, 0)


def test_where_nothing_waits_nobody_does(own_redis: RedisServer) -> None:
    publisher = fanwire.UploadProgressPublisher(own_redis.url)
    assert publisher.flush() and publisher.flush(0)
    assert publisher.publish_nowait("u1", 1) and publisher.flush(timeout_seconds=20)
    own_redis.pause()
    try:
        assert publisher.flush(0)
        publisher.publish_nowait("u1", 2)
        assert not publisher.flush(0)
        assert not publisher.flush(0.05)
    finally:
        own_redis.resume()
    assert publisher.flush(20)


def test_what_waits_out_an_outage_is_waited_for(own_redis: RedisServer) -> None:
    publisher = fanwire.UploadProgressPublisher(own_redis.url)
    assert publisher.publish_nowait("u1", 1) and publisher.flush(20)
    own_redis.kill()
    publisher.publish_nowait("u1", {"action": "upload_completed"})
    assert not publisher.flush(0.1)
    back = threading.Timer(0.1, own_redis.start)
    back.start()
    assert publisher.flush(20)
    back.join()
    assert publisher.stats()["published"] == 2


def test_what_fails_is_not_waited_for_and_told(own_redis: RedisServer) -> None:
    publisher = fanwire.UploadProgressPublisher(
        own_redis.url, outbox=None, publish_timeout_seconds=0.5
    )
    assert publisher.publish_nowait("u1", 1) and publisher.flush(20)
    own_redis.pause()
    try:
        publisher.publish_nowait("u1", 2)
        assert publisher.flush(20) is False
        assert publisher.stats()["publish_failed"] == 1
        assert publisher.flush() is True, "nothing waits any more"
    finally:
        own_redis.resume()


async def test_a_loop_that_would_stand_still_is_told(worker: Publisher) -> None:
    worker.publish_nowait("u1", 1)
    with pytest.raises(RuntimeError, match=r"would block the event loop.*publish_progress"):
        worker.flush()
    assert await asyncio.to_thread(worker.flush, 20)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
def test_times_that_make_no_sense(worker: Publisher, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout_seconds"):
        worker.flush(timeout)
    with pytest.raises(fanwire.ConfigError):
        fanwire.UploadProgressPublisher("nonsense://").flush()


def test_other_threads_work_meanwhile_and_a_signal_ends_it(own_redis: RedisServer) -> None:
    publisher = fanwire.UploadProgressPublisher(own_redis.url, publish_timeout_seconds=60)
    assert publisher.publish_nowait("u1", 1) and publisher.flush(20)

    def interrupted(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    def flush_until_interrupted() -> None:
        # It can only be sent by a thread that runs while this one waits.
        sender = threading.Timer(0.1, signal.raise_signal, (signal.SIGUSR1,))
        sender.start()
        try:
            publisher.flush(50)
        finally:
            sender.join()

    before = signal.signal(signal.SIGUSR1, interrupted)
    own_redis.pause()
    try:
        publisher.publish_nowait("u1", 2)
        with pytest.raises(KeyboardInterrupt):
            flush_until_interrupted()
    finally:
        signal.signal(signal.SIGUSR1, before)
        own_redis.resume()


def test_stop_ends_what_is_waited_for(own_redis: RedisServer) -> None:
    publisher = fanwire.UploadProgressPublisher(own_redis.url, publish_timeout_seconds=60)
    assert publisher.publish_nowait("u1", 1) and publisher.flush(20)
    own_redis.pause()
    whole: list[bool] = []
    waiting = threading.Thread(target=lambda: whole.append(publisher.flush(50)))
    try:
        publisher.publish_nowait("u1", 2)
        waiting.start()
        asyncio.run(stop(publisher))
        waiting.join(20)
        assert whole == [False]
    finally:
        own_redis.resume()
        waiting.join()


async def stop(publisher: Publisher) -> None:
    await publisher.stop(drain_seconds=0.1)


async def test_what_a_stop_still_sends_is_waited_for(
    own_redis: RedisServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_redis.url, publish_timeout_seconds=60)
    await publisher.publish_progress("u1", 1)
    own_redis.pause()
    try:
        assert publisher.publish_nowait("u1", 2)
        stopping = asyncio.create_task(publisher.stop(drain_seconds=60))
        await asyncio.sleep(0)  # it has begun, and waits for the broker
        assert publisher.stats()["pending_messages"] == 1
        assert not await asyncio.to_thread(publisher.flush, 0.1)
    finally:
        own_redis.resume()
    assert await asyncio.to_thread(publisher.flush, 20)
    assert publisher.stats()["published"] == 2
    await bounded(stopping)


TWO_SIDES = """
import os, sys, fanwire
publisher = fanwire.UploadProgressPublisher(sys.argv[1])
publisher.publish_nowait("u1", "parent")
child = os.fork()
if not child:
    assert publisher.flush(20)  # what waits is the parent's
    publisher.publish_nowait("u1", "child")
    os._exit(0 if publisher.flush(20) else 1)
assert publisher.flush(20)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_after_a_fork_each_side_waits_for_its_own(redis_server: RedisServer, ear: Ear) -> None:
    command = [sys.executable, "-c", TWO_SIDES, redis_server.url]
    done = subprocess.run(  # noqa: PLW1510 (the status is looked at)
        command, capture_output=True, text=True, timeout=50, env=environment(), cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(ear.messages("upload:u1")) == ["child", "parent"]


def test_it_is_told_apart_from_what_comes_later(worker: Publisher) -> None:
    """Others who never stop publishing keep nobody from coming to an end."""
    enough = threading.Event()

    def publish() -> None:
        n = 0
        while not enough.is_set():
            n += worker.publish_nowait("u2", n)

    busy = threading.Thread(target=publish)
    busy.start()
    try:
        until_blocking(lambda: worker.stats()["published"] > 100)
        worker.publish_nowait("u1", 1)
        assert worker.flush(20)
    finally:
        enough.set()
        busy.join()
