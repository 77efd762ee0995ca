"""What goes wrong with Redis now and then."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from tests.redis_server import RedisServer
from tests.soak.plan import Plan
from tests.soak.uploads import Uploads

PAUSE_SECONDS = 1.0
# What an app needs to be as it was: less than the listener's five seconds, more than it takes.
SETTLE_SECONDS = 3.0


class Faults:
    """One fault after another, each kind as often as the others.

    ``lock`` is held while one is under way: the server may not answer then.
    """

    def __init__(self, server: RedisServer, plan: Plan, uploads: Uploads) -> None:
        self._server = server
        self._plan = plan
        self._uploads = uploads
        self._random = random.Random(plan.seed)
        self._ended_at = 0.0
        self.lock = asyncio.Lock()
        self.counts: Counter[str] = Counter()
        self._kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "listener killed": lambda: self._do(server.drop_listeners),
            "all killed": lambda: self._do(server.drop_clients),
            "paused": self._pause,
            "restarted": lambda: self._do(self._restart),
            "crashed": self._crash,
            "rolled back": self._roll_back,
        }

    @property
    def settled(self) -> bool:
        return time.monotonic() - self._ended_at > SETTLE_SECONDS

    async def run(self) -> None:
        deck: list[str] = []
        every = self._plan.fault_every_seconds
        await asyncio.sleep(every / 3)  # some of them while the app warms up
        while True:
            if not deck:
                deck = list(self._kinds)
                self._random.shuffle(deck)
            kind = deck.pop()
            await self._kinds[kind]()
            self.counts[kind] += 1
            await asyncio.sleep(self._random.uniform(0.5, 1.5) * every)

    async def _do(self, fault: Callable[[], object]) -> None:
        async with self.lock:
            await asyncio.to_thread(fault)
            self._ended_at = time.monotonic()

    async def _pause(self) -> None:
        async with self.lock:
            self._server.pause()
            try:
                await asyncio.sleep(PAUSE_SECONDS)
            finally:
                self._server.resume()
            self._ended_at = time.monotonic()

    def _restart(self) -> None:
        """In order: it comes back with all it had."""
        self._server.client.shutdown(save=True)
        self._server.restart()

    async def _crash(self) -> None:
        """It comes back empty."""
        async with self._uploads.nobody_awaiting_what_was_sent():
            await self._do(self._lose_everything)

    async def _roll_back(self) -> None:
        """It comes back as it was a moment before: what it counted since, it counts once more."""
        async with self._uploads.nobody_awaiting_what_was_sent(), self.lock:
            await asyncio.to_thread(self._server.client.save)
            await asyncio.sleep(PAUSE_SECONDS)
            await asyncio.to_thread(self._server.restart)
            self._ended_at = time.monotonic()

    def _lose_everything(self) -> None:
        self._server.kill()
        (self._server.directory / "dump.rdb").unlink(missing_ok=True)
        self._server.start()
