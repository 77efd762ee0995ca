"""A program that logs with the standard library. Its lines go to the terminal and, live, to Redis.

    python with_logging.py README.md with_logging.py missing.txt

A redis-server on its usual port is taken for granted; FANWIRE_URL names another one.
"""

import logging.config
import os
import sys
from pathlib import Path

from fanwire import events

logging.config.dictConfig(
    {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)-7s %(message)s"}},
        "handlers": {
            "terminal": {"class": "logging.StreamHandler", "formatter": "line"},
            "redis": {"class": "fanwire.events.RedisLogHandler"},
        },
        "root": {"level": "INFO", "handlers": ["terminal", "redis"]},
    }
)
publisher = events.init_publisher(
    os.environ.get("FANWIRE_URL", "redis://127.0.0.1:6379"), namespace="linecount"
)
log = logging.getLogger("linecount")


def main(names: list[str]) -> None:
    publisher.publish_event("run_started", {"files": names})
    counted = {}
    for name in names:
        log.info("reading %s", name, extra={"file": name})
        try:
            counted[name] = len(Path(name).read_text("utf-8").splitlines())
        except OSError:
            log.exception("%s cannot be read", name, extra={"file": name})
        else:
            log.info("counted %s", name, extra={"file": name, "lines": counted[name]})
    publisher.publish_stats({"files": len(counted), "lines": sum(counted.values())})


if __name__ == "__main__":
    main(sys.argv[1:])  # and no close(): what still waits goes out while the interpreter ends
