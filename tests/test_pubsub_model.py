"""Backends against a model of them in plain dicts, on random histories and interleavings."""

import asyncio
import itertools
import random
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import fanwire
from tests import pubsub
from tests.pubsub import (
    Backend,
    PubSub,
    Recorder,
    every_kind,
    figures,
    settled,
    until_figures,
)

backend = pubsub.backend

SESSIONS = ["", "ada", "bob", "üser:*[1]\r\n"]
TOPICS = ["", "t1", "t2", "üpload:*\x00"]
EXCEPTIONS = [None, *SESSIONS, "a stranger"]

sessions, topics = st.sampled_from(SESSIONS), st.sampled_from(TOPICS)
_prefixes = itertools.count(1)


class PubSubMachine(RuleBasedStateMachine):
    """Every message is checked as soon as it is broadcast: who got it, and with which topic."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.instance = self.make()
        self.run(self.instance.start())
        # What is to be: the handler of each pair. And what each handler is to have heard.
        self.model: dict[tuple[str, str], Recorder] = {}
        self.expected: dict[Recorder, list[tuple[str, int]]] = {}
        self.said = 0

    def make(self) -> PubSub:
        raise NotImplementedError

    def teardown(self) -> None:
        self.run(self.instance.stop())
        self.loop.close()

    def run(self, awaitable: Coroutine[Any, Any, Any]) -> None:
        self.loop.run_until_complete(awaitable)

    @rule(session=sessions, topic=topics)
    def subscribe(self, session: str, topic: str) -> None:
        recorder = Recorder(f"{session!r} {topic!r}")
        self.run(self.instance.subscribe_topic(session, topic, recorder))
        self.model[session, topic] = recorder
        self.expected[recorder] = []

    @rule(session=sessions, topic=topics)
    def unsubscribe(self, session: str, topic: str) -> None:
        self.run(self.instance.unsubscribe_topic(session, topic))
        self.model.pop((session, topic), None)

    @rule(session=sessions)
    def unsubscribe_all(self, session: str) -> None:
        self.run(self.instance.unsubscribe_all(session))
        self.model = {pair: kept for pair, kept in self.model.items() if pair[0] != session}

    @rule(topic=topics, excepted=st.sampled_from(EXCEPTIONS), count=st.integers(1, 5))
    def broadcast(self, topic: str, excepted: str | None, count: int) -> None:
        async def speak() -> None:
            for _ in range(count):
                self.said += 1
                message = self.said
                for (session, listens_to), recorder in self.model.items():
                    if listens_to == topic and session != excepted:
                        self.expected[recorder].append((topic, message))
                await self.instance.broadcast(topic, message, except_session_id=excepted)
            for recorder in self.model.values():
                await recorder.received(len(self.expected[recorder]))

        self.run(speak())

    @rule()
    def let_everything_settle(self) -> None:
        self.run(settled(self.instance, *SESSIONS))

    @invariant()
    def everybody_heard_what_was_for_them(self) -> None:
        for recorder, expected in self.expected.items():
            assert recorder.calls == expected

    @invariant()
    def the_figures_equal_the_model(self) -> None:
        seen = figures(self.instance)
        assert seen["subscriptions"] == len(self.model)
        assert seen["subscribed_topics"] == len({topic for _, topic in self.model})
        assert seen["sessions"] == len({session for session, _ in self.model})


class MemoryMachine(PubSubMachine):
    def make(self) -> PubSub:
        return fanwire.MemoryPubSub()


class BrokerMachine(PubSubMachine):
    """Through everything but the socket: the embedded broker has the wire of the real one."""

    def make(self) -> PubSub:
        return fanwire.RedisPubSub("memory://", f"model {next(_prefixes)}:")


MemoryMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=25)
BrokerMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=25)
TestMemoryModel = MemoryMachine.TestCase
TestBrokerModel = BrokerMachine.TestCase


# After unsubscribe returned, the old handler is not called


@dataclass(eq=False)
class Generation(Recorder):
    """One handler of a pair that is subscribed again and again; it knows when it may be called."""

    name: str
    chance: random.Random
    calls: list[tuple[str, Any]] = field(default_factory=list)
    allowed: bool = True
    called_too_late: int = 0

    async def __call__(self, topic: str, message: Any) -> None:
        self.called_too_late += not self.allowed
        self.calls.append((topic, message))
        for _ in range(self.chance.randrange(3)):
            await asyncio.sleep(0)


async def come_and_go(
    instance: PubSub, session: str, chance: random.Random, handlers: list[Generation]
) -> None:
    """Subscribes, replaces and leaves at random; whoever has been left must be quiet from then."""
    current: dict[str, Generation] = {}
    for step in range(chance.randrange(5, 15)):
        topic = chance.choice(["t1", "t2"])
        action = chance.random()
        if action < 0.5:
            handler = Generation(f"{session} {topic} {step}", chance)
            handlers.append(handler)
            replaced = current.pop(topic, None)
            current[topic] = handler
            await instance.subscribe_topic(session, topic, handler)
            if replaced is not None:
                replaced.allowed = False
        elif action < 0.8:
            await instance.unsubscribe_topic(session, topic)
            if (left := current.pop(topic, None)) is not None:
                left.allowed = False
        else:
            await instance.unsubscribe_all(session)
            for left in current.values():
                left.allowed = False
            current.clear()
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)


async def speak(instance: PubSub, chance: random.Random, messages: range) -> None:
    for message in messages:
        await instance.broadcast(chance.choice(["t1", "t2"]), message)
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)


async def check_interleaving(instance: PubSub, seed: int) -> None:
    handlers: list[Generation] = []
    names = [f"s{n}" for n in range(4)]
    await asyncio.gather(
        *(come_and_go(instance, name, random.Random(f"{seed} {name}"), handlers) for name in names),
        speak(instance, random.Random(f"{seed} speaker"), range(40)),
        speak(instance, random.Random(f"{seed} another"), range(100, 140)),
    )
    await settled(instance, *names)
    for handler in handlers:
        assert handler.called_too_late == 0, (seed, handler.name)
        # Each speaker's messages come in order, and none comes twice.
        for low, high in ((0, 40), (100, 140)):
            heard = [n for n in handler.messages if low <= n < high]
            assert heard == sorted(set(heard)), (seed, handler.name)
    for name in names:
        await instance.unsubscribe_all(name)
    await until_figures(instance, sessions=0, subscriptions=0, queued_messages=0)


@every_kind
async def test_the_old_handler_is_not_called_after_leaving(backend: Backend) -> None:
    instance = await backend.started()
    for seed in range(30):
        await check_interleaving(instance, seed)


@every_kind
async def test_nor_with_a_task_per_message(backend: Backend) -> None:
    instance = await backend.started(ordering="concurrent")
    for seed in range(30):
        await check_interleaving(instance, seed)


@given(seed=st.integers())
@settings(max_examples=60)
def test_the_old_handler_is_not_called_on_any_history(seed: int) -> None:
    async def main() -> None:
        await check_interleaving(fanwire.MemoryPubSub(), seed)

    asyncio.run(main())
