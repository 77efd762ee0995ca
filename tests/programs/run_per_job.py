# ruff: noqa: T201 (what a program prints is what its test looks at)
"""Publishes by one ``asyncio.run`` per job, and compares threads and descriptors before and after.

Arguments: the broker's URL, the number of jobs, and what a job does.
"""

import asyncio
import gc
import sys
from pathlib import Path

import fanwire


def held() -> tuple[int, int]:
    gc.collect()
    threads, descriptors = (Path("/proc/self") / name for name in ("task", "fd"))
    return len(list(threads.iterdir())), len(list(descriptors.iterdir()))


async def short_life(url: str) -> None:
    """A publisher per job, started and stopped."""
    publisher = fanwire.UploadProgressPublisher(url, manager=fanwire.ConnectionManager())
    await publisher.start()
    await publisher.publish_progress("job", "short life")
    await publisher.stop()


async def abandoned(url: str) -> None:
    """A publisher per job that nobody stops."""
    publisher = fanwire.UploadProgressPublisher(url)
    await publisher.publish_progress("job", "abandoned")


async def left_running(url: str) -> None:
    """A publisher per job that is started and let go."""
    publisher = fanwire.UploadProgressPublisher(url, manager=fanwire.ConnectionManager())
    await publisher.start()


def main(url: str, jobs: int, kind: str) -> None:
    shared = fanwire.UploadProgressPublisher(url, strict=True)

    def job() -> None:
        if kind == "shared":
            asyncio.run(shared.publish_progress("job", "shared"))
        else:
            asyncio.run(
                {"short": short_life, "abandoned": abandoned, "running": left_running}[kind](url)
            )

    for _ in range(20):
        job()
    threads, descriptors = held()
    for _ in range(jobs):
        job()
    for _ in range(2_000):
        # Connections of publishers that were let go are closed on another thread.
        after = held()
        if after[0] <= threads and after[1] <= descriptors:
            break
    print("threads", after[0] - threads, "descriptors", after[1] - descriptors)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
