"""stats(): every figure of the delivery engine, and that none of them is short of a message."""

import asyncio
import random
from typing import Any

import pytest

from fanwire import ConnectionManager
from tests.conftest import Broker
from tests.connections import (
    FailingConnection,
    RecordingConnection,
    SlowConnection,
    StallingConnection,
)
from tests.deadlines import until
from tests.delivery import delivering, until_slow

COUNTERS = ["delivered", "coalesced", "dropped", "disconnected", "wakeups"]
COUNTERS += ["send_failed", "overflowed", "timed_out"]
GAUGES = ["lanes", "queued_messages", "queued_bytes"]
HISTOGRAMS = ["batch_size", "delivery_latency_seconds"]


def test_a_manager_that_did_nothing() -> None:
    stats = ConnectionManager().stats()
    assert {stats[name] for name in COUNTERS + GAUGES} == {0}
    for name in HISTOGRAMS:
        assert stats[name] == {"count": 0, "p50": 0.0, "p99": 0.0, "buckets": {}}


async def test_a_publisher_reports_its_manager_s_figures_too() -> None:
    async with delivering() as delivery:
        stats = delivery.publisher.stats()
        assert delivery.manager.stats().items() <= stats.items()
        assert set(stats) >= {"received", "unwatched", *COUNTERS, *GAUGES, *HISTOGRAMS}


async def test_received_and_unwatched(broker: Broker) -> None:
    connection = RecordingConnection()
    async with delivering(broker.url) as delivery:
        await delivery.connect(connection)
        delivery.publish(*(("upload:u1", n) for n in range(5)))
        delivery.publish(*(("upload:nobody", n) for n in range(7)))
        delivery.publish(*(("user:nobody", n) for n in range(2)), ("user:ada", "last"))
        await connection.received(6)
        await delivery.until_figures(received=15, unwatched=9, delivered=6)


async def test_gauges_of_what_waits() -> None:
    connections = [StallingConnection() for _ in range(3)]
    async with delivering() as delivery:
        await delivery.connect(*connections)
        await delivery.until_figures(lanes=3, queued_messages=0, queued_bytes=0)
        delivery.publish(("upload:u1", "in the way"))
        for connection in connections:
            await connection.stalled()
        delivery.publish(("upload:u1", "ü"), ("upload:u1", "xx"))
        await delivery.until_figures(queued_messages=6, queued_bytes=3 * 8, delivered=0)
        await delivery.manager.disconnect("ada", connections[0])
        await delivery.until_figures(lanes=2, queued_messages=4, queued_bytes=16, dropped=2)
        for connection in connections:
            connection.release()
        await delivery.until_figures(lanes=2, queued_messages=0, queued_bytes=0, delivered=7)


async def test_a_wakeup_for_a_burst_and_not_for_a_message() -> None:
    connection = RecordingConnection()
    async with delivering() as delivery:
        await delivery.connect(connection)
        before = delivery.figures()["wakeups"]
        delivery.queue_past_the_loop(*(("upload:u1", n) for n in range(200)))
        await connection.received(200)
        await delivery.until_figures(delivered=200)
        # At least one rings the bell; a few more if the I/O thread needed several batches.
        assert 1 <= delivery.figures()["wakeups"] - before <= 10


async def test_the_size_of_batches() -> None:
    """How many deliveries one pump makes before nothing is left to do."""
    async with delivering() as delivery:
        connections = [RecordingConnection() for _ in range(40)]
        await delivery.connect(*connections)
        burst = [("upload:u1", n) for n in range(25)]
        delivery.queue_past_the_loop(*burst, entries=1_000)
        await until(lambda: all(len(connection.texts) == 25 for connection in connections))
        await until(lambda: delivery.manager.stats()["batch_size"]["count"] == 1)
        batches = delivery.manager.stats()["batch_size"]
        assert batches == {"count": 1, "p50": 1024.0, "p99": 1024.0, "buckets": {1024.0: 1}}
        delivery.publish(("upload:u1", "one"))
        await until(lambda: delivery.manager.stats()["batch_size"]["count"] == 2)
        assert delivery.manager.stats()["batch_size"]["buckets"] == {64.0: 1, 1024.0: 1}


async def test_the_latency_of_every_send_that_began(broker: Broker) -> None:
    connections: list[Any] = [RecordingConnection(), SlowConnection(), FailingConnection()]
    async with delivering(broker.url) as delivery:
        await delivery.connect(*connections)
        delivery.publish(*(("upload:u1", n) for n in range(10)))
        await delivery.until_figures(delivered=20, send_failed=1)
        latency = delivery.manager.stats()["delivery_latency_seconds"]
        assert latency["count"] == sum(latency["buckets"].values()) == 21
        assert 0 < latency["p50"] <= latency["p99"] < 600
        assert list(latency["buckets"]) == sorted(latency["buckets"])
        assert {latency["p50"], latency["p99"]} <= set(latency["buckets"])


async def test_a_message_that_waited_has_waited_so_long() -> None:
    """Measured from the broker's bytes to the begin of the send, which another send held up."""
    connection = StallingConnection()
    async with delivering() as delivery:
        await delivery.connect(connection)
        delivery.publish(("upload:u1", "in the way"))
        await connection.stalled()
        delivery.publish(("upload:u1", "behind it"))
        await delivery.routed()
        await until_slow(connection)
        connection.release()
        await connection.received(2)
        await delivery.until_figures(delivered=2)
        buckets = delivery.manager.stats()["delivery_latency_seconds"]["buckets"]
        assert max(buckets) >= 0.25


async def test_how_connections_were_given_up_adds_up() -> None:
    # Longer than any pause of the loop between a send that waits and the messages behind it.
    options: dict[str, Any] = {"max_queued_messages": 2, "send_timeout_seconds": 4.0}
    failing, late, slow = FailingConnection(), StallingConnection(), StallingConnection()
    async with delivering(**options) as delivery:
        for user, connection in {"failing": failing, "late": late, "slow": slow}.items():
            await delivery.connect(connection, user=user, uploads=[])
        delivery.publish(*((f"user:{user}", 1) for user in ("failing", "slow")))
        await until_slow(slow)
        delivery.publish(*(("user:slow", n) for n in range(3)))
        await delivery.until_figures(send_failed=1, overflowed=1, disconnected=2, dropped=5)
        delivery.publish(("user:late", 1))
        await delivery.until_figures(timed_out=1, disconnected=3, dropped=6, lanes=0)


async def test_a_message_for_one_who_left_with_a_failing_send_is_counted() -> None:
    class FailsWhenReleased(StallingConnection):
        async def send_text(self, data: str) -> None:
            await super().send_text(data)
            raise RuntimeError("gone")

    connection = FailsWhenReleased()
    async with delivering() as delivery:
        await delivery.connect(connection)
        delivery.publish(("upload:u1", 1))
        await connection.stalled()
        await delivery.manager.disconnect("ada", connection)
        connection.release()
        await until(lambda: len(asyncio.all_tasks()) == 1, "its Task has ended")
        assert delivery.accounted() == 1, delivery.figures()


# What was put into lanes was delivered, coalesced, dropped, or waits


class Erratic(RecordingConnection):
    """Takes a message at once, or some turns later, or fails, or never comes back."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance

    async def send_text(self, data: str) -> None:
        await super().send_text(data)
        match self.chance.choices(range(4), [60, 38, 1, 1])[0]:
            case 1:
                for _ in range(self.chance.randrange(1, 5)):
                    await asyncio.sleep(0)
            case 2:
                raise RuntimeError("gone")
            case 3:
                await asyncio.Event().wait()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("overflow", ["disconnect", "drop-oldest", "coalesce"])
async def test_no_message_is_lost_to_the_books(overflow: str, seed: int) -> None:
    chance = random.Random(seed)
    told: list[int] = []
    options: dict[str, Any] = {
        "overflow": overflow,
        "max_queued_messages": 8,
        "send_timeout_seconds": 0.4,
        "on_drop": lambda _, count, reason: told.append(count),
    }
    routed = 0
    async with delivering(**options) as delivery:
        manager = delivery.manager
        connections = {f"user-{n}": Erratic(chance) for n in range(30)}
        for user, connection in connections.items():
            await delivery.connect(connection, user=user, uploads=[])
        for _ in range(40):
            for _ in range(20):
                user = chance.choice(list(connections))
                message = chance.choice(
                    [{"action": "file_progress", "upload_id": chance.randrange(2)}, "note"]
                )
                # Nothing is under way here: the map says who will get it.
                if user in manager.user_connections:
                    delivery.publish((f"user:{user}", message))
                    await delivery.routed()
                    routed += 1
                else:
                    connections[user] = Erratic(chance)
                    await delivery.connect(connections[user], user=user, uploads=[])
        # Whoever still stalls is given up; then nothing is in anybody's hands.
        await until(lambda: len(asyncio.all_tasks()) == 1, "all sends have ended")
        await until(lambda: manager.stats()["queued_messages"] == 0, "nothing waits")
        figures = delivery.figures()
        assert delivery.accounted() <= routed
        # Some may have been published to one who was given up before they were routed.
        assert delivery.accounted() == routed - figures["unwatched"], figures
        assert sum(told) == figures["dropped"]
        assert figures["disconnected"] == sum(
            figures[name] for name in ("send_failed", "overflowed", "timed_out")
        )
        assert figures["queued_bytes"] == 0
