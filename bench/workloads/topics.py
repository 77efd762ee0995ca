"""Sessions with topics, as PyView has them: one instance, and a broker that publishes envelopes."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from commands import body_of
from connections import Tally
from contract import Row, Session, Topics
from load_client import Burst
from meter import Meter, settle
from receiving import DELIVERY_SECONDS, check_burst, check_deliveries

NAME = "topics"
TITLE = "topics: sessions with handlers (RedisPubSub)"
ROWS = (
    Row("topic_cpu_us", "1,000 topics, a session each: CPU per message", "µs"),
    Row("topic_per_second", "1,000 topics, a session each: messages a second", "1/s", "higher"),
    Row("session_cpu_us", "one topic, 1,000 sessions: CPU per handler call", "µs"),
    Row("last_ms", "one topic, 1,000 sessions: time until the last has it", "ms"),
    Row("burst_cpu_us", "20 messages at once: CPU per handler call", "µs"),
    Row("burst_number_cpu_us", "20 numbers at once: CPU per handler call", "µs"),
    Row("subscribe_ms", "1,000 subscribe_topic at once: time until Redis has all", "ms"),
    Row("subscribe_commands", "SUBSCRIBE for these 1,000", "commands"),
)
TOPICS = SESSIONS = 1_000
EACH = 20  # messages a handler gets in a burst: no queue comes near its limit
PREFIX = "pyview:"
ROOM = "room:all"
WARM_UP = "room:warm-up"


class Visitor:
    """A session whose handler does nothing: what is measured is the way to it."""

    __slots__ = ("_tally", "session_id")

    def __init__(self, session_id: str, tally: Tally) -> None:
        self.session_id = session_id
        self._tally = tally

    async def handle(self, topic: str, message: Any) -> None:  # noqa: ARG002 - takes it and lets it go
        tally = self._tally
        tally.left -= 1
        if not tally.left:
            tally.complete()


def envelope(topic: str, body: bytes) -> tuple[bytes, bytes]:
    """A channel and a payload, as every backend of PyView's topics writes them."""
    return f"{PREFIX}{topic}".encode(), b'{"topic": "%b", "message": %b}' % (topic.encode(), body)


def envelope_of_number(topic: str, body: bytes) -> tuple[bytes, bytes]:
    """As a shared counter sends it."""
    return envelope(topic, b"%d" % len(body))


async def run(session: Session) -> Mapping[str, float]:
    if session.contender.topics is None:
        raise RuntimeError("this contender has no topics")
    session.load.wire = envelope
    topics = session.contender.topics()
    await topics.start()
    await _until_it_listens(session, topics)
    measuring = Measuring(session, topics, Tally(0))
    figures = await measuring.subscribe_at_once()
    figures |= await measuring.a_thousand_topics()
    figures |= await measuring.one_topic()
    return figures


async def _until_it_listens(session: Session, topics: Topics) -> None:
    """Waits for a first message, which must be what was published."""
    heard: asyncio.Queue[Any] = asyncio.Queue()

    async def handle(topic: str, message: Any) -> None:
        await heard.put((topic, message))

    await topics.subscribe_topic("warm-up", WARM_UP, handle)
    await session.load.until_heard(WARM_UP)
    first = await asyncio.wait_for(heard.get(), DELIVERY_SECONDS)
    if first != (WARM_UP, json.loads(body_of(WARM_UP, 0))):
        raise RuntimeError(f"a handler was called with something else than was published: {first}")


@dataclass(frozen=True)
class Measuring:
    """A backend that listens to one topic already, and the visitors that come."""

    session: Session
    topics: Topics
    tally: Tally

    async def subscribe_at_once(self) -> dict[str, float]:
        """A thousand visitors come together, each to a topic of its own; the last ones stay."""
        visitors: list[tuple[Visitor, str]] = []
        times, commands = [], []
        for repeat in range(self.session.size(4, 2)):
            await self._leave(visitors)
            visitors = [
                (Visitor(f"visitor-{repeat}-{number}", self.tally), room)
                for number, room in enumerate(_rooms())
            ]
            settle()
            before = await self.session.load.calls("subscribe")
            started_ns = time.monotonic_ns()
            await asyncio.gather(
                *[
                    self.topics.subscribe_topic(visitor.session_id, room, visitor.handle)
                    for visitor, room in visitors
                ]
            )
            there_ns = await self.session.load.until_channels(1 + TOPICS)
            if repeat:  # the first one warmed up
                times.append((there_ns - started_ns) / 1e6)
                commands.append(await self.session.load.calls("subscribe") - before)
        return {"subscribe_ms": median(times), "subscribe_commands": median(commands)}

    async def _leave(self, visitors: list[tuple[Visitor, str]]) -> None:
        for visitor, _ in visitors:
            await self.topics.unsubscribe_all(visitor.session_id)
        await self.session.load.until_channels(1)

    async def a_thousand_topics(self) -> dict[str, float]:
        """Each message is for one session here."""
        rooms, count = _rooms(), TOPICS * EACH
        await self._burst(Meter(), rooms, count // 10, handlers=1)
        settle()
        meter, seconds = Meter(), 0.0
        bursts = self.session.size(6, 2)
        for _ in range(bursts):
            burst = await self._burst(meter, rooms, count, handlers=1)
            seconds += self._seconds(burst)
        return {
            "topic_cpu_us": meter.cpu_seconds / (bursts * count) * 1e6,
            "topic_per_second": bursts * count / seconds,
        }

    async def one_topic(self) -> dict[str, float]:
        """Each message is for a thousand sessions here."""
        for number in range(SESSIONS):
            visitor = Visitor(f"fan-{number}", self.tally)
            await self.topics.subscribe_topic(visitor.session_id, ROOM, visitor.handle)
        await self._burst(Meter(), [ROOM], 2, handlers=SESSIONS)
        settle()
        alone, times = Meter(), []
        for _ in range(self.session.size(100, 30)):
            burst = await self._burst(alone, [ROOM], 1, handlers=SESSIONS)
            times.append(self._seconds(burst) * 1e3)
        figures = {
            "session_cpu_us": alone.cpu_seconds / (len(times) * SESSIONS) * 1e6,
            "last_ms": median(times),
            "burst_cpu_us": await self._cpu_us_of_bursts(),
        }
        self.session.load.wire = envelope_of_number
        figures["burst_number_cpu_us"] = await self._cpu_us_of_bursts()
        return figures

    async def _cpu_us_of_bursts(self) -> float:
        meter, bursts = Meter(), self.session.size(6, 2)
        for _ in range(bursts):
            await self._burst(meter, [ROOM], EACH, handlers=SESSIONS)
        return meter.cpu_seconds / (bursts * EACH * SESSIONS) * 1e6

    async def _burst(self, meter: Meter, rooms: list[str], count: int, handlers: int) -> Burst:
        """Publishes so many messages and waits until the last handler has run."""
        self.tally.restart(count * handlers)
        await self.session.load.prepare(rooms, count)
        with meter:
            burst = await self.session.load.go()
            missing = await self.tally.wait(DELIVERY_SECONDS)
        check_burst(self.session, burst, published=count, watched=count)
        check_deliveries(self.session, missing, count * handlers)
        return burst

    def _seconds(self, burst: Burst) -> float:
        return (max(self.tally.last_ns, burst.started_ns) - burst.started_ns) / 1e9


def _rooms() -> list[str]:
    return [f"room:{number:06d}" for number in range(TOPICS)]
