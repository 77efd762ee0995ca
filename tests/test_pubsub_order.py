"""A session's handlers run one at a time and in order; sessions run side by side."""

import asyncio
import itertools
import random
from collections import defaultdict
from typing import Any, Literal

import pytest

from tests import pubsub
from tests.pubsub import (
    Backend,
    Gated,
    Recorder,
    brokered_kinds,
    every_kind,
    figures,
    settled,
    until_figures,
)

backend = pubsub.backend
both_orderings = pytest.mark.parametrize("ordering", ["session", "concurrent"])
Ordering = Literal["session", "concurrent"]


class Interleaving(Recorder):
    """Gives way a few times in every call, and notices when it is called meanwhile.

    What was heard of several topics is in one list, and several handlers may share ``inside``.
    """

    def __init__(self, name: str = "", *, chance: random.Random | None = None) -> None:
        super().__init__(name)
        self.chance = chance or random.Random(name)
        self.inside = 0
        self.overlapped = 0
        self.tasks: set[asyncio.Task[Any] | None] = set()

    async def __call__(self, topic: str, message: Any) -> None:
        self.inside += 1
        self.overlapped = max(self.overlapped, self.inside)
        self.tasks.add(asyncio.current_task())
        self.calls.append((topic, message))
        for _ in range(self.chance.randrange(4)):
            await asyncio.sleep(0)
        self.inside -= 1


@every_kind
async def test_one_at_a_time_and_in_order_over_all_topics(backend: Backend) -> None:
    instance = await backend.started()
    sessions = [Interleaving(f"s{n}") for n in range(10)]
    topics = [f"t{n}" for n in range(5)]
    for session, topic in itertools.product(sessions, topics):
        await instance.subscribe_topic(session.name, topic, session)
    chance = random.Random(7)
    said = [(chance.choice(topics), n) for n in range(500)]
    for topic, n in said:
        await instance.broadcast(topic, n)
    for session in sessions:
        await session.received(500)
        assert session.calls == said
    assert {session.overlapped for session in sessions} == {1}


@every_kind
async def test_what_is_broadcast_at_once_keeps_its_order(backend: Backend) -> None:
    """The calls of one instance leave in the order in which they were begun."""
    instance = await backend.started()
    sessions = [Interleaving(f"s{n}") for n in range(5)]
    for session in sessions:
        await instance.subscribe_topic(session.name, "t", session)
    await asyncio.gather(*(instance.broadcast("t", n) for n in range(1_000)))
    for session in sessions:
        assert await session.received(1_000) == list(range(1_000))
        assert session.overlapped == 1


@brokered_kinds
async def test_every_session_hears_several_instances_in_the_same_order(backend: Backend) -> None:
    instances = [await backend.started() for _ in range(4)]
    sessions = [Interleaving(f"s{n}") for n in range(4)]
    for instance, session in zip(instances, sessions, strict=True):
        await instance.subscribe_topic(session.name, "t", session)

    async def speak(speaker: int) -> None:
        for n in range(100):
            await instances[speaker].broadcast("t", [speaker, n])

    await asyncio.gather(*map(speak, range(4)))
    for session in sessions:
        await session.received(400)
        assert session.messages == sessions[0].messages
        for speaker in range(4):
            mine = [n for who, n in session.messages if who == speaker]
            assert mine == list(range(100))


@every_kind
async def test_increments_from_many_sessions_leave_every_page_at_the_same_number(
    backend: Backend,
) -> None:
    """A counter as PyView has it: read, give way, write. Interleaved it would lose some."""
    instance = await backend.started()
    pages = [f"page {n}" for n in range(10)]
    counts: defaultdict[str, int] = defaultdict(int)

    def handler_of(page: str) -> pubsub.Handler:
        async def handle_info(topic: str, message: Any) -> None:
            seen = counts[page]
            await asyncio.sleep(0)
            counts[page] = seen + message

        return handle_info

    for page in pages:
        await instance.subscribe_topic(page, "counter", handler_of(page))
    await asyncio.gather(*(instance.broadcast("counter", 1) for _ in range(1_000)))
    await until_figures(instance, delivered=10_000, queued_messages=0)
    await settled(instance, *pages)
    assert counts == dict.fromkeys(pages, 1_000)


@every_kind
@both_orderings
async def test_sessions_run_side_by_side(backend: Backend, ordering: Ordering) -> None:
    """Each handler waits until all of them are in it."""
    instance = await backend.started(ordering=ordering)
    everybody = asyncio.Barrier(20)
    passed = Recorder()

    async def meet(topic: str, message: Any) -> None:
        await everybody.wait()
        await passed(topic, message)

    for n in range(20):
        await instance.subscribe_topic(f"s{n}", "t", meet)
    for n in range(3):
        await instance.broadcast("t", n)
    assert sorted(await passed.received(60)) == [0] * 20 + [1] * 20 + [2] * 20


@every_kind
async def test_a_session_that_waits_holds_up_itself_alone(backend: Backend) -> None:
    instance, slow, quick = await backend.started(), Gated("slow"), Recorder("quick")
    other_topic = Recorder("another topic of the slow session")
    await instance.subscribe_topic("slow", "t", slow)
    await instance.subscribe_topic("slow", "other", other_topic)
    await instance.subscribe_topic("quick", "t", quick)
    await instance.broadcast("t", 1)
    await instance.broadcast("other", 2)
    await instance.broadcast("t", 3)
    await settled(instance, "quick")
    assert quick.messages == [1, 3]
    assert (slow.begun, slow.messages, other_topic.messages) == ([1], [], [])
    await until_figures(instance, queued_messages=2)
    slow.release()
    await slow.received(2)
    assert other_topic.messages == [2]
    await until_figures(instance, queued_messages=0, delivered=6)


@every_kind
async def test_the_same_topic_again_waits_for_the_call_before(backend: Backend) -> None:
    instance, gated = await backend.started(), Gated()
    await instance.subscribe_topic("s", "t", gated)
    for n in range(10):
        await instance.broadcast("t", n)
    await gated.entered()
    await until_figures(instance, queued_messages=9)
    assert gated.begun == [0]
    gated.release()
    assert await gated.received(10) == list(range(10))


# A Task per message


@every_kind
async def test_concurrent_calls_do_not_wait_for_one_another(backend: Backend) -> None:
    instance = await backend.started(ordering="concurrent")
    held, quick = Gated(), Recorder()
    await instance.subscribe_topic("s", "held", held)
    await instance.subscribe_topic("s", "quick", quick)
    for n in range(10):
        await instance.broadcast("held", n)
        await instance.broadcast("quick", n)
    await held.entered(10)
    assert held.begun == list(range(10))
    assert await quick.received(10) == list(range(10))
    assert held.messages == []
    held.release()
    assert await held.received(10) == list(range(10))
    await until_figures(instance, delivered=20, queued_messages=0)


@every_kind
async def test_concurrent_calls_begin_in_order_each_in_a_task_of_its_own(backend: Backend) -> None:
    instance = await backend.started(ordering="concurrent")
    session = Interleaving("s", chance=random.Random(1))
    await instance.subscribe_topic("s", "t", session)
    for n in range(200):
        await instance.broadcast("t", n)
    assert await session.received(200) == list(range(200))
    assert len(session.tasks) == 200
    assert None not in session.tasks


@every_kind
async def test_concurrent_calls_of_a_burst_overlap(backend: Backend) -> None:
    """That is what PyView has at present, and what ``ordering="session"`` is there against."""
    instance, all_of_them = await backend.started(ordering="concurrent"), asyncio.Barrier(50)
    passed = Recorder()

    async def meet(topic: str, message: Any) -> None:
        await all_of_them.wait()
        await passed(topic, message)

    await instance.subscribe_topic("s", "t", meet)
    for n in range(50):
        await instance.broadcast("t", n)
    assert sorted(await passed.received(50)) == list(range(50))


# Keeping up


@every_kind
@both_orderings
async def test_a_burst_is_lost_on_nobody_who_keeps_up(backend: Backend, ordering: Ordering) -> None:
    """More than may wait for one session, but its handler takes all that it is given."""
    instance = await backend.started(ordering=ordering)
    recorders = [Recorder(f"s{n}") for n in range(3)]
    for recorder in recorders:
        await instance.subscribe_topic(recorder.name, "t", recorder)
    for start in range(0, 5_000, 500):
        await asyncio.gather(*(instance.broadcast("t", n) for n in range(start, start + 500)))
    for recorder in recorders:
        assert await recorder.received(5_000) == list(range(5_000))
    assert figures(instance)["dropped"] == 0
