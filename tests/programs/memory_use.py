# ruff: noqa: T201 (what a program prints is what its test looks at)
"""Repeats one kind of work, and prints by how many MiB the process grew after the first rounds.

Arguments: the broker's URL, and the kind of work.
"""

import asyncio
import gc
import resource
import sys
from pathlib import Path

import fanwire
from tests.connections import RecordingConnection
from tests.deadlines import until

ROUNDS = 8


class Counting(RecordingConnection):
    count = 0

    async def send_text(self, data: str) -> None:
        self.count += 1


class Work:
    def __init__(self, url: str) -> None:
        self.url = url
        self.manager = fanwire.ConnectionManager()
        self.publisher = fanwire.UploadProgressPublisher(url, manager=self.manager)
        self.connection = Counting()

    async def counted(self, count: int) -> None:
        await until(lambda: self.connection.count == count)

    async def messages(self) -> None:
        for _ in range(10):
            before = self.connection.count
            for _ in range(500):
                assert self.publisher.publish_to_user_nowait("ada", "x" * 2_000)
            await self.counted(before + 500)

    async def connections(self) -> None:
        for n in range(3_000):
            connection = Counting()
            await self.manager.connect(f"user-{n}", connection)
            await self.manager.subscribe_upload(f"user-{n}", f"upload-{n}")
            await self.manager.send_to_user(f"user-{n}", "x" * 1_000)
            await self.manager.disconnect(f"user-{n}", connection)

    async def refused(self) -> None:
        for _ in range(3_000):
            self.publisher.publish_progress("u1", "x" * 1_000).close()
            try:
                await self.publisher.publish_progress("u1", ["x" * 1_000, object()])
            except TypeError:
                continue


def resident_mib() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


async def main(url: str, kind: str) -> None:
    work = Work(url)
    await work.manager.connect("ada", work.connection)
    await work.publisher.start()
    round_ = {
        "messages": work.messages,
        "connections": work.connections,
        "refused": work.refused,
    }[kind]
    for _ in range(2):
        await round_()
    before = resident_mib()
    for _ in range(ROUNDS):
        await round_()
    print(round(resident_mib() - before, 1))
    await work.publisher.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
