# ruff: noqa: T201 (what a program prints is what its test looks at)
"""Forks while another thread is in the middle of logging for the first time.

Argument: the URL of a broker that is not there, which is what is logged.
"""

import logging
import os
import sys
import threading
import time
from typing import Any

from fanwire import EventPublisher

DEADLINE_SECONDS = 30


def publish_until(url: str, logged: threading.Event) -> bool:
    publisher = EventPublisher(url)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not logged.is_set() and time.monotonic() < deadline:
        publisher.publish_log({"event": "nobody takes it"})
        publisher.flush(0.01)
    return logged.is_set()


def main(url: str) -> None:
    in_the_middle, go_on, logged = (threading.Event() for _ in range(3))
    thread = threading.Thread(target=publish_until, args=(url, in_the_middle))
    original = logging.getLogger

    def slow(*arguments: Any) -> logging.Logger:
        if threading.current_thread() is thread:
            in_the_middle.set()
            go_on.wait(2 * DEADLINE_SECONDS)
        return original(*arguments)

    logger = original("fanwire")
    logger.propagate = False
    handler = logging.Handler()
    handler.emit = lambda record: logged.set()  # type: ignore[method-assign]
    logger.addHandler(handler)
    logging.getLogger = slow  # type: ignore[assignment]
    thread.start()
    assert in_the_middle.wait(DEADLINE_SECONDS)
    child = os.fork()
    if child == 0:
        os._exit(0 if publish_until(url, logged) else 1)
    print("child status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    go_on.set()
    thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
