# ruff: noqa: T201 (what a program prints is what its test looks at)
"""Ends in the way that the second argument names, with a publisher that was never stopped."""

import asyncio
import os
import signal
import sys
import threading

import fanwire
from tests.connections import RecordingConnection


async def start(url: str) -> fanwire.UploadProgressPublisher:
    manager = fanwire.init_manager()
    publisher = fanwire.init_publisher(url)
    await publisher.start()
    connection = RecordingConnection()
    await manager.connect("ada", connection)
    await publisher.publish_to_user("ada", "hello")
    await connection.received(1)
    print("started", flush=True)
    return publisher


async def start_and_flood(url: str) -> None:
    publisher = await start(url)
    for n in range(500):
        publisher.publish_to_user_nowait("ada", n)


async def start_and_raise(url: str) -> None:
    await start(url)
    raise LookupError("as intended")


async def start_and_wait(url: str, started: threading.Event) -> None:
    await start(url)
    started.set()
    await asyncio.Event().wait()


async def start_until_told(url: str) -> None:
    publisher = await start(url)
    await asyncio.to_thread(sys.stdin.readline)
    publisher.publish_to_user_nowait("ada", "in vain")


async def start_and_be_interrupted(url: str) -> None:
    await start(url)
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()


def main(url: str, how: str) -> None:
    if how == "return":
        asyncio.run(start(url))
    elif how == "flood":
        asyncio.run(start_and_flood(url))
    elif how == "exception":
        asyncio.run(start_and_raise(url))
    elif how == "interrupt":
        asyncio.run(start_and_be_interrupted(url))
    elif how == "sys.exit":
        asyncio.run(start(url))
        sys.exit(3)
    elif how == "daemon thread":
        started = threading.Event()
        threading.Thread(
            target=lambda: asyncio.run(start_and_wait(url, started)), daemon=True
        ).start()
        started.wait()
    elif how == "when told":
        asyncio.run(start_until_told(url))
    elif how == "open loop":
        loop = asyncio.new_event_loop()
        loop.run_until_complete(start(url))
        loop.close()
    else:
        raise ValueError(how)


if __name__ == "__main__":
    main(*sys.argv[1:])
