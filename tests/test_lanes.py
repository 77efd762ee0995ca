"""Lanes: order within each, isolation between them, and a real Task for what runs in them."""

import asyncio
import random
from typing import Any

import pytest

from tests.conftest import Broker
from tests.connections import RecordingConnection, SlowConnection, StallingConnection
from tests.deadlines import DEADLINE_SECONDS, bounded, until
from tests.delivery import Delivery, delivering

NUMBERS = [f"{n}" for n in range(500)]


class FitfulConnection(SlowConnection):
    """Suspends now and then, and for now longer, now shorter."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)

    async def send_text(self, data: str) -> None:
        self.turns = self.random.choice([0, 0, 0, 1, 5])
        await super().send_text(data)


async def publish_in_step(delivery: Delivery, *followed: RecordingConnection) -> None:
    """So that nobody who takes what he gets is outrun."""
    for start in range(0, len(NUMBERS), 50):
        delivery.publish(*(("upload:u1", n) for n in range(start, start + 50)))
        for connection in followed:
            await connection.received(start + 50)


# Order and isolation


async def test_order_and_one_send_at_a_time(broker: Broker) -> None:
    connections = [FitfulConnection(seed) for seed in range(8)]
    async with delivering(broker.url) as delivery:
        await delivery.connect(*connections)
        await publish_in_step(delivery, *connections)
    for connection in connections:
        assert connection.texts == NUMBERS
        assert not connection.overlapped


async def test_a_stalled_connection_holds_up_its_own_lane_alone(broker: Broker) -> None:
    stalled = [StallingConnection() for _ in range(5)]
    healthy = [RecordingConnection() for _ in range(5)] + [SlowConnection() for _ in range(5)]
    async with delivering(broker.url) as delivery:
        for pair in zip(stalled, healthy, strict=False):
            await delivery.connect(*pair)
        await delivery.connect(*healthy[5:])
        await publish_in_step(delivery, *healthy)
        assert [connection.texts for connection in stalled] == [[]] * 5
        assert [connection.waiting for connection in stalled] == [1] * 5
        for connection in stalled:
            connection.release()
            await connection.received(len(NUMBERS))
    assert all(connection.texts == NUMBERS for connection in stalled + healthy)


async def test_uploads_of_one_connection_share_its_lane() -> None:
    """Order holds across the channels of a connection, not only within each."""
    connection = FitfulConnection(1)
    messages = [(("upload:u1", "upload:u2", "user:ada")[n % 3], n) for n in range(300)]
    async with delivering() as delivery:
        await delivery.connect(connection, uploads=["u1", "u2"])
        delivery.publish(*messages)
        assert await connection.received(300) == [str(n) for n in range(300)]


async def test_a_connection_of_two_users_has_one_lane() -> None:
    connection = SlowConnection()
    async with delivering() as delivery:
        await delivery.connect(connection, user="ada")
        await delivery.connect(connection, user="bob", uploads=())
        delivery.publish(*((f"user:{('ada', 'bob')[n % 2]}", n) for n in range(100)))
        assert await connection.received(100) == [str(n) for n in range(100)]
        assert not connection.overlapped
        assert delivery.figures()["lanes"] == 1


async def test_a_message_becomes_one_str_for_all_that_are_ready() -> None:
    connections = [RecordingConnection() for _ in range(300)]
    async with delivering() as delivery:
        await delivery.connect(*connections)
        delivery.queue_past_the_loop(("upload:u1", "x" * 1_000), entries=300)
        await connections[-1].received(1)
        assert len({id(text) for connection in connections for text in connection.texts}) == 1


async def test_ten_thousand_lanes() -> None:
    count = 10_000
    connections = [
        SlowConnection(turns=1) if n % 100 == 0 else RecordingConnection() for n in range(count)
    ]
    async with delivering() as delivery:
        for n, connection in enumerate(connections):
            await delivery.manager.connect(f"user-{n}", connection)
            await delivery.manager.subscribe_upload(f"user-{n}", "u1")
        for n in range(5):
            delivery.publish(("upload:u1", n))
        await delivery.until_figures(lanes=count, delivered=5 * count, queued_messages=0, dropped=0)
        assert all(connection.texts == ["0", "1", "2", "3", "4"] for connection in connections)
        await bounded(delivery.manager.disconnect_all())
        assert delivery.manager.stats()["lanes"] == 0


async def test_ten_thousand_lanes_that_stall() -> None:
    """As many Tasks, but no more; and all goes on when they do."""
    count = 10_000
    gate = asyncio.Event()

    class Gated(RecordingConnection):
        async def send_text(self, data: str) -> None:
            await gate.wait()
            await super().send_text(data)

    connections = [Gated() for _ in range(count)]
    async with delivering() as delivery:
        await delivery.connect(*connections)
        delivery.publish(*(("upload:u1", n) for n in range(3)))
        await delivery.routed()
        await delivery.until_figures(queued_messages=2 * count)
        assert len(asyncio.all_tasks()) <= count + 2
        gate.set()
        await delivery.until_figures(delivered=3 * count, queued_messages=0, dropped=0)
        assert all(connection.texts == ["0", "1", "2"] for connection in connections)
        await until(lambda: len(asyncio.all_tasks()) == 1, "no pump is left over")


# Tasks


async def test_a_burst_is_drained_in_one_task() -> None:
    tasks: set[Any] = set()

    class Noting(RecordingConnection):
        async def send_text(self, data: str) -> None:
            tasks.add(asyncio.current_task())
            await super().send_text(data)

    connections = [Noting() for _ in range(100)]
    async with delivering() as delivery:
        await delivery.connect(*connections)
        burst = [("upload:u1", n) for n in range(50)]
        delivery.queue_past_the_loop(*burst, entries=5_000)
        for connection in connections:
            await connection.received(50)
        assert len(tasks) == 1


async def test_a_task_is_left_with_every_send_that_waits_and_no_other() -> None:
    stalled = [StallingConnection() for _ in range(7)]
    healthy = [RecordingConnection() for _ in range(50)]
    async with delivering() as delivery:
        await delivery.connect(*stalled, *healthy)
        for n in range(20):
            delivery.publish(("upload:u1", n))
            await healthy[-1].received(n + 1)
        await delivery.routed()
        await until(lambda: len(asyncio.all_tasks()) == 1 + 7, "seven Tasks wait")
        for connection in stalled:
            connection.release()
        await until(lambda: len(asyncio.all_tasks()) == 1, "no Task is left")


async def test_a_suspended_send_goes_on_in_its_own_task() -> None:
    before: list[Any] = []
    after: list[Any] = []

    class Noting(SlowConnection):
        async def send_text(self, data: str) -> None:
            before.append(asyncio.current_task())
            await super().send_text(data)
            after.append(asyncio.current_task())

    connection = Noting()
    async with delivering() as delivery:
        await delivery.connect(connection)
        delivery.publish(*(("upload:u1", n) for n in range(50)))
        await connection.received(50)
    assert None not in before
    assert before == after


async def test_a_handler_that_blocks_the_loop() -> None:
    """It delays everybody, and that is all."""
    loop = asyncio.get_running_loop()

    class Blocking(RecordingConnection):
        async def send_text(self, data: str) -> None:
            if data in ("7", "77"):
                delivery.publish_past_the_loop(*(("upload:u1", n) for n in range(200, 400)))
                await_blocking(loop)
            await super().send_text(data)

    blocking = Blocking()
    others = [RecordingConnection(), SlowConnection(turns=1), RecordingConnection()]
    async with delivering() as delivery:
        await delivery.connect(others[0], blocking, *others[1:])
        delivery.publish(*(("upload:u1", n) for n in range(100)))
        for connection in (blocking, *others):
            assert (await connection.received(500))[:100] == NUMBERS[:100]
            assert connection.texts[100:] == NUMBERS[200:400] * 2
        await delivery.until_figures(dropped=0, disconnected=0, queued_messages=0, lanes=4)


def await_blocking(loop: asyncio.AbstractEventLoop) -> None:
    """The fault itself: nothing else runs on the loop for a while."""
    end = loop.time() + 0.1
    while loop.time() < end:
        pass


# User code sees a real Task


@pytest.mark.parametrize("messages", [1, 20])
async def test_every_lane_is_told_again_after_an_error_in_one(messages: int) -> None:
    class FailsAtTheThird(FitfulConnection):
        async def send_text(self, data: str) -> None:
            await super().send_text(data)
            if len(self.texts) == 3:
                raise RuntimeError("gone")

    failing = [FailsAtTheThird(seed) for seed in range(10)]
    healthy = [FitfulConnection(seed) for seed in range(10)]
    async with delivering() as delivery:
        for pair in zip(failing, healthy, strict=True):
            await delivery.connect(*pair)
        delivery.publish(*(("upload:u1", n) for n in range(messages)))
        for connection in healthy:
            assert await connection.received(messages) == NUMBERS[:messages]
        gone = 10 if messages >= 3 else 0
        await delivery.until_figures(send_failed=gone, lanes=20 - gone, queued_messages=0)
        assert all(len(connection.texts) == min(messages, 3) for connection in failing)
        await asyncio.wait_for(delivery.routed(), DEADLINE_SECONDS)
