# ruff: noqa: T201 (what a program prints is what its test looks at)
"""Runs a thousand jobs as a worker does, and prints what grew: threads, descriptors, MiB.

Arguments: the broker's URL, and which publishers the jobs use.
"""

import asyncio
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from fanwire import EventPublisher, UploadProgressPublisher

WARM, JOBS = 300, 1_000


def held() -> tuple[int, int]:
    threads, descriptors = (Path("/proc/self") / name for name in ("task", "fd"))
    return len(list(threads.iterdir())), len(list(descriptors.iterdir()))


def resident_mib() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def jobs(url: str) -> dict[str, Callable[[int], object]]:
    progress = UploadProgressPublisher(url, strict=True)
    events = EventPublisher(url)

    async def one(n: int) -> None:
        for percent in (0, 50, 100):
            await progress.publish_progress(f"upload-{n}", {"percent": percent})
            events.publish_log({"event": "step", "percent": percent})
        await asyncio.gather(*(progress.publish_progress("many", part) for part in range(10)))

    async def tracked(n: int) -> None:
        async with progress.track(f"upload-{n}", 3, min_interval=0) as tracker:
            for part in tracker.wrap(range(3)):
                tracker.stage(f"part {part}")

    def tracked_without_a_loop(n: int) -> None:
        with progress.track(f"upload-{n}", 3) as tracker:
            tracker.advance(3)

    def closed(n: int) -> None:
        with EventPublisher(url) as publisher:
            publisher.publish_event("job", {"n": n})

    def let_go(n: int) -> None:
        publisher = EventPublisher(url)
        publisher.publish_event("job", {"n": n})
        assert publisher.flush(20)  # or a thousand of them would connect at once

    return {
        "shared": lambda n: asyncio.run(one(n)),
        "tracked": lambda n: asyncio.run(tracked(n)),
        "tracked without a loop": tracked_without_a_loop,
        "closed": closed,
        "let go": let_go,
    }


def main(url: str, kind: str) -> None:
    job = jobs(url)[kind]
    for n in range(WARM):
        job(n)
    (threads, descriptors), size = held(), resident_mib()
    for n in range(JOBS):
        job(n)
    for _ in range(2_000):
        # Connections of publishers that were let go are closed on another thread.
        after = held()
        if after[0] <= threads and after[1] <= descriptors:
            break
    print(after[0] - threads, after[1] - descriptors, round(resident_mib() - size, 1))


if __name__ == "__main__":
    main(*sys.argv[1:])
