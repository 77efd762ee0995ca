"""What a connection's coroutine may do in a lane: everything that it may in a Task of its own."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import uvloop

from fanwire import ConnectionManager
from tests.connections import RecordingConnection, StallingConnection
from tests.deadlines import bounded, until
from tests.delivery import delivering

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Work = Callable[[], Awaitable[Any]]


async def current_task() -> None:
    task = asyncio.current_task()
    assert task is not None and not task.done() and task in asyncio.all_tasks()
    assert task.cancelling() == 0
    await asyncio.sleep(0)
    assert asyncio.current_task() is task


async def timeout_in_time() -> None:
    async with asyncio.timeout(60):
        await asyncio.sleep(0)


async def timeout_too_late() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()


async def timeout_of_the_past() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.Event().wait()


async def nested_timeouts() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60), asyncio.timeout(0.001):
            await asyncio.Event().wait()


async def wait_for() -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0.001)
    assert await asyncio.wait_for(asyncio.sleep(0, "slept"), 60) == "slept"


async def another_task() -> None:
    assert await asyncio.create_task(asyncio.sleep(0, "slept")) == "slept"


async def another_task_that_is_cancelled() -> None:
    other = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await other


async def another_task_that_fails() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise RuntimeError("of the other")

    with pytest.raises(RuntimeError, match="of the other"):
        await asyncio.create_task(fail())


async def task_group() -> None:
    async def group_up() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(another_task())
            group.create_task(asyncio.wait_for(asyncio.Event().wait(), 0.001))
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup):
        await group_up()


async def gather() -> None:
    assert await asyncio.gather(*(asyncio.sleep(0, n) for n in range(3))) == [0, 1, 2]


async def thread() -> None:
    assert await asyncio.to_thread(lambda: "done") == "done"


async def lock() -> None:
    lock = asyncio.Lock()
    async with lock:
        waiting = asyncio.create_task(lock.acquire())
        await asyncio.sleep(0)
    await waiting


async def cancelled_and_taken_back() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)
    assert task.uncancel() == 0


async def anyio_move_on() -> None:
    with anyio.move_on_after(0.001) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught


async def anyio_fail_after() -> None:
    with pytest.raises(TimeoutError), anyio.fail_after(0.001):
        await anyio.sleep_forever()


async def anyio_scopes() -> None:
    with anyio.CancelScope() as outer:
        with anyio.CancelScope(shield=True):
            outer.cancel()
            await anyio.lowlevel.checkpoint()
        await anyio.sleep_forever()
    assert outer.cancelled_caught


async def anyio_task_group() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()


WORK: list[Work] = [
    current_task,
    timeout_in_time,
    timeout_too_late,
    timeout_of_the_past,
    nested_timeouts,
    wait_for,
    another_task,
    another_task_that_is_cancelled,
    another_task_that_fails,
    task_group,
    gather,
    thread,
    lock,
    cancelled_and_taken_back,
    anyio_move_on,
    anyio_fail_after,
    anyio_scopes,
    anyio_task_group,
]

every_loop = pytest.mark.parametrize(
    "make_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


class Working(RecordingConnection):
    """Does its work in every send, and keeps what went wrong."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    async def send_text(self, data: str) -> None:
        await self.work()
        await super().send_text(data)


@every_loop
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_a_send_may_do_what_a_task_may(work: Work, make_loop: LoopFactory) -> None:
    async def main() -> None:
        # Before and after the others in the round, and with company in its own Task.
        working = [Working(work) for _ in range(3)]
        plain = [RecordingConnection() for _ in range(3)]
        failures: list[tuple[Any, str]] = []
        options: dict[str, Any] = {"on_disconnect": lambda *arguments: failures.append(arguments)}
        async with delivering(**options) as delivery:
            for pair in zip(plain, working, strict=True):
                await delivery.connect(*pair)
            delivery.publish(*(("upload:u1", n) for n in range(4)))
            for connection in plain + working:
                assert await connection.received(4) == ["0", "1", "2", "3"]
            assert failures == []
            await delivery.manager.send_to_user("ada", "local")
            assert all(connection.texts[-1] == '"local"' for connection in plain + working)
            await delivery.until_figures(delivered=30, send_failed=0, dropped=0)

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())


# Cancellation that leaves the send


async def test_a_send_that_cancels_its_own_task() -> None:
    """One message is lost, its own; the connection stays, and so does everybody else's."""

    class CancelsItself(RecordingConnection):
        async def send_text(self, data: str) -> None:
            if data == "2":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(0)
            await super().send_text(data)

    odd, others = CancelsItself(), [RecordingConnection() for _ in range(3)]
    async with delivering() as delivery:
        await delivery.connect(others[0], odd, *others[1:])
        delivery.publish(*(("upload:u1", n) for n in range(5)))
        for connection in others:
            assert await connection.received(5) == ["0", "1", "2", "3", "4"]
        assert await odd.received(4) == ["0", "1", "3", "4"]
        await delivery.until_figures(delivered=19, dropped=1, disconnected=0, queued_messages=0)


async def test_a_send_whose_other_task_is_cancelled_fails_alone() -> None:
    others: list[asyncio.Task[Any]] = []

    class AwaitsAnother(RecordingConnection):
        async def send_text(self, data: str) -> None:
            others.append(asyncio.create_task(asyncio.Event().wait()))
            await others[-1]

    dependent, healthy = AwaitsAnother(), RecordingConnection()
    async with delivering() as delivery:
        await delivery.connect(dependent, healthy)
        delivery.publish(("upload:u1", 1), ("upload:u1", 2))
        await healthy.received(2)
        await until(lambda: others)
        others[0].cancel()
        await delivery.until_figures(send_failed=1, dropped=2, delivered=2)
        assert delivery.manager.user_connections["ada"] == {healthy}


def tasks_besides(*kept: Any) -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task not in kept]


@every_loop
@pytest.mark.parametrize("rounds", [1, 5])
def test_all_tasks_of_the_loop_are_cancelled(rounds: int, make_loop: LoopFactory) -> None:
    """As some servers do when they shut down: what waits is not lost, and nothing hangs."""

    async def main() -> None:
        stalled = [StallingConnection() for _ in range(10)]
        healthy = [RecordingConnection() for _ in range(10)]
        async with delivering() as delivery:
            for pair in zip(stalled, healthy, strict=True):
                await delivery.connect(*pair)
            delivery.publish(*(("upload:u1", n) for n in range(20)))
            for round_ in range(rounds):
                for connection in stalled:
                    await connection.stalled()
                await delivery.until_figures(
                    delivered=200, dropped=10 * round_, queued_messages=10 * (19 - round_)
                )
                for task in (cancelled := tasks_besides(asyncio.current_task())):
                    task.cancel()
                await bounded(asyncio.gather(*cancelled, return_exceptions=True))
            for connection in stalled:
                connection.release()
                # The send that was cancelled had its message in hand; all others come.
                assert await connection.received(20 - rounds) == [str(n) for n in range(rounds, 20)]
            delivery.publish(("upload:u1", "after"))
            for each in [*stalled, *healthy]:
                await each.received_text('"after"')
            expected = 200 + 10 * (20 - rounds) + 20
            await delivery.until_figures(
                delivered=expected, dropped=10 * rounds, disconnected=0, queued_messages=0
            )
            assert all(connection.cancelled == rounds for connection in stalled)

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())


async def test_a_pump_that_is_cancelled_before_its_first_step() -> None:
    connections = [RecordingConnection() for _ in range(100)]
    async with delivering() as delivery:
        await delivery.connect(*connections)
        mine = asyncio.current_task()
        for n in range(50):
            delivery.queue_past_the_loop(("upload:u1", n), entries=100)
            while not (pumps := tasks_besides(mine)):  # noqa: ASYNC110 (every turn counts)
                await asyncio.sleep(0)
            for task in pumps:
                task.cancel()
            for connection in connections:
                await connection.received(n + 1)
        expected = [str(n) for n in range(50)]
        assert all(connection.texts == expected for connection in connections)
        await delivery.until_figures(delivered=5_000, dropped=0)


async def test_a_pump_that_is_cancelled_between_two_sends() -> None:
    """Where its time slice ended, it has messages in hand that it has not begun to send."""
    connections = [RecordingConnection() for _ in range(200)]
    async with delivering(time_slice_seconds=1e-9) as delivery:
        await delivery.connect(*connections)
        mine = asyncio.current_task()
        burst = [("upload:u1", n) for n in range(20)]
        delivery.queue_past_the_loop(*burst, entries=4_000)
        # A pump takes a few turns to begin; it is to get somewhere before it is cancelled.
        cancelled, turns = 0, itertools.cycle(range(3, 9))
        while delivery.figures()["delivered"] < 4_000:
            for task in tasks_besides(mine):
                cancelled += task.cancel()
            for _ in range(next(turns)):
                await asyncio.sleep(0)
        assert cancelled > 50
        expected = [str(n) for n in range(20)]
        assert all(connection.texts == expected for connection in connections)
        await delivery.until_figures(delivered=4_000, dropped=0, queued_messages=0)


async def test_a_waiting_local_send_ends_when_its_pump_is_cancelled(
    manager: ConnectionManager,
) -> None:
    stalled, mine = StallingConnection(), asyncio.current_task()
    await manager.connect("ada", stalled)
    sending = asyncio.ensure_future(manager.send_to_user("ada", 1))
    await stalled.stalled()
    for task in tasks_besides(mine, sending):
        task.cancel()
    await bounded(sending)
    assert stalled in manager.user_connections["ada"]
