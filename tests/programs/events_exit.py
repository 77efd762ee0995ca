# ruff: noqa: T201 (what a program prints is what its test looks at)
"""Ends in the way that the second argument names, with publishers that were never closed.

It says "started" when they are connected, waits for a line on stdin, publishes, and says "ending".
"""

import asyncio
import os
import signal
import sys
import threading

from fanwire import EventPublisher, UploadProgressPublisher, events

COUNT = 5


def publish(publishers: list[EventPublisher]) -> None:
    for publisher in publishers:
        for n in range(200):
            publisher.publish_log({"n": n})
        publisher.publish_event("last")


def in_a_daemon_thread(publishers: list[EventPublisher]) -> None:
    begun = threading.Event()

    def run() -> None:
        publish(publishers)
        begun.set()
        while True:
            publishers[0].publish_log({"n": "for ever"})
            publishers[0].flush(0.001)

    threading.Thread(target=run, daemon=True).start()
    begun.wait()


def flushing_in_daemon_threads(publishers: list[EventPublisher]) -> None:
    for publisher in publishers:
        threading.Thread(target=publisher.flush, args=(60,), daemon=True).start()
        threading.Thread(target=publisher.close, daemon=True).start()


def main(url: str, how: str) -> None:
    publishers = [events.init_publisher(url) for _ in range(COUNT)]
    for publisher in publishers:
        publisher.publish_event("first")
        assert publisher.flush(20)
    progress = UploadProgressPublisher(url)
    asyncio.run(progress.publish_progress("u", {"n": 1}))
    if how == "terminated":  # as README.md has it
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("started", flush=True)
    sys.stdin.readline()
    if how == "daemon thread":
        in_a_daemon_thread(publishers)
    else:
        publish(publishers)
    if how == "flushing":
        flushing_in_daemon_threads(publishers)
    print("ending", flush=True)
    if how == "sys.exit":
        sys.exit(3)
    if how == "exception":
        raise LookupError("as intended")
    if how == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait()
    if how == "terminated":
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
