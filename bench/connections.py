"""Connections that cost next to nothing, and know when the last of them has its message."""

import asyncio
import time


class Tally:
    """Counts deliveries down to zero."""

    __slots__ = ("_done", "expected", "last_ns", "left")

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self._done = asyncio.Event()
        self.left = expected
        self.last_ns = 0  # on the clock of the load generator

    def complete(self) -> None:
        self.last_ns = time.monotonic_ns()
        self._done.set()

    def restart(self, expected: int | None = None) -> None:
        if expected is not None:
            self.expected = expected
        self.left = self.expected
        self._done.clear()

    async def wait(self, seconds: float) -> int:
        """Waits for the last delivery. Returns how many are missing; below zero: too many."""
        try:
            await asyncio.wait_for(self._done.wait(), seconds)
        except TimeoutError:
            return self.left
        await asyncio.sleep(0)  # lets a delivery too many show itself
        return self.left


class CountingConnection:
    """A WebSocket that takes every message at once: what is measured is the way to it."""

    __slots__ = ("__weakref__", "_tally")

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    async def send_text(self, data: str) -> None:  # noqa: ARG002 - takes it and lets it go
        tally = self._tally
        tally.left -= 1
        if not tally.left:
            tally.complete()

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        """Counted nowhere: a connection that fanwire gives up shows as lost deliveries."""


class RecordingConnection:
    """Keeps what it was sent, to see that a contender forwards the text unchanged."""

    __slots__ = ("__weakref__", "received")

    def __init__(self) -> None:
        self.received: asyncio.Queue[str] = asyncio.Queue()

    async def send_text(self, data: str) -> None:
        self.received.put_nowait(data)

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        """Nothing to close."""
