"""Ends while a daemon thread is in Python code that the native module calls.

Arguments: what the thread does, the broker's URL.
"""

import sys
import threading
from typing import Any

import fanwire


class Shown:
    """Has its own ``str()`` and its own JSON, which take a while."""

    def _work(self) -> None:
        for _ in range(1000):
            pass

    def __str__(self) -> str:
        self._work()
        return "shown"

    def model_dump_json(self) -> str:
        self._work()
        return "{}"


def main(what: str, url: str) -> None:
    publisher, events = fanwire.UploadProgressPublisher(url), fanwire.EventPublisher(url)
    begun = threading.Event()

    def once() -> Any:
        match what:
            case "track":
                return publisher.track("u", 5)
            case "log":
                return events.publish_log({"shown": Shown()})
            case "event":
                return events.publish_event("shown", {"shown": Shown()})
            case "model":
                return publisher.publish_nowait("u", Shown())

    def work() -> None:
        while True:
            try:
                once()
            except RuntimeError:  # the interpreter ends
                return
            begun.set()

    threading.Thread(target=work, daemon=True).start()
    begun.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
