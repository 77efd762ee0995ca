"""Deliveries to connections behind a publisher, with barriers to know where every message is."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import fanwire
from tests.connections import RecordingConnection, StallingConnection
from tests.deadlines import until, until_blocking

# A channel and what is published on it. The channel is "upload:…" or "user:…".
Message = tuple[str, Any]

BARRIER = "the barrier"

# How long a send, or a handler, has to wait until it counts as slow. Before that, or if the event
# loop is not seen to run, that may be to blame, and the listener reads more slowly.
SLOW_AFTER_SECONDS = 0.25
# The loop is looked at every tenth of a second, and a look that comes more than that late does not
# count. So there is one that counts within three such times, all of them without so long a pause.
LOOK_EVERY_SECONDS = 0.1


class GatedConnection(RecordingConnection):
    """Every send waits for a permit of its own."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.waiting: str | None = None
        self._permits = asyncio.Semaphore(0)

    def permit(self, sends: int) -> None:
        for _ in range(sends):
            self._permits.release()

    async def send_text(self, data: str) -> None:
        self.waiting = data
        await self._permits.acquire()
        self.waiting = None
        self.texts.append(data)


async def until_slow(*connections: StallingConnection) -> None:
    """Returns when the connections' sends have waited long enough for the limits to count."""
    for connection in connections:
        await connection.stalled()
    await until_seen_to_wait()


async def until_seen_to_wait() -> None:
    """Returns when whatever waits now counts as slow, because its event loop was seen to run."""
    since = time.monotonic()
    await until(lambda: time.monotonic() - since > SLOW_AFTER_SECONDS)
    begin = last = time.monotonic()

    def has_run() -> bool:
        nonlocal begin, last
        now = time.monotonic()
        if now - last > LOOK_EVERY_SECONDS:
            begin = now
        last = now
        return now - begin > 3.5 * LOOK_EVERY_SECONDS

    await until(has_run, "the event loop runs without a pause")


@dataclass
class Delivery:
    """A manager and a publisher that listens for it. All users watch ``u1`` unless told."""

    manager: fanwire.ConnectionManager
    publisher: fanwire.UploadProgressPublisher
    barrier: RecordingConnection = field(default_factory=lambda: RecordingConnection(BARRIER))

    async def connect(
        self, *connections: Any, user: str = "ada", uploads: Iterable[str] = ("u1",)
    ) -> None:
        for connection in connections:
            await self.manager.connect(user, connection)
        for upload in uploads:
            await self.manager.subscribe_upload(user, upload)

    def publish(self, *messages: Message) -> None:
        for channel, message in messages:
            kind, _, name = channel.partition(":")
            by_kind: dict[str, Callable[[str, Any], bool]] = {
                "upload": self.publisher.publish_nowait,
                "user": self.publisher.publish_to_user_nowait,
            }
            assert by_kind[kind](name, message), "too much waits to be published"

    def publish_past_the_loop(self, *messages: Message) -> None:
        """From a thread, while the event loop stands still: the I/O thread works on."""
        thread = threading.Thread(target=self.publish, args=messages)
        thread.start()
        thread.join()

    def queue_past_the_loop(self, *messages: Message, entries: int | None = None) -> None:
        """Returns when so many entries wait in lanes. No pump may be at work."""
        expected = self.figures()["queued_messages"] + (
            len(messages) if entries is None else entries
        )
        self.publish_past_the_loop(*messages)
        until_blocking(
            lambda: self.manager.stats()["queued_messages"] == expected,
            f"{expected} messages are queued",
        )

    async def routed(self) -> None:
        """Returns when all that was published before has been put into its lanes."""
        already = len(self.barrier.texts)
        self.publish((f"user:{BARRIER}", already))
        await self.barrier.received(already + 1)

    def figures(self) -> dict[str, int]:
        """The counters and gauges, less what the barrier is to blame for."""
        stats = self.publisher.stats()
        passed = len(self.barrier.texts)
        figures = {name: value for name, value in stats.items() if isinstance(value, int)}
        for name in ("received", "delivered"):
            figures[name] -= passed
        figures["lanes"] -= 1
        return figures

    def accounted(self) -> int:
        """Messages that were put into lanes and are not in the hands of a pump."""
        figures = self.figures()
        return sum(
            figures[name] for name in ("delivered", "coalesced", "dropped", "queued_messages")
        )

    async def until_figures(self, **expected: int) -> None:
        end = asyncio.get_running_loop().time() + 20
        while (figures := self.figures()) | expected != figures:
            seen = {name: figures[name] for name in expected}
            assert asyncio.get_running_loop().time() < end, f"{seen} does not become {expected}"
            await asyncio.sleep(0.005)


@asynccontextmanager
async def delivering(url: str = "memory://", **options: Any) -> AsyncIterator[Delivery]:
    """Listens for a manager with these options."""
    manager = fanwire.ConnectionManager(**options)
    publisher = fanwire.UploadProgressPublisher(
        url,
        manager=manager,
        strict=True,
        max_pending_messages=1_000_000,
        max_pending_bytes=1 << 30,
    )
    await publisher.start()
    delivery = Delivery(manager, publisher)
    await manager.connect(BARRIER, delivery.barrier)
    try:
        yield delivery
    finally:
        await publisher.stop()


@dataclass(frozen=True)
class Outcome:
    """What came out of a lane that had stalled."""

    texts: list[str]
    figures: dict[str, int]

    @property
    def messages(self) -> list[Any]:
        return [json.loads(text) for text in self.texts]


async def through_a_stalled_lane(
    messages: Sequence[Message],
    *,
    url: str = "memory://",
    users: Iterable[str] = ("ada",),
    uploads: Iterable[str] = ("u1", "u2", "u3"),
    **options: Any,
) -> Outcome:
    """One connection stalls while the messages come, then it takes what there is for it.

    ``figures`` are those before it goes on, when all that comes has been put into the lane.
    """
    users = list(users)
    async with delivering(url, **options) as delivery:
        connection = StallingConnection()
        for user in users:
            await delivery.connect(connection, user=user, uploads=uploads)
        delivery.publish((f"user:{users[0]}", "in the way"))
        await connection.stalled()
        delivery.publish(*messages)
        await delivery.routed()
        figures = delivery.figures()
        connection.release()
        await delivery.until_figures(queued_messages=0, delivered=1 + figures["queued_messages"])
        assert connection.texts[0] == '"in the way"'
        return Outcome(connection.texts[1:], figures)
