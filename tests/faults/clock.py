"""The time of a run, which begins when the watchers are there."""

import asyncio
import time


class Clock:
    def __init__(self) -> None:
        self._started: float | None = None
        self._begun = asyncio.Event()

    def start(self) -> None:
        self._started = time.monotonic()
        self._begun.set()

    @property
    def now(self) -> float:
        """Seconds since it was started; 0 before."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    async def until(self, seconds: float) -> None:
        """Waits for that time of the run, which may be over."""
        await self._begun.wait()
        await asyncio.sleep(max(0.0, seconds - self.now))
