"""The uploads that are under way, and the publishers that tell of them at a steady rate."""

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.deadlines import until
from tests.soak.plan import Plan

# Messages of an upload before its last one: some seconds of them.
LENGTHS = (40, 240)
# Every so many messages one is no progress: nothing takes its place, and nothing overtakes it.
NOTE_EVERY = 16
# The share of final messages that are published a second time, as a retry would.
RETRIED = 0.3


@dataclass(eq=False)
class Upload:
    """One upload. ``awaited_by`` are the users who want its final message and have not got it."""

    upload_id: str
    final_at: float | None = None
    awaited_by: set[str] = field(default_factory=set)


class Publisher:
    """Tells the app what to publish, one message after another."""

    def __init__(self, socket: ClientConnection, outcomes: Counter[str]) -> None:
        self._socket = socket
        self._outcomes = outcomes
        self._one_at_a_time = asyncio.Lock()

    async def publish(self, upload: Upload, message: Any, key: str | None = None) -> None:
        order = {"upload_id": upload.upload_id, "message": message, "idempotency_key": key}
        async with self._one_at_a_time:
            await self._socket.send(json.dumps(order))
            answer = json.loads(await self._socket.recv())
        self._outcomes[answer["status"]] += 1


class Uploads:
    """A fixed number of uploads at a time: where one is over, the next begins."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._numbers = itertools.count(1)
        self._under_way: set[Upload] = set()
        self._over: set[Upload] = set()
        self._finals_may_go = asyncio.Event()
        self._finals_may_go.set()
        self.closing = False
        self.outcomes: Counter[str] = Counter()

    async def run(self, port: int) -> None:
        """Returns when it was told to close and the last upload is over."""
        url = f"ws://127.0.0.1:{port}/publish"
        async with AsyncExitStack() as sockets, asyncio.TaskGroup() as tasks:
            publishers = [
                Publisher(
                    await sockets.enter_async_context(
                        connect(url, compression=None, ping_interval=None, proxy=None)
                    ),
                    self.outcomes,
                )
                for _ in range(self._plan.publishers)
            ]
            lines = itertools.islice(itertools.cycle(publishers), self._plan.uploads)
            for publisher in lines:
                tasks.create_task(self._one_after_another(publisher))

    def choose(self, count: int, user_id: str) -> list[Upload]:
        """Some that are under way; the user awaits their final messages from now on."""
        chosen = self._random.sample(
            sorted(self._under_way, key=lambda upload: upload.upload_id),
            min(count, len(self._under_way)),
        )
        for upload in chosen:
            upload.awaited_by.add(user_id)
        return chosen

    @asynccontextmanager
    async def nobody_awaiting_what_was_sent(self) -> AsyncIterator[None]:
        """No final message is published inside the block, and those before it have arrived.

        For a server that loses all it has: what was published last and was for somebody who is away
        at that moment would be lost with it.
        """
        self._finals_may_go.clear()
        try:
            await until(
                lambda: not any(upload.awaited_by for upload in self._over),
                "every final message has come or was given up",
                deadline_seconds=2 * self._plan.grace_seconds,
            )
            yield
        finally:
            self._finals_may_go.set()

    async def _one_after_another(self, publisher: Publisher) -> None:
        while not self.closing:
            upload = Upload(f"upload-{next(self._numbers)}")
            self._under_way.add(upload)
            await self._tell(upload, publisher)
            self._over = {other for other in self._over if other.awaited_by}

    async def _tell(self, upload: Upload, publisher: Publisher) -> None:
        length = self._random.randint(*LENGTHS)
        due = time.monotonic() + self._random.uniform(0, self._plan.upload_beat_seconds)
        for step in range(1, length):
            await asyncio.sleep(due - time.monotonic())
            # What an outage held up is not made up for: the rate stays steady.
            due = max(due, time.monotonic() - 1.0) + self._plan.upload_beat_seconds
            if self.closing:
                break
            await publisher.publish(upload, progress(upload.upload_id, step, length))
        await self._finals_may_go.wait()
        self._under_way.remove(upload)
        self._over.add(upload)
        upload.final_at = time.monotonic()
        repeats = 2 if self._random.random() < RETRIED and self._plan.history else 1
        for _ in range(repeats):
            await publisher.publish(upload, final(upload.upload_id, length), "final")


def progress(upload_id: str, step: int, length: int) -> dict[str, Any]:
    if step % NOTE_EVERY == 0:
        return {"action": "upload_note", "upload_id": upload_id, "step": step}
    return {
        "action": "upload_progress",
        "payload": {
            "upload_id": upload_id,
            "status": "processing",
            "stage": "vision_analysis",
            "progress_percent": 100 * step // length,
            "message": "Größe prüfen",
        },
        "step": step,
    }


def final(upload_id: str, step: int) -> dict[str, Any]:
    return {
        "action": "upload_completed",
        "upload_id": upload_id,
        "description": "Ein Satz",
        "audit_score": 87.5,
        "step": step,
    }
