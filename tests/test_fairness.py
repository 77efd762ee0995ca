"""Deliveries share the event loop with the app, and the lanes share it among themselves."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from tests.connections import RecordingConnection
from tests.deadlines import until
from tests.delivery import Message, delivering


class Turns:
    """Counts the turns of the event loop, as a coroutine of the app sees them."""

    def __init__(self) -> None:
        self.count = 0

    async def _go_round(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.count += 1

    @asynccontextmanager
    async def counting(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self._go_round())
        try:
            yield
        finally:
            task.cancel()


class TurnNoting(RecordingConnection):
    """Notes in which turn it was given a message; a send may take its time without giving way."""

    def __init__(self, turns: Turns, *, busy_seconds: float = 0.0) -> None:
        super().__init__()
        self.turns = turns
        self.busy_seconds = busy_seconds
        self.at: list[int] = []

    async def send_text(self, data: str) -> None:
        self.at.append(self.turns.count)
        end = time.perf_counter() + self.busy_seconds
        while time.perf_counter() < end:
            pass
        await super().send_text(data)

    @property
    def most_in_a_turn(self) -> int:
        return max(self.at.count(turn) for turn in set(self.at))


class Noting(RecordingConnection):
    """Notes in a list that it shares who got what."""

    def __init__(self, number: int, order: list[tuple[int, str]]) -> None:
        super().__init__()
        self.number = number
        self.order = order

    async def send_text(self, data: str) -> None:
        self.order.append((self.number, data))


def numbers(count: int) -> list[Message]:
    return [("user:ada", n) for n in range(count)]


# The app's own coroutines


async def test_a_firehose_does_not_starve_the_app() -> None:
    count, turns = 50_000, Turns()
    connection = TurnNoting(turns)
    async with delivering(time_slice_seconds=1e-6) as delivery, turns.counting():
        await delivery.connect(connection)
        delivery.publish_past_the_loop(*numbers(count))
        await until(lambda: len(connection.texts) == count, deadline_seconds=50)
        assert connection.texts == [str(n) for n in range(count)]
    distinct = len(set(connection.at))
    assert distinct >= count / 64
    # Between two messages the app has its turn again and again: there is no long stretch without.
    assert connection.at == sorted(connection.at)
    stretches = [
        b for a, b in pairwise(range(0, count, 64)) if connection.at[a] == connection.at[b]
    ]
    assert stretches == []


async def test_the_default_slice_ends_where_sends_take_long() -> None:
    """Sixteen sends of 0.1 ms fill a millisecond; the clock is not looked at before each."""
    turns = Turns()
    connection = TurnNoting(turns, busy_seconds=1e-4)
    async with delivering() as delivery, turns.counting():
        await delivery.connect(connection)
        delivery.queue_past_the_loop(*numbers(1_000))
        await connection.received(1_000)
    assert connection.most_in_a_turn <= 16


async def test_the_default_slice_holds_across_many_lanes() -> None:
    turns = Turns()
    noting = TurnNoting(turns, busy_seconds=1e-4)

    class Shared(RecordingConnection):
        async def send_text(self, data: str) -> None:
            await noting.send_text(data)

    async with delivering() as delivery, turns.counting():
        await delivery.connect(*(Shared() for _ in range(500)))
        delivery.queue_past_the_loop(("upload:u1", 1), entries=500)
        await noting.received(500)
    assert noting.most_in_a_turn <= 16


@pytest.mark.parametrize(
    ("time_slice_seconds", "most"), [(60.0, 1_000), (1e-9, 8)], ids=["long", "short"]
)
async def test_the_slice_is_an_option(time_slice_seconds: float, most: int) -> None:
    turns = Turns()
    connection = TurnNoting(turns)
    async with delivering(time_slice_seconds=time_slice_seconds) as delivery, turns.counting():
        await delivery.connect(connection)
        delivery.queue_past_the_loop(*numbers(1_000))
        await connection.received(1_000)
    assert connection.most_in_a_turn == most


# The lanes


@pytest.mark.parametrize("time_slice_seconds", [0.001, 1e-9])
@pytest.mark.parametrize("lanes", [2, 64, 200])
async def test_lanes_are_served_in_rounds(lanes: int, time_slice_seconds: float) -> None:
    each, order = 6, list[tuple[int, str]]()
    connections = [Noting(number, order) for number in range(lanes)]
    async with delivering(time_slice_seconds=time_slice_seconds) as delivery:
        for connection in connections:
            await delivery.connect(connection, user=f"user-{connection.number}", uploads=[])
        # Lane by lane, so that rounds are not what the messages came in.
        burst = [(f"user:user-{number}", n) for number in range(lanes) for n in range(each)]
        delivery.queue_past_the_loop(*burst)
        await until(lambda: len(order) == lanes * each)
    assert order == [(number, str(n)) for n in range(each) for number in range(lanes)]


async def test_a_long_queue_does_not_hold_up_a_short_one() -> None:
    order: list[tuple[int, str]] = []
    long, short = Noting(0, order), [Noting(number, order) for number in range(1, 10)]
    async with delivering() as delivery:
        await delivery.connect(long, uploads=[])
        for connection in short:
            await delivery.connect(connection, user=f"user-{connection.number}", uploads=[])
        last = [(f"user:user-{connection.number}", "short") for connection in short]
        delivery.queue_past_the_loop(*numbers(1_000), *last)
        await until(lambda: len(order) == 1_009)
    assert [number for number, _ in order[:10]] == list(range(10))
    assert [data for number, data in order if number == 0] == [str(n) for n in range(1_000)]


async def test_publishing_has_its_turn_under_a_firehose() -> None:
    """Awaited publishes end while messages for local connections keep coming."""
    count, published = 20_000, 0
    connection = RecordingConnection()
    async with delivering() as delivery:
        await delivery.connect(connection)
        delivery.publish_past_the_loop(*numbers(count))
        while len(connection.texts) < count:
            await delivery.publisher.publish_progress("nobody-watches", published)
            published += 1
        assert published > 1
        assert connection.texts == [str(n) for n in range(count)]
