"""Sends that take too long, and the callbacks that are told of connections that were given up."""

import asyncio
import gc
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from tests.connections import (
    FailingConnection,
    RecordingConnection,
    SlowConnection,
    StallingConnection,
)
from tests.deadlines import until
from tests.delivery import Delivery, delivering, until_slow
from tests.test_slow_connections import Told

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

AT_ONCE: dict[str, Any] = {"send_timeout_seconds": 0.02}

every_loop = pytest.mark.parametrize(
    "make_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


@every_loop
def test_a_send_that_does_not_end(make_loop: LoopFactory) -> None:
    async def main() -> None:
        told, slow, healthy = Told(), StallingConnection(), RecordingConnection()
        maps: list[Any] = []

        def on_disconnect(connection: Any, reason: str) -> None:
            maps.append(dict(delivery.manager.user_connections))
            told.disconnects.append((connection, reason))

        delivery: Delivery
        async with delivering(
            **AT_ONCE, on_drop=told.options["on_drop"], on_disconnect=on_disconnect
        ) as delivery:
            await delivery.connect(slow, user="slow", uploads=["u1", "u2"])
            await delivery.connect(healthy)
            delivery.publish(*(("upload:u1", n) for n in range(5)))
            await healthy.received(5)
            await until(lambda: slow.closed, "a close is tried")
            assert slow.closed == [(1013, "slow consumer")]
            assert (slow.cancelled, slow.texts) == (1, [])
            assert told.disconnects == [(slow, "send timed out")]
            assert told.drops == [(slow, 5, "disconnected")]
            assert ["slow" in there for there in maps] == [False], "out before it is told"
            assert "slow" not in delivery.manager.user_subscriptions
            assert set(delivery.manager.upload_subscribers) == {"u1"}
            await delivery.until_figures(
                timed_out=1, disconnected=1, overflowed=0, send_failed=0, dropped=5, lanes=1
            )
            delivery.publish(("upload:u1", "after"))
            await healthy.received_text('"after"')

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())


async def test_many_at_once_and_again() -> None:
    healthy = RecordingConnection()
    async with delivering(**AT_ONCE) as delivery:
        await delivery.connect(healthy)
        for round_ in range(3):
            slow = [StallingConnection() for _ in range(50)]
            await delivery.connect(*slow)
            delivery.publish(("upload:u1", round_))
            await delivery.until_figures(timed_out=50 * (round_ + 1), lanes=1)
            await until(lambda slow=slow: all(c.closed and c.cancelled for c in slow))  # type: ignore[misc]
        assert healthy.texts == ["0", "1", "2"]
        await until(lambda: len(asyncio.all_tasks()) == 1, "no Task is left")


async def test_a_local_send_to_it_returns() -> None:
    slow, healthy = StallingConnection(), RecordingConnection()
    async with delivering(**AT_ONCE) as delivery:
        await delivery.connect(slow, healthy)
        await delivery.manager.send_to_user("ada", 1)
        assert healthy.texts == ["1"]
        assert delivery.manager.user_connections["ada"] == {healthy}


async def test_a_loop_that_stood_still_is_no_reason() -> None:
    """Sends that go on as soon as they may are not late because something else blocked the loop."""
    told, connections = Told(), [SlowConnection(turns=8) for _ in range(5)]
    async with delivering(send_timeout_seconds=0.1, **told.options) as delivery:
        await delivery.connect(*connections)
        delivery.publish(("upload:u1", 1))
        while not all(one.sending for one in connections):  # noqa: ASYNC110 (every turn counts)
            await asyncio.sleep(0)
        time.sleep(0.3)  # noqa: ASYNC251 (the fault itself)
        for connection in connections:
            await until(lambda c=connection: c.texts or told.disconnects)  # type: ignore[misc]
        assert told.disconnects == []
        assert all(connection.texts == ["1"] for connection in connections)


# Sends that do not take their cancellation as one


class Stubborn(StallingConnection):
    """Does something else when it is cancelled."""

    def __init__(self, instead: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self.instead = instead

    async def send_text(self, data: str) -> None:
        try:
            await super().send_text(data)
        except asyncio.CancelledError:
            await self.instead()


async def raise_an_error() -> None:
    raise ConnectionResetError("the transport is closed")


async def return_after_all() -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("instead", [raise_an_error, return_after_all])
async def test_a_send_that_ends_in_its_own_way(instead: Callable[[], Awaitable[None]]) -> None:
    told, slow, healthy = Told(), Stubborn(instead), RecordingConnection()
    async with delivering(**AT_ONCE, **told.options) as delivery:
        await delivery.connect(healthy, slow)
        delivery.publish(*(("upload:u1", n) for n in range(3)))
        await until(lambda: slow.closed)
        assert told.disconnects == [(slow, "send timed out")]
        delivery.publish(("upload:u1", "after"))
        await healthy.received_text('"after"')
        await until(lambda: len(asyncio.all_tasks()) == 1, "its Task has ended")
        # Four for the healthy one, three for the other: none is lost to the books.
        assert delivery.accounted() == 7, delivery.figures()


async def test_a_send_that_will_not_end_is_left_alone() -> None:
    held, healthy = asyncio.Event(), RecordingConnection()

    async def wait() -> None:
        await held.wait()

    slow = Stubborn(wait)
    async with delivering(**AT_ONCE) as delivery:
        await delivery.connect(healthy, slow)
        delivery.publish(("upload:u1", 0))
        await until(lambda: slow.closed)
        assert slow.cancelled == 1
        for n in range(1, 20):
            delivery.publish(("upload:u1", n))
            await healthy.received(n + 1)
        await delivery.until_figures(timed_out=1, lanes=1, queued_messages=0)
        held.set()
        await until(lambda: len(asyncio.all_tasks()) == 1, "its Task has ended")
        assert delivery.accounted() == 21, delivery.figures()


# Callbacks


async def overflow(delivery: Delivery, connection: StallingConnection) -> None:
    delivery.publish(("user:ada", "in the way"))
    await until_slow(connection)
    delivery.publish(*(("user:ada", n) for n in range(5)))


async def run_late(delivery: Delivery, connection: StallingConnection) -> None:
    delivery.publish(("user:ada", "in the way"))


WAYS: list[Any] = [
    pytest.param(overflow, {"max_queued_messages": 2}, "overflow", id="overflow"),
    pytest.param(run_late, AT_ONCE, "send timed out", id="deadline"),
]


@pytest.mark.parametrize("error", [RuntimeError("of the app"), KeyError("k")], ids=repr)
@pytest.mark.parametrize(("give_up", "options", "reason"), WAYS)
async def test_callbacks_that_raise_hurt_nobody(
    give_up: Callable[[Delivery, StallingConnection], Awaitable[None]],
    options: dict[str, Any],
    reason: str,
    error: Exception,
) -> None:
    contexts: list[dict[str, Any]] = []
    calls: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: contexts.append(context))

    def on_drop(*arguments: Any) -> None:
        calls.append("on_drop")
        raise error

    def on_disconnect(*arguments: Any) -> None:
        calls.append(arguments[1])
        raise error

    slow, healthy = StallingConnection(), RecordingConnection()
    callbacks: dict[str, Any] = {"on_drop": on_drop, "on_disconnect": on_disconnect}
    async with delivering(**options, **callbacks) as delivery:
        await delivery.connect(slow)
        await delivery.connect(healthy, user="bob")
        await give_up(delivery, slow)
        await until(lambda: slow.closed == [(1013, "slow consumer")])
        assert calls == ["on_drop", reason]
        assert [context["exception"] for context in contexts] == [error, error]
        assert all("callback" in context["message"] for context in contexts)
        assert "ada" not in delivery.manager.user_connections
        await delivery.manager.send_to_user("bob", "after")
        assert healthy.texts == ['"after"']
        await delivery.until_figures(disconnected=1, lanes=1)


async def test_a_failing_send_is_told_of_with_what_waited() -> None:
    told = Told()

    class FailsWhenReleased(StallingConnection):
        async def send_text(self, data: str) -> None:
            await super().send_text(data)
            raise RuntimeError("gone")

    failing = FailsWhenReleased()
    async with delivering(**told.options) as delivery:
        await delivery.connect(failing)
        delivery.publish(*(("upload:u1", n) for n in range(4)))
        await failing.stalled()
        await delivery.routed()
        failing.release()
        await until(lambda: told.disconnects)
        assert told.drops == [(failing, 4, "disconnected")]
        assert told.disconnects == [(failing, "send failed")]
        assert failing.closed == [], "it is not closed: its peer has gone"
        await delivery.until_figures(send_failed=1, disconnected=1, dropped=4, delivered=0)


async def test_callbacks_may_use_the_manager() -> None:
    left: list[tuple[int, dict[str, Any]]] = []
    failing, healthy = FailingConnection(), RecordingConnection()

    def on_disconnect(connection: Any, reason: str) -> None:
        manager = delivery.manager
        left.append((manager.stats()["send_failed"], dict(manager.user_connections)))
        # Both are done at the call.
        _done = manager.disconnect("ada", connection), manager.subscribe_upload("bob", "u9")
        announcing.append(asyncio.ensure_future(manager.send_to_user("bob", reason)))

    announcing: list[asyncio.Future[None]] = []
    async with delivering(on_disconnect=on_disconnect) as delivery:
        await delivery.connect(failing)
        await delivery.connect(healthy, user="bob")
        delivery.publish(("upload:u1", 1))
        await healthy.received_text('"send failed"')
        await asyncio.gather(*announcing)
        ((counted, there),) = left
        assert counted == 1 and "ada" not in there
        assert "u9" in delivery.manager.user_subscriptions["bob"]


async def test_who_leaves_by_himself_was_not_given_up() -> None:
    told, stalled, other = Told(), StallingConnection(), RecordingConnection()
    async with delivering(**told.options) as delivery:
        await delivery.connect(stalled, other)
        delivery.publish(("upload:u1", 1), ("upload:u1", 2))
        await stalled.stalled()
        await delivery.routed()
        await delivery.manager.disconnect("ada", stalled)
        await delivery.manager.disconnect("ada", other)
        stalled.release()
        await delivery.until_figures(dropped=1, delivered=3, disconnected=0, lanes=0)
        assert told.disconnects == []
        assert stalled.closed == []


async def test_a_connection_that_was_given_up_is_let_go_of() -> None:
    async with delivering(**AT_ONCE) as delivery:
        slow = StallingConnection()
        gone = weakref.ref(slow)
        await delivery.connect(slow)
        delivery.publish(("upload:u1", 1))
        await delivery.until_figures(timed_out=1, lanes=0)
        await until(lambda: len(asyncio.all_tasks()) == 1, "its Task has ended")
        del slow
        gc.collect()
        assert gone() is None
