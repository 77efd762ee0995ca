"""Event loops come and go: one after another, in threads, and of other makes."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import uvloop

import fanwire
from tests.conftest import Broker
from tests.connections import RecordingConnection
from tests.deadlines import until
from tests.instance import OPERATIONS, App

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

every_loop = pytest.mark.parametrize(
    "make_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


@every_loop
def test_one_loop_after_another(broker: Broker, make_loop: LoopFactory) -> None:
    app = App(broker.url)

    async def job(n: int) -> None:
        app.connection.texts.clear()
        await app.prepare()
        await app.publisher.start()
        await app.publisher.publish_progress("u1", n)
        await app.connection.received(1)
        assert app.connection.texts == [str(n)]
        await app.publisher.stop()
        await app.manager.disconnect("ada", app.connection)

    for n in range(10):
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(job(n))


@every_loop
def test_publishing_by_one_run_after_another(broker: Broker, make_loop: LoopFactory) -> None:
    listening = App(broker.url)
    worker = fanwire.UploadProgressPublisher(broker.url)

    async def main() -> None:
        await listening.prepare()
        await listening.publisher.start()

        def jobs() -> None:
            for n in range(50):
                with asyncio.Runner(loop_factory=make_loop) as runner:
                    runner.run(worker.publish_progress("u1", n))

        await asyncio.to_thread(jobs)
        assert await listening.connection.received(50) == [str(n) for n in range(50)]
        await listening.publisher.stop()

    asyncio.run(main())


@every_loop
def test_loops_in_threads_share_a_publisher(broker: Broker, make_loop: LoopFactory) -> None:
    listening = App(broker.url)
    worker = fanwire.UploadProgressPublisher(broker.url)

    async def job(thread: int) -> None:
        for n in range(50):
            await worker.publish_progress("u1", [thread, n])
        await asyncio.gather(*(worker.publish_progress("u1", [thread, n]) for n in range(50, 100)))

    def in_a_thread(thread: int) -> None:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(job(thread))

    async def main() -> None:
        await listening.prepare()
        await listening.publisher.start()
        await asyncio.gather(*(asyncio.to_thread(in_a_thread, n) for n in range(6)))
        await listening.connection.received(600)
        await listening.publisher.stop()

    asyncio.run(main())
    texts = listening.connection.texts
    for thread in range(6):
        mine = [text for text in texts if text.startswith(f"[{thread},")]
        assert mine == [f"[{thread},{n}]" for n in range(100)]


@every_loop
def test_every_thread_with_an_app_of_its_own(broker: Broker, make_loop: LoopFactory) -> None:
    async def job(thread: int) -> None:
        app, user_id = App(broker.url), f"thread-{thread}"
        await app.manager.connect(user_id, app.connection)
        await app.publisher.start()
        for n in range(50):
            await app.publisher.publish_to_user(user_id, n)
        assert await app.connection.received(50) == [str(n) for n in range(50)]
        await app.publisher.stop()

    def in_a_thread(thread: int) -> None:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(job(thread))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(in_a_thread, range(4))) == [None] * 4


def test_a_loop_that_is_closed_while_messages_arrive(broker: Broker) -> None:
    """The next loop of the process is none the worse."""
    worker = fanwire.UploadProgressPublisher(broker.url)
    for _ in range(5):
        left_behind = App(broker.url)

        async def abandon(app: App = left_behind) -> None:
            await app.prepare()
            await app.publisher.start()
            for n in range(20):
                assert worker.publish_nowait("u1", n)

        asyncio.run(abandon())
        asyncio.run(worker.publish_progress("u1", "to a loop that is gone"))
    app = App(broker.url)

    async def main() -> None:
        await app.prepare()
        await app.publisher.start()
        await worker.publish_progress("u1", "to this loop")
        await app.connection.received_text('"to this loop"')
        await app.publisher.stop()

    asyncio.run(main())


def test_sends_run_on_the_loop_of_their_connection(broker: Broker) -> None:
    """Though another loop, in another thread, holds the listener and publishes."""

    class Homebound(RecordingConnection):
        loops: ClassVar[set[asyncio.AbstractEventLoop]] = set()

        async def send_text(self, data: str) -> None:
            self.loops.add(asyncio.get_running_loop())
            await super().send_text(data)

    app, connection = App(broker.url), Homebound()

    async def hold_the_connection() -> None:
        await app.manager.connect("eve", connection)
        assert await connection.received(3) == ["1", "2", "3"]
        assert connection.loops == {asyncio.get_running_loop()}

    async def publish() -> None:
        await app.publisher.start()
        await until(lambda: "eve" in app.manager.user_connections, "eve is connected")
        await app.publisher.publish_to_user("eve", 1)
        await app.publisher.publish_to_user("eve", 2)
        await connection.received(2)
        await app.manager.send_to_user("eve", 3)
        await app.publisher.stop()

    with ThreadPoolExecutor(1) as threads:
        holding = threads.submit(asyncio.run, hold_the_connection())
        asyncio.run(publish())
        holding.result()


def test_started_again_after_its_loop_has_ended(broker: Broker) -> None:
    """An app that forgot to stop must not be deaf for ever."""
    app = App(broker.url)
    for _ in range(3):
        asyncio.run(app.publisher.start())

    async def main() -> None:
        await app.publisher.start()
        assert app.publisher.running
        await app.prepare()
        await app.publisher.publish_progress("u1", "heard")
        assert await app.connection.received(1) == ['"heard"']
        await app.publisher.stop()

    asyncio.run(main())


def test_called_on_one_loop_and_awaited_on_another(broker: Broker) -> None:
    app = App(broker.url)

    async def call() -> list[Coroutine[Any, Any, Any]]:
        return [app.make(operation) for operation in OPERATIONS]

    async def await_them(made: list[Coroutine[Any, Any, Any]]) -> None:
        for coroutine in made:
            await coroutine
        await app.publisher.stop()

    asyncio.run(await_them(asyncio.run(call())))


def test_loops_in_debug_mode(broker: Broker) -> None:
    app = App(broker.url)

    async def main() -> None:
        await app.prepare()
        await app.publisher.start()
        await asyncio.gather(*(app.publisher.publish_progress("u1", n) for n in range(20)))
        await app.manager.send_to_user("ada", "straight")
        await app.connection.received(21)
        await app.publisher.stop()

    asyncio.run(main(), debug=True)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_all_operations_on_uvloop(broker: Broker, operation: str) -> None:
    app = App(broker.url)

    async def main() -> Any:
        await app.prepare()
        result = await asyncio.create_task(app.make(operation))
        await app.publisher.stop()
        return result

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) is None
