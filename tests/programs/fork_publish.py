# ruff: noqa: T201 (what a program prints is what its test looks at)
"""Publishes before a fork and, after it, in the child and in the parent.

Arguments: the broker's URL, how to make the child (``os.fork``, or a start method of
multiprocessing) and whether the parent also listens (``listening`` or ``publishing``).
"""

import asyncio
import gc
import multiprocessing
import os
import sys
from collections.abc import Callable

import fanwire
from tests.connections import RecordingConnection

UPLOAD = "fork"


def publish_as(name: str, publisher: fanwire.UploadProgressPublisher) -> None:
    for n in range(3):
        asyncio.run(publisher.publish_progress(UPLOAD, f"{name} {n}"))
    assert publisher.publish_nowait(UPLOAD, f"{name} nowait")
    asyncio.run(publisher.publish_progress(UPLOAD, f"{name} last"))


def in_the_child(url: str) -> None:
    publish_as("child anew", fanwire.UploadProgressPublisher(url, strict=True))


def child_process(method: str, work: Callable[[], None], url: str) -> int:
    """Makes the child, and returns its exit status."""
    if method == "os.fork":
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work()
                in_the_child(url)
                gc.collect()
                status = 0
            finally:
                sys.stdout.flush()
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    process = multiprocessing.Process(target=in_the_child, args=(url,))
    process.start()
    process.join()
    return process.exitcode if process.exitcode is not None else -1


async def listen_and_fork(url: str, method: str) -> None:
    """Forks inside a running loop, with a listener that was started."""
    manager, connection = fanwire.ConnectionManager(), RecordingConnection()
    publisher = fanwire.UploadProgressPublisher(url, manager=manager, strict=True)
    await manager.connect("ada", connection)
    await manager.subscribe_upload("ada", UPLOAD)
    await publisher.start()
    await publisher.publish_progress(UPLOAD, "parent before")
    await connection.received(1)
    # Off the loop: a child of os.fork must not inherit a loop that is running in its only thread.
    status = await asyncio.to_thread(
        child_process, method, lambda: publish_as("child inherited", publisher), url
    )
    print("child status", status)
    await publisher.publish_progress(UPLOAD, "parent after")
    await connection.received_text('"parent after"')
    print("parent received", len(connection.texts))
    await publisher.stop()


def publish_and_fork(url: str, method: str) -> None:
    publisher = fanwire.UploadProgressPublisher(url, strict=True)
    publish_as("parent before", publisher)
    status = child_process(method, lambda: publish_as("child inherited", publisher), url)
    print("child status", status)
    publish_as("parent after", publisher)


if __name__ == "__main__":
    url, method, role = sys.argv[1:]
    if method != "os.fork":
        multiprocessing.set_start_method(method)
    if role == "listening":
        asyncio.run(listen_and_fork(url, method))
    else:
        publish_and_fork(url, method)
