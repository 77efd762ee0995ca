"""A program that logs with structlog. Its lines go to the terminal and, live, to Redis.

    python with_structlog.py README.md with_structlog.py missing.txt

A redis-server on its usual port is taken for granted; FANWIRE_URL names another one.
"""

import os
import sys
from pathlib import Path

import structlog

from fanwire import events

publisher = events.init_publisher(
    os.environ.get("FANWIRE_URL", "redis://127.0.0.1:6379"), namespace="linecount"
)

structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        # Before it, so that Redis gets the traceback, and not just `"exc_info": true`.
        structlog.processors.format_exc_info,
        events.redis_log_processor,
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)
log = structlog.get_logger()


def main(names: list[str]) -> None:
    publisher.publish_event("run_started", {"files": names})
    counted = {}
    for name in names:
        with structlog.contextvars.bound_contextvars(file=name):
            log.info("reading")
            try:
                counted[name] = len(Path(name).read_text("utf-8").splitlines())
            except OSError:
                log.exception("cannot be read")
            else:
                log.info("counted", lines=counted[name])
    publisher.publish_stats({"files": len(counted), "lines": sum(counted.values())})


if __name__ == "__main__":
    main(sys.argv[1:])  # and no close(): what still waits goes out while the interpreter ends
