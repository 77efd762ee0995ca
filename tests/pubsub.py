"""Topics seen by their subscribers: handlers that remember, and everything that offers topics."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import pytest

import fanwire
from tests.deadlines import until
from tests.redis_server import RedisServer
from tests.servers import AnyServer

Handler = Callable[[str, Any], Coroutine[Any, Any, None]]
PubSub = (
    fanwire.RedisPubSub
    | fanwire.PostgresPubSub
    | fanwire.MemoryPubSub
    | fanwire.UploadProgressPublisher
)

# Instances of these meet others of their kind; the others keep to themselves.
SERVED = ["redis", "publisher-redis", "postgres", "publisher-postgres"]
BROKERED = [*SERVED, "publisher-memory"]
KINDS = [*BROKERED, "memory", "memory-json"]

TURNS = 20

_numbers = itertools.count(1)


@runtime_checkable
class Provider(Protocol):
    """The protocol as PyView's documentation has it, written down a second time."""

    async def subscribe_topic(self, session_id: str, topic: str, handler: Handler) -> None: ...
    async def unsubscribe_topic(self, session_id: str, topic: str) -> None: ...
    async def unsubscribe_all(self, session_id: str) -> None: ...
    async def broadcast(self, topic: str, message: Any) -> None: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class Recorder:
    """A handler that takes every message at once, and remembers it."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.calls: list[tuple[str, Any]] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name or hex(id(self))}>"

    async def __call__(self, topic: str, message: Any) -> None:
        self.calls.append((topic, message))

    @property
    def messages(self) -> list[Any]:
        return [message for _, message in self.calls]

    async def received(self, count: int) -> list[Any]:
        """The messages, as soon as there are at least so many."""
        # Most come within a few turns of the loop: sooner than anybody looks again.
        for _ in range(TURNS):
            if len(self.calls) >= count:
                return self.messages
            await asyncio.sleep(0)
        try:
            await until(lambda: len(self.calls) >= count)
        except AssertionError as error:
            text = f"{self} has {len(self.calls)} messages, not {count}: {self.messages[-20:]}"
            raise AssertionError(text) from error
        return self.messages


class Gated(Recorder):
    """Holds every message until ``release()``."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.begun: list[Any] = []
        self.cancelled = 0
        self._released = asyncio.Event()

    def release(self) -> None:
        self._released.set()

    async def entered(self, count: int = 1) -> None:
        """Returns when so many calls have begun."""
        await until(lambda: len(self.begun) >= count, f"{count} calls of {self}")

    async def __call__(self, topic: str, message: Any) -> None:
        self.begun.append(message)
        try:
            await self._released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        await super().__call__(topic, message)


@dataclass
class Backend:
    """Makes instances of one kind that meet at one broker, under a prefix of their own."""

    kind: str
    server: AnyServer | None
    prefix: str = field(default_factory=lambda: f"pyview-{next(_numbers)}:")
    made: list[PubSub] = field(default_factory=list)

    def make(self, **options: Any) -> PubSub:
        self.made.append(self._make(**options))
        return self.made[-1]

    def _make(self, **options: Any) -> PubSub:
        if self.kind.startswith("memory"):
            return fanwire.MemoryPubSub(json=self.kind == "memory-json", **options)
        url = self.server.url if self.server is not None else "memory://"
        options.setdefault("channel_prefix", self.prefix)
        if self.kind == "redis":
            return fanwire.RedisPubSub(url, **options)
        if self.kind == "postgres":
            return fanwire.PostgresPubSub(url, **options)
        options.setdefault("manager", fanwire.ConnectionManager())
        return fanwire.UploadProgressPublisher(url, **options)

    def say(self, topic: str, message: Any) -> None:
        """Publishes as another program would that keeps to the documented wire."""
        assert self.server is not None
        of_redis = isinstance(self.server, RedisServer)
        payload = {"topic": topic, "message": message} if of_redis else message
        self.server.publish(self.prefix + topic, json.dumps(payload))

    async def started(self, **options: Any) -> PubSub:
        pubsub = self.make(**options)
        await pubsub.start()
        return pubsub


@pytest.fixture
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """Of the kind that a mark below names. Test modules take it over: it is not in conftest.py."""
    kind = request.param
    broker = kind.removeprefix("publisher-")
    served = kind in SERVED
    made = Backend(kind, request.getfixturevalue(f"{broker}_server") if served else None)
    yield made
    for pubsub in made.made:
        await pubsub.stop()


every_kind = pytest.mark.parametrize("backend", KINDS, indirect=True)
brokered_kinds = pytest.mark.parametrize("backend", BROKERED, indirect=True)
served_kinds = pytest.mark.parametrize("backend", SERVED, indirect=True)
redis_kinds = pytest.mark.parametrize("backend", ["redis", "publisher-redis"], indirect=True)
# Where a message becomes JSON on its way.
travelling_kinds = pytest.mark.parametrize("backend", [*BROKERED, "memory-json"], indirect=True)
# A publisher is not told how much may wait for a session.
bounded_kinds = pytest.mark.parametrize(
    "backend", ["redis", "postgres", "memory", "memory-json"], indirect=True
)
only_redis = pytest.mark.parametrize("backend", ["redis"], indirect=True)
# Nothing but topics, at a server.
topic_kinds = pytest.mark.parametrize("backend", ["redis", "postgres"], indirect=True)


def figures(pubsub: PubSub) -> dict[str, Any]:
    """What ``stats()`` says of topics. A publisher has figures of its manager of the same names."""
    stats = pubsub.stats()
    of_topics: dict[str, Any] = stats.pop("topics", {})
    return stats | of_topics


async def until_figures(pubsub: PubSub, **expected: Any) -> None:
    def seen() -> dict[str, Any]:
        now = figures(pubsub)
        return {name: now[name] for name in expected}

    try:
        await until(lambda: seen() == expected)
    except AssertionError as error:
        raise AssertionError(f"{seen()} does not become {expected}") from error


def are_confirmed(pubsub: PubSub) -> bool:
    """Whether the broker has confirmed every topic that is wanted."""
    if isinstance(pubsub, fanwire.MemoryPubSub):
        return True
    health = pubsub.health()
    return bool(health["wanted_topics"] == health["confirmed_topics"])


async def settled(pubsub: PubSub, *sessions: str, by: PubSub | None = None) -> None:
    """Returns when all that was broadcast before has reached the handlers of these sessions.

    Every message of a session comes after those that were published before it, whatever the topic.

    Args:
        by: who broadcast it, where that was not ``pubsub`` itself.
    """
    for session in sessions:
        topic, mark = f"mark {next(_numbers)}", Recorder("the mark")
        await pubsub.subscribe_topic(session, topic, mark)
        # Without that it may have returned because its time was over, and the mark would be lost.
        await until(lambda: are_confirmed(pubsub), "every wanted topic is confirmed")
        await (by or pubsub).broadcast(topic, "mark")
        assert await mark.received(1) == ["mark"]
        await pubsub.unsubscribe_topic(session, topic)


async def heard(pubsub: PubSub, topic: str, recorder: Recorder, *, by: PubSub) -> None:
    """Broadcasts until a message arrives: the way there is open again after an outage."""
    before = len(recorder.calls)
    while len(recorder.calls) == before:
        await by.broadcast(topic, "are you there")
        await asyncio.sleep(0.005)
