"""What a publish waits for is a future to asyncio: Tasks wait for it, wake by it and cancel it."""

import asyncio
import contextvars
import functools
import gc
import sys
import time
import weakref
from asyncio import tasks
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop

import fanwire
from tests.conftest import Broker
from tests.deadlines import DEADLINE_SECONDS, until
from tests.redis_server import RedisServer

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
every_loop = pytest.mark.parametrize(
    "make_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


@pytest.fixture
async def publisher(own_redis: RedisServer) -> AsyncIterator[fanwire.UploadProgressPublisher]:
    """Whose broker is silent, so that answers come when a test says ``resume``."""
    publisher = fanwire.UploadProgressPublisher(own_redis.url, publish_timeout_seconds=30)
    await publisher.publish_progress("u1", "connected")
    own_redis.pause()
    yield publisher
    own_redis.resume()
    await publisher.stop()


def begin(publisher: fanwire.UploadProgressPublisher) -> tuple[Coroutine[Any, Any, None], Any]:
    publishing = publisher.publish_progress("u1", 1)
    return publishing, publishing.send(None)


async def test_it_looks_like_a_future(
    publisher: fanwire.UploadProgressPublisher, own_redis: RedisServer
) -> None:
    publishing, answer = begin(publisher)
    assert asyncio.isfuture(answer)
    assert answer.get_loop() is asyncio.get_running_loop()
    assert not answer.done()
    assert not answer.cancelled()
    assert "pending" in repr(answer)
    for ask in (answer.result, answer.exception):
        with pytest.raises(asyncio.InvalidStateError):
            ask()
    own_redis.resume()
    await until(answer.done, "an answer")
    assert answer.result() is None
    assert answer.exception() is None
    assert answer.cancel() is False
    assert "done" in repr(answer)
    with pytest.raises(StopIteration):
        publishing.send(None)


async def test_callbacks_are_called_once_with_it_and_in_their_context(
    publisher: fanwire.UploadProgressPublisher, own_redis: RedisServer
) -> None:
    name = contextvars.ContextVar("name", default="nobody's")
    publishing, answer = begin(publisher)
    called: list[tuple[str, Any]] = []

    def callback(future: Any) -> None:
        called.append((name.get(), future))

    async def add_with_my_name() -> None:
        name.set("mine")
        answer.add_done_callback(callback)

    await asyncio.create_task(add_with_my_name())
    context = contextvars.copy_context()
    context.run(name.set, "given")
    answer.add_done_callback(callback, context=context)
    unwanted = functools.partial(called.append, ("unwanted", None))
    answer.add_done_callback(unwanted)
    answer.add_done_callback(unwanted)
    assert answer.remove_done_callback(unwanted) == 2
    assert answer.remove_done_callback(unwanted) == 0
    own_redis.resume()
    await until(answer.done, "an answer")
    assert called == [("mine", answer), ("given", answer)]
    answer.add_done_callback(callback)
    assert len(called) == 2, "asyncio promises that it is not called before this returns"
    await asyncio.sleep(0)
    assert called[2:] == [("nobody's", answer)]
    publishing.close()


async def test_a_cancelled_one_says_so_later_and_gets_no_answer(
    publisher: fanwire.UploadProgressPublisher, own_redis: RedisServer
) -> None:
    publishing, answer = begin(publisher)
    called: list[Any] = []
    answer.add_done_callback(called.append)
    assert answer.cancel("enough") is True
    assert answer.cancel() is False
    assert answer.cancelled()
    assert answer.done()
    assert called == []
    await asyncio.sleep(0)
    assert called == [answer]
    for ask in (answer.result, answer.exception):
        with pytest.raises(asyncio.CancelledError, match="enough"):
            ask()
    own_redis.resume()
    await publisher.publish_progress("u1", 2)
    assert answer.cancelled()
    with pytest.raises(asyncio.CancelledError):
        publishing.send(None)


async def test_an_error_is_raised_by_result_and_returned_by_exception(
    own_redis: RedisServer,
) -> None:
    publisher = fanwire.UploadProgressPublisher(own_redis.url, strict=True)
    own_redis.kill()
    publishing, answer = begin(publisher)
    await until(answer.done, "an answer")
    error = answer.exception()
    assert isinstance(error, fanwire.PublishError)
    with pytest.raises(fanwire.PublishError) as raised:
        answer.result()
    assert raised.value is error
    with pytest.raises(fanwire.PublishError):
        publishing.send(None)
    await publisher.stop()


def every_kind_of_task() -> list[Any]:
    kinds = [pytest.param(tasks._PyTask, id="python")]  # type: ignore[attr-defined]
    if sys.version_info >= (3, 12):
        kinds.append(pytest.param(functools.partial(asyncio.Task, eager_start=True), id="eager"))
    return [pytest.param(asyncio.Task, id="native"), *kinds]


@every_loop
@pytest.mark.parametrize("kind", every_kind_of_task())
def test_every_kind_of_task_waits_for_it(
    broker: Broker, make_loop: LoopFactory, kind: Callable[..., Any]
) -> None:
    name = contextvars.ContextVar[int]("name")
    publisher = fanwire.UploadProgressPublisher(broker.url)
    current_task = asyncio.current_task
    if kind is tasks._PyTask and sys.version_info >= (3, 14):  # type: ignore[attr-defined]
        # There the one in C knows of its own Tasks only.
        current_task = tasks._py_current_task  # type: ignore[attr-defined]

    async def job(number: int) -> None:
        name.set(number)
        for n in range(5):
            await publisher.publish_progress("u1", n)
            assert name.get() == number
            task = current_task()
            assert task is not None
            assert task.get_name() == str(number)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        jobs = [kind(job(number), loop=loop, name=str(number)) for number in range(20)]
        await asyncio.gather(*jobs)
        await publisher.stop()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())


async def test_the_error_of_a_callback_is_the_loops_business(
    publisher: fanwire.UploadProgressPublisher, own_redis: RedisServer
) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    def failing(_: Any) -> None:
        raise LookupError("mine")

    called: list[Any] = []
    publishing, answer = begin(publisher)
    answer.add_done_callback(failing)
    answer.add_done_callback(called.append)
    others = [asyncio.create_task(publisher.publish_progress("u1", n)) for n in range(5)]
    await asyncio.sleep(0)
    own_redis.resume()
    await asyncio.gather(*others)
    assert called == [answer]
    assert [str(context["exception"]) for context in reported] == ["mine"]
    assert "failing" in reported[0]["message"]
    publishing.close()


@every_loop
@pytest.mark.parametrize("fatal", [SystemExit, KeyboardInterrupt])
def test_what_ends_the_loop_takes_no_answer_along(
    own_redis: RedisServer, make_loop: LoopFactory, fatal: type[BaseException]
) -> None:
    publisher = fanwire.UploadProgressPublisher(own_redis.url, publish_timeout_seconds=30)
    loop = make_loop()

    async def ending() -> None:
        await publisher.publish_progress("u1", "the first of a batch")
        raise fatal

    async def main() -> list[asyncio.Task[None]]:
        await publisher.publish_progress("u1", "connected")
        own_redis.pause()
        jobs = [asyncio.create_task(ending())]
        jobs += [asyncio.create_task(publisher.publish_progress("u1", n)) for n in range(20)]
        for _ in range(3):
            await asyncio.sleep(0)
        return jobs

    try:
        first, *others = loop.run_until_complete(main())
        loop.call_soon(own_redis.resume)
        with pytest.raises(fatal):
            loop.run_forever()
        assert isinstance(first.exception(), fatal)
        loop.run_until_complete(asyncio.wait_for(asyncio.gather(*others), DEADLINE_SECONDS))
        loop.run_until_complete(publisher.stop())
    finally:
        loop.close()


@every_loop
def test_tasks_that_are_woken_leave_others_their_turn(
    own_redis: RedisServer, make_loop: LoopFactory
) -> None:
    """A hundred Tasks come back at once, each to a millisecond of work: no turn is for all."""
    publisher = fanwire.UploadProgressPublisher(own_redis.url, publish_timeout_seconds=30)
    back = 0
    most_in_a_turn = 0

    async def job(n: int) -> None:
        nonlocal back
        await publisher.publish_progress("u1", n)
        until_then = time.perf_counter() + 0.001
        while time.perf_counter() < until_then:
            pass
        back += 1

    async def main() -> None:
        nonlocal most_in_a_turn
        await publisher.publish_progress("u1", "connected")
        own_redis.pause()
        jobs = [asyncio.create_task(job(n)) for n in range(100)]
        for _ in range(5):
            await asyncio.sleep(0)
        own_redis.resume()
        before = 0
        while before < 100:
            await asyncio.sleep(0)
            most_in_a_turn = max(most_in_a_turn, back - before)
            before = back
        await asyncio.gather(*jobs)
        await publisher.stop()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(asyncio.wait_for(main(), DEADLINE_SECONDS))
    assert 1 <= most_in_a_turn <= 20


async def test_a_task_that_is_done_is_let_go(publisher: fanwire.UploadProgressPublisher) -> None:
    """Cancelled while it waits; the answer, which never comes, keeps nothing of it alive."""

    class Local:
        pass

    async def job() -> None:
        local = Local()
        references.append(weakref.ref(local))
        await publisher.publish_progress("u1", 1)
        assert local is not None

    references: list[weakref.ref[Local]] = []
    task = asyncio.create_task(job())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    del task
    gc.collect()
    assert references[0]() is None
