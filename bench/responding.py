"""How long the event loop takes to get to something that has just arrived.

Timers of asyncio are rounded to milliseconds; a pipe with a time stamp in it is not.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from load_client import LoadClient

HERE = Path(__file__).parent


@asynccontextmanager
async def own_cores(load: LoadClient) -> AsyncIterator[set[int]]:
    """Redis, the load and the prober get the first core, this process all others. Gives theirs.

    Without that, what is seen is mostly how long the kernel lets a process wait for a core. It is
    the harder half for a contender with a thread of its own, which shares its core with the loop.
    """
    cores = os.sched_getaffinity(0)
    if len(cores) == 1:
        yield cores
        return
    theirs = {min(cores)}
    await load.pin(theirs)
    for thread in os.listdir("/proc/self/task"):  # noqa: PTH208 - threads, not paths
        os.sched_setaffinity(int(thread), cores - theirs)
    try:
        yield theirs
    finally:
        await load.pin(cores)


class LagProbe:
    """Between `async with`: `lags_ms` of the stamps that were read."""

    def __init__(self) -> None:
        self.lags_ms: list[float] = []

    async def __aenter__(self) -> Self:
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(writer, False)
        self._process = subprocess.Popen(  # noqa: ASYNC220 - before the clock runs
            [sys.executable, "-S", str(HERE / "prober.py")], stdout=writer
        )
        os.close(writer)
        os.sched_setaffinity(self._process.pid, {0})
        asyncio.get_running_loop().add_reader(self._reader, self._read)
        while not self.lags_ms:  # noqa: ASYNC110 - the reader appends to it
            await asyncio.sleep(0.005)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._reader)
        os.close(self._reader)
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        now = time.monotonic_ns()
        stamps = os.read(self._reader, 1 << 16)
        self.lags_ms.extend(
            (now - int.from_bytes(stamps[at : at + 8], "little")) / 1e6
            for at in range(0, len(stamps), 8)
        )


def percentile(figures: list[float], share: float) -> float:
    ordered = sorted(figures)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
