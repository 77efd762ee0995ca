# ruff: noqa: T201 (what a program prints is what its test looks at)
"""Runs jobs that are tracked by one publisher of the process, and ends without stopping it.

Arguments: the broker's URL, the form of the jobs ("with", or "async with" by ``asyncio.run`` per
job), how many, and how the last one ends. Prints what grew: threads and descriptors.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from fanwire import get_publisher, init_publisher

NEVER = 1e6


def held() -> tuple[int, int]:
    threads, descriptors = (Path("/proc/self") / name for name in ("task", "fd"))
    return len(list(threads.iterdir())), len(list(descriptors.iterdir()))


def end(how: str) -> None:
    if how == "exception":
        raise LookupError("as intended")
    if how == "sys.exit":
        sys.exit(3)
    if how == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)


def blocking(n: int, how: str) -> None:
    with get_publisher().track(f"u{n}", 2, min_interval=NEVER) as tracker:
        for _ in tracker.wrap(range(2)):
            pass
        end(how)


async def coroutine(n: int, how: str) -> None:
    async with get_publisher().track(f"u{n}", 2, min_interval=NEVER) as tracker:
        for _ in tracker.wrap(range(2)):
            await asyncio.sleep(0)
        end(how)
        await asyncio.sleep(0)  # where an interrupt comes


def main(url: str, form: str, count: int, how: str) -> None:
    init_publisher(url)

    def job(n: int, how: str) -> None:
        if form == "with":
            blocking(n, how)
        else:
            asyncio.run(coroutine(n, how))

    job(0, "return")
    threads, descriptors = held()
    for n in range(1, count - 1):
        job(n, "return")
    for _ in range(2_000):
        after = held()
        if after[0] <= threads and after[1] <= descriptors:
            break
    print(after[0] - threads, after[1] - descriptors, flush=True)
    job(count - 1, how)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
