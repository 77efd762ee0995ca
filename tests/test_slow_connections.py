"""Connections for which too much waits: what becomes of them, and that nobody else is hurt."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from fanwire import ConfigError, ConnectionManager
from tests.conftest import Broker
from tests.connections import RecordingConnection, StallingConnection
from tests.deadlines import until, until_blocking
from tests.delivery import Delivery, Message, delivering, until_slow


class Told:
    """What the two callbacks were told."""

    def __init__(self) -> None:
        self.drops: list[tuple[Any, int, str]] = []
        self.disconnects: list[tuple[Any, str]] = []
        self.options: dict[str, Any] = {
            "on_drop": lambda *arguments: self.drops.append(arguments),
            "on_disconnect": lambda *arguments: self.disconnects.append(arguments),
        }

    @property
    def dropped(self) -> int:
        return sum(count for _, count, _ in self.drops)


class StallingEveryWay(StallingConnection):
    """Neither its sends nor its close come to an end."""

    def __init__(self) -> None:
        super().__init__()
        self.let_close = asyncio.Event()

    async def close(self, code: int | None = None, reason: str | None = None) -> None:
        await super().close(code, reason)
        await self.let_close.wait()


class RaisingAtClose(StallingConnection):
    async def close(self, code: int | None = None, reason: str | None = None) -> None:
        await super().close(code, reason)
        raise RuntimeError("cannot close")


class CancelledAtClose(StallingConnection):
    async def close(self, code: int | None = None, reason: str | None = None) -> None:
        await super().close(code, reason)
        raise asyncio.CancelledError


async def stall(delivery: Delivery, connection: StallingConnection) -> None:
    """One message is in the hands of a send that waits, so that all others queue."""
    delivery.publish(("upload:u1", "in the way"))
    await until_slow(connection)
    await delivery.routed()


def numbers(*of: int) -> list[Message]:
    return [("upload:u1", n) for n in of]


# Policy "disconnect"


@pytest.mark.parametrize(
    "limits",
    [{"max_queued_messages": 3}, {"max_queued_bytes": 6}],
    ids=lambda limits: next(iter(limits)),
)
async def test_over_its_limit_a_slow_connection_is_disconnected(
    limits: dict[str, int], broker: Broker
) -> None:
    told, slow, healthy = Told(), StallingConnection(), RecordingConnection()
    async with delivering(broker.url, **limits, **told.options) as delivery:
        await delivery.connect(slow, healthy)
        await stall(delivery, slow)
        for n in range(10, 13):
            delivery.publish(*numbers(n))
            await healthy.received_text(str(n))
        await delivery.routed()
        assert delivery.manager.user_connections["ada"] == {slow, healthy}
        delivery.publish(*numbers(13))
        await until(lambda: slow.closed, "a close is tried")
        assert slow.closed == [(1013, "slow consumer")]
        assert (slow.cancelled, slow.texts) == (1, [])
        assert told.disconnects == [(slow, "overflow")]
        assert delivery.manager.user_connections["ada"] == {healthy}
        await delivery.until_figures(
            overflowed=1, disconnected=1, timed_out=0, send_failed=0, dropped=5, lanes=1
        )
        delivery.publish(*numbers(14))
        await healthy.received_text("14")
        assert healthy.texts == ['"in the way"', "10", "11", "12", "13", "14"]


@pytest.mark.parametrize(("overflow", "dropped"), [("disconnect", 5), ("coalesce", 6)])
async def test_every_message_that_is_dropped_is_told_of(overflow: str, dropped: int) -> None:
    told, slow = Told(), StallingConnection()
    options: dict[str, Any] = {"max_queued_messages": 3, "overflow": overflow}
    progress: list[Message] = [("upload:u2", {"action": "upload_progress"})]
    async with delivering(**options, **told.options) as delivery:
        await delivery.connect(slow, uploads=["u1", "u2"])
        await stall(delivery, slow)
        delivery.publish(*progress, *numbers(1, 2, 3, 4))
        await delivery.until_figures(disconnected=1, dropped=dropped, queued_messages=0)
        await until(lambda: told.disconnects)
        assert told.dropped == dropped, told.drops


async def test_it_leaves_every_map_and_the_user_s_subscriptions_go_with_it() -> None:
    slow = StallingConnection()
    async with delivering(max_queued_messages=1) as delivery:
        await delivery.connect(slow, user="ada")
        await delivery.connect(slow, user="bob", uploads=["u2"])
        await stall(delivery, slow)
        delivery.publish(*numbers(1, 2))
        await delivery.until_figures(overflowed=1)
        for user in ("ada", "bob"):
            assert delivery.manager.user_connections.get(user) is None
        assert delivery.manager.upload_subscribers == {}
        assert delivery.manager.user_subscriptions == {}
        await delivery.until_figures(lanes=0)


async def test_it_may_connect_again() -> None:
    slow = StallingConnection()
    async with delivering(max_queued_messages=1) as delivery:
        for round_ in range(3):
            await delivery.connect(slow)
            await stall(delivery, slow)
            delivery.publish(*numbers(1, 2))
            await delivery.until_figures(overflowed=round_ + 1, lanes=0)
            await until(lambda: slow.waiting == 0, "its send is cancelled")
        slow.release()
        await delivery.connect(slow)
        delivery.publish(*numbers(3))
        await slow.received_text("3")


async def test_lanes_go_on_though_one_is_given_up_while_a_pump_is_at_work() -> None:
    """The loop is told of it when its pump ends, and hears of all that comes afterwards."""
    slow = StallingConnection()
    async with delivering(max_queued_messages=3) as delivery:

        class Overflowing(RecordingConnection):
            async def send_text(self, data: str) -> None:
                await super().send_text(data)
                if data == '"now"':
                    delivery.publish_past_the_loop(*(("user:slow", n) for n in range(5)))
                    until_blocking(
                        lambda: delivery.manager.stats()["overflowed"], "the slow one overflows"
                    )

        busy = Overflowing()
        await delivery.connect(slow, user="slow", uploads=[])
        await delivery.connect(busy, user="busy", uploads=[])
        delivery.publish(("user:slow", "in the way"))
        await until_slow(slow)
        delivery.publish(("user:busy", "now"))
        await busy.received(1)
        delivery.publish(("user:busy", "after"))
        await busy.received_text('"after"')
        await until(lambda: slow.closed, "the slow one is closed")


# Policy "drop-oldest"


async def test_the_oldest_make_room(broker: Broker) -> None:
    told, slow = Told(), StallingConnection()
    options: dict[str, Any] = {"max_queued_messages": 3, "overflow": "drop-oldest"}
    async with delivering(broker.url, **options, **told.options) as delivery:
        await delivery.connect(slow)
        await stall(delivery, slow)
        delivery.publish(*numbers(*range(10)))
        await delivery.until_figures(dropped=7, queued_messages=3, disconnected=0, overflowed=0)
        await until(lambda: told.dropped == 7, "all seven are told of")
        assert {(connection, reason) for connection, _, reason in told.drops} == {
            (slow, "overflow")
        }
        assert told.disconnects == []
        slow.release()
        assert await slow.received(4) == ['"in the way"', "7", "8", "9"]
        await delivery.until_figures(delivered=4, queued_messages=0, queued_bytes=0)


async def test_as_many_make_room_as_a_large_one_needs() -> None:
    told, slow = Told(), StallingConnection()
    options: dict[str, Any] = {"max_queued_bytes": 100, "overflow": "drop-oldest"}
    async with delivering(**options, **told.options) as delivery:
        await delivery.connect(slow)
        await stall(delivery, slow)
        delivery.publish(*numbers(*range(10, 20)), ("upload:u1", "x" * 85))
        await delivery.until_figures(dropped=4, queued_messages=7, queued_bytes=99)
        delivery.publish(("upload:u1", "y" * 500))
        await delivery.until_figures(dropped=11, queued_messages=1, queued_bytes=502)
        slow.release()
        assert await slow.received(2) == ['"in the way"', '"' + "y" * 500 + '"']
        assert told.dropped == 11


# Policy "coalesce"


def progress(upload: str, n: int) -> Message:
    return f"upload:{upload}", {"action": "upload_progress", "n": n}


async def test_the_oldest_progress_makes_room() -> None:
    told, slow = Told(), StallingConnection()
    options: dict[str, Any] = {"max_queued_messages": 4, "overflow": "coalesce"}
    async with delivering(**options, **told.options) as delivery:
        await delivery.connect(slow, uploads=["u1", "u2", "u3"])
        await stall(delivery, slow)
        # The notes are of u1, so that the newer progress of u2 and u3 finds its older.
        delivery.publish(progress("u2", 1), *numbers(1), progress("u3", 1), *numbers(2))
        delivery.publish(progress("u2", 2), *numbers(3))
        await delivery.until_figures(coalesced=1, dropped=1, queued_messages=4)
        delivery.publish(*numbers(4))
        await delivery.until_figures(dropped=2, queued_messages=4, overflowed=0)
        await until(lambda: told.drops)
        assert {reason for _, _, reason in told.drops} == {"overflow"}
        slow.release()
        assert await slow.received(5) == ['"in the way"', "1", "2", "3", "4"]


@pytest.mark.parametrize("coalesce", [True, False])
async def test_where_no_progress_waits_it_is_disconnected(coalesce: bool) -> None:
    told, slow = Told(), StallingConnection()
    options: dict[str, Any] = {
        "max_queued_messages": 2,
        "overflow": "coalesce",
        "coalesce": coalesce,
    }
    async with delivering(**options, **told.options) as delivery:
        await delivery.connect(slow)
        await stall(delivery, slow)
        # Without coalescing nothing is progress.
        first = numbers(1, 2) if coalesce else [progress("u1", 1), progress("u1", 2)]
        delivery.publish(*first, *numbers(3))
        await until(lambda: slow.closed == [(1013, "slow consumer")])
        assert told.disconnects == [(slow, "overflow")]
        await delivery.until_figures(overflowed=1, disconnected=1, coalesced=0, dropped=4)


# Not slow, but outrun


@pytest.mark.parametrize("overflow", ["disconnect", "drop-oldest", "coalesce"])
async def test_a_connection_that_is_outrun_is_not_to_blame(overflow: str, broker: Broker) -> None:
    count, told = 20_000, Told()
    connections = [RecordingConnection() for _ in range(3)]
    options: dict[str, Any] = {"max_queued_messages": 16, "overflow": overflow, **told.options}
    async with delivering(broker.url, **options) as delivery:
        await delivery.connect(*connections)
        delivery.publish_past_the_loop(*numbers(*range(count)))
        for connection in connections:
            await until(lambda c=connection: len(c.texts) == count, deadline_seconds=50)  # type: ignore[misc]
            assert connection.texts == [str(n) for n in range(count)]
        await delivery.until_figures(
            received=count, delivered=3 * count, dropped=0, coalesced=0, disconnected=0
        )
        assert (told.drops, told.disconnects) == ([], [])


async def test_the_listener_reads_on_when_the_lane_it_waited_for_is_gone() -> None:
    """Whether that connection leaves or stalls and is given up: nobody waits for it for ever."""
    leaving, other = RecordingConnection(), RecordingConnection()
    async with delivering(max_queued_messages=2) as delivery:
        await delivery.connect(leaving)
        await delivery.connect(other, user="bob", uploads=[])
        delivery.publish_past_the_loop(*numbers(*range(5_000)))
        until_blocking(lambda: delivery.manager.stats()["queued_messages"] > 2)
        await delivery.manager.disconnect("ada", leaving)
        delivery.publish(("user:bob", "after"))
        await other.received_text('"after"')


# A close that misbehaves


@pytest.mark.parametrize("kind", [StallingEveryWay, RaisingAtClose, CancelledAtClose])
@pytest.mark.parametrize(
    "options",
    [{"max_queued_messages": 1}, {"send_timeout_seconds": 0.02}],
    ids=["overflow", "deadline"],
)
async def test_a_close_that_misbehaves_hurts_nobody(
    kind: Callable[[], StallingConnection], options: dict[str, Any]
) -> None:
    slow, healthy, trouble = [kind() for _ in range(10)], RecordingConnection(), []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: trouble.append(context)  # nothing of this is the loop's business
    )
    async with delivering(**options) as delivery:
        await delivery.connect(*slow[:5], healthy, *slow[5:])
        delivery.publish(*numbers(0))
        if "max_queued_messages" in options:
            await until_slow(*slow)
        for n in range(1, 20):
            delivery.publish(*numbers(n))
            await healthy.received(n + 1)
        await until(lambda: all(connection.closed for connection in slow))
        assert [connection.closed for connection in slow] == [[(1013, "slow consumer")]] * 10
        assert delivery.manager.user_connections["ada"] == {healthy}
        await delivery.manager.send_to_user("ada", "local")
        assert healthy.texts[-1] == '"local"'
        for connection in slow:
            if isinstance(connection, StallingEveryWay):
                connection.let_close.set()
        await until(lambda: len(asyncio.all_tasks()) == 1, "no Task is left")
        assert trouble == []


# Options


@pytest.mark.parametrize(
    "option",
    [
        {"overflow": "drop"},
        {"overflow": ""},
        {"max_queued_messages": 0},
        {"max_queued_bytes": 0},
        {"send_timeout_seconds": 0},
        {"send_timeout_seconds": -1.0},
        {"send_timeout_seconds": float("nan")},
        {"send_timeout_seconds": float("inf")},
        {"time_slice_seconds": 0.0},
        {"time_slice_seconds": -1},
    ],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_named(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ConfigError, match=name):
        ConnectionManager(**option)


@pytest.mark.parametrize("name", ["on_drop", "on_disconnect"])
def test_a_callback_that_cannot_be_called(name: str) -> None:
    options: dict[str, Any] = {name: "no function"}
    with pytest.raises(TypeError, match=name):
        ConnectionManager(**options)
    options = {name: None}
    ConnectionManager(**options)
