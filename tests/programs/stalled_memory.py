# ruff: noqa: T201 (what a program prints is what its test looks at)
"""Sends 100,000 messages past a connection that stalls, and prints by how many MiB memory grew.

Arguments: what happens at the limit ("disconnect", "drop-oldest", "coalesce"; or "outrun": nobody
stalls, but the event loop is behind all the time) and the event loop ("asyncio" or "uvloop").
"""

import asyncio
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import uvloop

import fanwire
from tests.connections import StallingConnection
from tests.deadlines import until

COUNT = 100_000
AT_ONCE = 500
TEXT = "x" * 1_000


class Counting:
    count = 0

    async def send_text(self, data: str) -> None:
        self.count += 1

    async def close(self, code: int | None = None, reason: str | None = None) -> None:
        raise AssertionError("it keeps up")


class Stalled(StallingConnection):
    """Does not remember the text either, so that nothing but the lane holds any."""


def peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def message(n: int, policy: str) -> Any:
    if policy == "outrun":
        return TEXT * 4
    if policy == "coalesce" and n % 2:
        return {"action": "upload_progress", "payload": {"upload_id": "u1", "text": TEXT}}
    return {"action": "note", "n": n, "text": TEXT}


async def main(policy: str) -> None:
    outrun = policy == "outrun"
    manager = fanwire.ConnectionManager(overflow="disconnect" if outrun else policy)  # type: ignore[arg-type]
    publisher = fanwire.UploadProgressPublisher("memory://", manager=manager, strict=True)
    healthy, stalled = Counting(), Stalled()
    await manager.connect("healthy", healthy)
    await manager.subscribe_upload("healthy", "u1")
    await publisher.start()

    def publish(first: int, last: int) -> None:
        for n in range(first, last):
            while not publisher.publish_nowait("u1", message(n, policy)):
                time.sleep(0.001)  # as many as may wait do

    async def pass_by(first: int, last: int) -> None:
        if outrun:
            thread = threading.Thread(target=publish, args=(first, last))
            thread.start()
            while thread.is_alive():
                time.sleep(0.005)  # noqa: ASYNC251 (the fault itself)
                await asyncio.sleep(0)
            await until(lambda: healthy.count == last, deadline_seconds=40)
            return
        for start in range(first, last, AT_ONCE):
            publish(start, start + AT_ONCE)
            await until(lambda end=start + AT_ONCE: healthy.count == end)  # type: ignore[misc]

    await pass_by(0, 10_000)
    if not outrun:
        await manager.connect("stalled", stalled)
        await manager.subscribe_upload("stalled", "u1")
    before = peak_mib()
    await pass_by(10_000, COUNT)
    print(round(peak_mib() - before))
    print(sorted(manager.user_connections))
    await publisher.stop()


# That the connection is disconnected is in the log, and stderr is to be empty.
logging.getLogger("fanwire").setLevel(logging.ERROR)
with asyncio.Runner(
    loop_factory=uvloop.new_event_loop if sys.argv[2] == "uvloop" else asyncio.new_event_loop
) as runner:
    runner.run(main(sys.argv[1]))
