"""What waits for a session that does not come back has a limit, and hurts nobody else."""

import asyncio
from typing import Any

import pytest

from tests import pubsub
from tests.deadlines import until
from tests.delivery import until_seen_to_wait
from tests.pubsub import (
    Backend,
    Gated,
    PubSub,
    Recorder,
    bounded_kinds,
    every_kind,
    figures,
    settled,
    travelling_kinds,
    until_figures,
)

backend = pubsub.backend

LIMIT = 10
BEGIN = "in hand"


class Drops:
    """What ``on_drop`` was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, str]] = []
        self.loops: set[asyncio.AbstractEventLoop] = set()

    def __call__(self, session_id: str, count: int, reason: str) -> None:
        self.calls.append((session_id, count, reason))
        self.loops.add(asyncio.get_running_loop())

    def count(self, session_id: str | None = None) -> int:
        return sum(count for told, count, _ in self.calls if session_id in (None, told))


async def stuck_and_healthy(
    instance: PubSub, *topics: str, stuck: int = 1
) -> tuple[list[Gated], Recorder]:
    """Sessions of whom some have not returned for so long that their limits count."""
    gates, healthy = [Gated(f"stuck {n}") for n in range(stuck)], Recorder("healthy")
    for handler in (*gates, healthy):
        for topic in topics or ("t",):
            await instance.subscribe_topic(handler.name, topic, handler)
    await say(instance, (topics or ("t",))[0], [BEGIN], healthy)
    for gated in gates:
        await gated.entered()
    await until_seen_to_wait()
    healthy.calls.clear()
    return gates, healthy


async def say(instance: PubSub, topic: str, messages: Any, healthy: Recorder) -> None:
    """In steps that a session takes which keeps up, so that it never nears its limit."""
    for message in messages:
        before = len(healthy.calls)
        await instance.broadcast(topic, message)
        await healthy.received(before + 1)


@bounded_kinds
async def test_a_handler_that_never_returns_fills_its_own_lane(backend: Backend) -> None:
    drops = Drops()
    instance = await backend.started(max_queued_messages=LIMIT, on_drop=drops)
    (stuck,), healthy = await stuck_and_healthy(instance)
    await say(instance, "t", range(100), healthy)
    await until_figures(instance, dropped=100 - LIMIT, queued_messages=LIMIT)
    assert healthy.messages == list(range(100))
    await until(lambda: drops.count() == 100 - LIMIT, "on_drop was told of each")
    assert {(session, reason) for session, _, reason in drops.calls} == {(stuck.name, "overflow")}
    assert drops.loops == {asyncio.get_running_loop()}
    stuck.release()
    # The oldest were dropped: the one in hand and the youngest are left.
    assert await stuck.received(1 + LIMIT) == [BEGIN, *range(100 - LIMIT, 100)]
    await until_figures(instance, queued_messages=0, queued_bytes=0, delivered=112)
    assert drops.count() == figures(instance)["dropped"]


@bounded_kinds
async def test_a_session_that_came_back_is_well_again(backend: Backend) -> None:
    instance = await backend.started(max_queued_messages=LIMIT)
    (stuck,), healthy = await stuck_and_healthy(instance)
    await say(instance, "t", range(30), healthy)
    stuck.release()
    await stuck.received(1 + LIMIT)
    await say(instance, "t", range(30, 60), healthy)
    await settled(instance, stuck.name)
    assert stuck.messages == [BEGIN, *range(30 - LIMIT, 60)]
    assert figures(instance)["dropped"] == 30 - LIMIT


@bounded_kinds
async def test_the_limit_is_that_of_the_session_over_all_its_topics(backend: Backend) -> None:
    instance = await backend.started(max_queued_messages=LIMIT)
    (stuck,), healthy = await stuck_and_healthy(instance, "t0", "t1", "t2")
    for n in range(60):
        await say(instance, f"t{n % 3}", [n], healthy)
    await until_figures(instance, dropped=60 - LIMIT, queued_messages=LIMIT)
    stuck.release()
    assert await stuck.received(1 + LIMIT) == [BEGIN, *range(60 - LIMIT, 60)]


@bounded_kinds
async def test_sessions_that_are_stuck_are_counted_each(backend: Backend) -> None:
    drops = Drops()
    instance = await backend.started(max_queued_messages=LIMIT, on_drop=drops)
    stuck, healthy = await stuck_and_healthy(instance, stuck=3)
    await say(instance, "t", range(50), healthy)
    await until_figures(instance, dropped=3 * (50 - LIMIT), queued_messages=3 * LIMIT)
    await until(lambda: drops.count() == 3 * (50 - LIMIT))
    for gated in stuck:
        assert drops.count(gated.name) == 50 - LIMIT
        gated.release()
        await gated.received(1 + LIMIT)


@pytest.mark.parametrize("backend", ["redis", "memory-json"], indirect=True)
async def test_the_limit_in_bytes(backend: Backend) -> None:
    """Objects that are handed over as they are have no size; messages that travel have one."""
    instance = await backend.started(max_queued_bytes=10_000)
    (stuck,), healthy = await stuck_and_healthy(instance)
    await say(instance, "t", (f"{n:0>1000}" for n in range(50)), healthy)
    waiting = figures(instance)["queued_messages"]
    assert 5 <= waiting <= 10
    assert 5_000 <= figures(instance)["queued_bytes"] <= 10_000
    await until_figures(instance, dropped=50 - waiting)
    stuck.release()
    await stuck.received(1 + waiting)
    assert [int(n) for n in stuck.messages[1:]] == list(range(50 - waiting, 50))
    await until_figures(instance, queued_bytes=0)


@every_kind
async def test_the_default_limit(backend: Backend) -> None:
    instance = await backend.started()
    (stuck,), healthy = await stuck_and_healthy(instance)
    for start in range(0, 1_500, 100):
        await asyncio.gather(*(instance.broadcast("t", n) for n in range(start, start + 100)))
        await healthy.received(start + 100)
    await until_figures(instance, queued_messages=1_024)
    assert healthy.messages == list(range(1_500))
    stuck.release()
    assert await stuck.received(1_025) == [BEGIN, *range(1_500 - 1_024, 1_500)]


@pytest.mark.parametrize("backend", ["redis", "memory-json"], indirect=True)
async def test_large_messages_count_by_default_too(backend: Backend) -> None:
    instance = await backend.started()
    (stuck,), healthy = await stuck_and_healthy(instance)
    text = "x" * 500_000
    await say(instance, "t", ([n, text] for n in range(30)), healthy)
    assert figures(instance)["queued_bytes"] <= 4 * 2**20
    assert 7 <= figures(instance)["queued_messages"] <= 8
    assert [n for n, _ in healthy.messages] == list(range(30))
    await instance.unsubscribe_all(stuck.name)
    await until_figures(instance, queued_messages=0, queued_bytes=0)
    stuck.release()
    assert await stuck.received(1) == [BEGIN]


@bounded_kinds
async def test_on_drop_that_raises_disturbs_nobody(backend: Backend) -> None:
    """It goes where asyncio has such things go, as what a manager's callbacks raise does."""
    calls: list[int] = []
    contexts: list[dict[str, Any]] = []
    error = RuntimeError("in on_drop")
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))

    def raising(session_id: str, count: int, reason: str) -> None:
        calls.append(count)
        raise error

    instance = await backend.started(max_queued_messages=LIMIT, on_drop=raising)
    (stuck,), healthy = await stuck_and_healthy(instance)
    await say(instance, "t", range(30), healthy)
    await until(lambda: sum(calls) == 30 - LIMIT)
    assert healthy.messages == list(range(30))
    stuck.release()
    assert await stuck.received(1 + LIMIT) == [BEGIN, *range(30 - LIMIT, 30)]
    assert [context["exception"] for context in contexts] == [error] * len(calls)


@bounded_kinds
async def test_on_drop_may_throw_the_session_out(backend: Backend) -> None:
    """What an application does with a session that is stuck; it hears no more of it."""
    leaving: list[asyncio.Task[None]] = []

    def throw_out(session_id: str, count: int, reason: str) -> None:
        leaving.append(asyncio.ensure_future(instance.unsubscribe_all(session_id)))

    instance = await backend.started(max_queued_messages=LIMIT, on_drop=throw_out)
    (stuck,), healthy = await stuck_and_healthy(instance)
    await say(instance, "t", range(100), healthy)
    await until(lambda: leaving and all(task.done() for task in leaving))
    await until_figures(instance, sessions=1, queued_messages=0)
    stuck.release()
    assert await stuck.received(1) == [BEGIN]
    await settled(instance, stuck.name, "healthy")
    assert stuck.begun == [BEGIN]
    assert healthy.messages == list(range(100))


@bounded_kinds
async def test_a_limit_of_one(backend: Backend) -> None:
    instance = await backend.started(max_queued_messages=1)
    (stuck,), healthy = await stuck_and_healthy(instance)
    await say(instance, "t", range(5), healthy)
    await until_figures(instance, dropped=4)
    stuck.release()
    assert await stuck.received(2) == [BEGIN, 4]


@bounded_kinds
async def test_concurrent_calls_are_not_held_back(backend: Backend) -> None:
    """There is nothing to wait for, and so nothing is dropped."""
    instance = await backend.started(ordering="concurrent", max_queued_messages=LIMIT)
    (gated,), healthy = await stuck_and_healthy(instance)
    await say(instance, "t", range(5 * LIMIT), healthy)
    await gated.entered(1 + 5 * LIMIT)
    gated.release()
    assert await gated.received(1 + 5 * LIMIT) == [BEGIN, *range(5 * LIMIT)]
    assert figures(instance)["dropped"] == 0


@travelling_kinds
async def test_a_message_that_is_too_large_is_refused(backend: Backend) -> None:
    instance, recorder = await backend.started(max_message_bytes=1_000), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    with pytest.raises(ValueError, match="max_message_bytes"):
        await instance.broadcast("t", "x" * 1_000)
    await instance.broadcast("t", "x" * 900)
    await settled(instance, "s")
    assert recorder.messages == ["x" * 900]
