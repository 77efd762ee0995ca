"""Every awaitable of fanwire behaves as the coroutine that an ``async def`` would give."""

import asyncio
import gc
import inspect
import warnings
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

import fanwire
from tests.conftest import Broker
from tests.connections import StallingConnection
from tests.deadlines import DEADLINE_SECONDS, until
from tests.instance import DONE_AT_THE_CALL, OPERATIONS, App
from tests.redis_server import RedisServer


@pytest.fixture
def app(broker: Broker) -> Iterator[App]:
    app = App(broker.url)
    yield app
    asyncio.run(app.publisher.stop())


@pytest.fixture(params=OPERATIONS)
def operation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[name for name in OPERATIONS if name not in DONE_AT_THE_CALL])
def lazy_operation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# One way after another to run them. Each test is without a loop of its own, as a worker is.


def test_it_is_a_coroutine(app: App, operation: str) -> None:
    made = app.make(operation)
    try:
        assert isinstance(made, Coroutine)
        assert asyncio.iscoroutine(made)
        assert inspect.isawaitable(made)
        assert "coroutine" in repr(made)
        assert operation in repr(made) or operation in DONE_AT_THE_CALL
    finally:
        made.close()


def test_await(app: App, operation: str) -> None:
    async def main() -> Any:
        await app.prepare()
        return await app.make(operation)

    assert asyncio.run(main()) is None


def test_create_task(app: App, operation: str) -> None:
    async def main() -> Any:
        await app.prepare()
        task = asyncio.create_task(app.make(operation), name="mine")
        assert task.get_name() == "mine"
        return await task

    assert asyncio.run(main()) is None


def test_create_task_with_a_context_and_a_callback(app: App, operation: str) -> None:
    done: list[Any] = []

    async def main() -> None:
        task = asyncio.create_task(app.make(operation))
        task.add_done_callback(done.append)
        await task
        await asyncio.sleep(0)

    asyncio.run(main())
    assert len(done) == 1
    assert done[0].result() is None


def test_asyncio_run(app: App, operation: str) -> None:
    # The argument is evaluated before there is a loop.
    assert asyncio.run(app.make(operation)) is None


def test_run_until_complete(app: App, operation: str) -> None:
    loop = asyncio.new_event_loop()
    try:
        assert loop.run_until_complete(app.make(operation)) is None
    finally:
        loop.close()


def test_wait_for(app: App, operation: str) -> None:
    async def main() -> Any:
        await app.prepare()
        return await asyncio.wait_for(app.make(operation), DEADLINE_SECONDS)

    assert asyncio.run(main()) is None


def test_gather(app: App, operation: str) -> None:
    async def main() -> Any:
        await app.prepare()
        return await asyncio.gather(*(app.make(operation) for _ in range(10)))

    assert asyncio.run(main()) == [None] * 10


def test_task_group_and_timeout(app: App, operation: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(app.make(operation))

    asyncio.run(main())


def test_shield_and_as_completed(app: App, operation: str) -> None:
    async def main() -> list[Any]:
        made = [asyncio.shield(app.make(operation)), asyncio.ensure_future(app.make(operation))]
        return [await next_ for next_ in asyncio.as_completed(made)]

    assert asyncio.run(main()) == [None, None]


def test_run_coroutine_threadsafe(app: App, operation: str) -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()

        def from_a_thread() -> Any:
            return asyncio.run_coroutine_threadsafe(app.make(operation), loop).result(
                DEADLINE_SECONDS
            )

        return await asyncio.to_thread(from_a_thread)

    assert asyncio.run(main()) is None


def test_eager_driving_by_hand_needs_a_loop(app: App) -> None:
    made = app.make("publish_progress")
    with pytest.raises((RuntimeError, StopIteration)):
        made.send(None)
    made.close()


# Once, or never


@pytest.mark.parametrize("name", [n for n in OPERATIONS if n not in (*DONE_AT_THE_CALL, "connect")])
def test_awaiting_twice(app: App, name: str) -> None:
    """`connect` is done at the call where a loop runs, and waits for one where none does."""

    async def main() -> None:
        made = app.make(name)
        await made
        with pytest.raises(RuntimeError, match="already"):
            await made

    asyncio.run(main())


def test_awaiting_what_was_closed(app: App, lazy_operation: str) -> None:
    made = app.make(lazy_operation)
    made.close()
    made.close()

    async def main() -> None:
        with pytest.raises(RuntimeError):
            await made

    asyncio.run(main())


def test_throwing_into_what_has_not_begun(app: App, lazy_operation: str) -> None:
    made = app.make(lazy_operation)
    with pytest.raises(LookupError, match="thrown"):
        made.throw(LookupError("thrown"))

    async def main() -> None:
        with pytest.raises(RuntimeError):
            await made

    asyncio.run(main())


@pytest.mark.parametrize("name", DONE_AT_THE_CALL)
def test_what_is_done_at_the_call_needs_no_await(broker: Broker, name: str) -> None:
    app = App(broker.url)

    async def main() -> None:
        await app.manager.connect("ada", app.connection)
        await app.manager.subscribe_upload("ada", "u1")
        if name == "subscribe_upload":
            await app.manager.unsubscribe_upload("ada", "u1")
        made = app.make(name)
        watched = "u1" in app.manager.upload_subscribers
        assert watched == (name == "subscribe_upload")
        assert [await made, await made] == [None, None]
        with pytest.raises(LookupError, match="thrown"):
            made.throw(LookupError("thrown"))

    asyncio.run(main())


@pytest.mark.parametrize("name", ["publish_progress", "publish_to_user", "start"])
def test_what_is_never_awaited_is_warned_of(app: App, name: str) -> None:
    def forget() -> None:
        made = app.make(name)
        del made
        gc.collect()

    with pytest.warns(RuntimeWarning, match=f"{name}.* never awaited"):
        forget()


def test_what_is_closed_is_not_warned_of(app: App, operation: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        app.make(operation).close()
        gc.collect()


def test_what_was_awaited_is_not_warned_of(app: App, operation: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(app.make(operation))
        gc.collect()


def test_what_was_never_awaited_was_not_done(broker: Broker) -> None:
    app = App(broker.url)

    async def main() -> None:
        await app.prepare()
        await app.publisher.start()
        app.make("publish_progress").close()
        await app.publisher.publish_progress("u1", "awaited")
        assert await app.connection.received(1) == ['"awaited"']
        await app.publisher.stop()

    asyncio.run(main())


async def test_closed_or_thrown_into_half_way(own_redis: RedisServer) -> None:
    publisher = fanwire.UploadProgressPublisher(own_redis.url)
    own_redis.pause()
    try:
        closed, thrown = (publisher.publish_progress("u1", n) for n in range(2))
        assert asyncio.isfuture(closed.send(None))
        closed.close()
        assert asyncio.isfuture(thrown.send(None))
        with pytest.raises(LookupError, match="thrown"):
            thrown.throw(LookupError("thrown"))
        for made in (closed, thrown):
            with pytest.raises(RuntimeError):
                made.send(None)
    finally:
        own_redis.resume()
    await publisher.publish_progress("u1", "still works")
    await publisher.stop()


# Cancelled


def test_cancelled_before_it_began(app: App, operation: str) -> None:
    async def main() -> None:
        task = asyncio.create_task(app.make(operation))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await app.make(operation)

    asyncio.run(main())


async def test_a_publish_cancelled_while_it_waits(own_redis: RedisServer) -> None:
    publisher = fanwire.UploadProgressPublisher(own_redis.url, publish_timeout_seconds=30)
    await publisher.publish_progress("u1", "connected")
    own_redis.pause()
    try:
        tasks = [asyncio.create_task(publisher.publish_progress("u1", n)) for n in range(10)]
        for _ in range(10):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        for task in tasks[::2]:
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not any(task.done() for task in tasks[1::2])
    finally:
        own_redis.resume()
    await asyncio.gather(*tasks[1::2])
    await publisher.publish_progress("u1", "still works")
    await publisher.stop()


async def test_a_publish_that_runs_into_a_timeout(own_redis: RedisServer) -> None:
    publisher = fanwire.UploadProgressPublisher(own_redis.url, publish_timeout_seconds=30)
    await publisher.publish_progress("u1", "connected")
    own_redis.pause()
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(publisher.publish_progress("u1", 1), 0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await publisher.publish_to_user("ada", 1)
    finally:
        own_redis.resume()
    await publisher.publish_progress("u1", 2)
    await publisher.stop()


async def test_start_and_stop_cancelled_while_they_wait(own_redis: RedisServer) -> None:
    publisher = fanwire.UploadProgressPublisher(
        own_redis.url, manager=fanwire.ConnectionManager(), connect_timeout_seconds=30
    )
    own_redis.pause()
    try:
        starting = asyncio.create_task(publisher.start())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not starting.done()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    finally:
        own_redis.resume()
    await publisher.start()
    assert publisher.running
    await publisher.stop()
    await until(lambda: not own_redis.listeners(), "no listener is left over")


async def test_a_timeout_around_a_send_that_stalls(manager: fanwire.ConnectionManager) -> None:
    stalled = StallingConnection()
    await manager.connect("ada", stalled)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(manager.send_to_user("ada", 1), 0.01)
    stalled.release()
    await manager.send_to_user("ada", 2)
    assert stalled.texts[-1] == "2"
