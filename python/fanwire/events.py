"""Log lines, events and stats of a daemon or a worker, published by one process-wide publisher.

Call :func:`init_publisher` once, before or after a fork. Then structlog's lines go out through
:func:`redis_log_processor`, those of the standard library through :class:`RedisLogHandler`, and
everything else through ``get_publisher()``.
"""

import logging
from collections.abc import MutableMapping
from datetime import datetime
from typing import Any

from fanwire._core import EventPublisher

__all__ = ["RedisLogHandler", "get_publisher", "init_publisher", "redis_log_processor"]

_publisher: EventPublisher | None = None

# What every record has, so that what is left was given as `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# What structlog puts into a line that came from the standard library.
_OF_STRUCTLOG = ("_record", "_from_structlog")


def init_publisher(redis_url: str, **options: Any) -> EventPublisher:
    """Make the process-wide publisher and return it. One made before is replaced.

    What waits in the old one still goes out.

    Args:
        redis_url: as for :class:`fanwire.EventPublisher`.
        options: as for :class:`fanwire.EventPublisher`.
    """
    global _publisher  # noqa: PLW0603
    _publisher = EventPublisher(redis_url, **options)
    return _publisher


def get_publisher() -> EventPublisher | None:
    """Return the process-wide publisher, or None where there is none."""
    return _publisher


def redis_log_processor(
    logger: Any,
    method_name: str,  # noqa: ARG001 (part of structlog's interface)
    event_dict: MutableMapping[str, Any],
) -> MutableMapping[str, Any]:
    """Publish a line as a processor of structlog, and return it unchanged.

    It belongs behind the processors that add something, and before the one that renders. Without
    a publisher it does nothing; what fanwire logs itself is not published.
    """
    publisher = _publisher
    if publisher is None:
        return event_dict
    record = event_dict.get("_record")
    name = getattr(logger if record is None else record, "name", None)
    if _is_own(name) or _is_own(event_dict.get("logger")):
        return event_dict
    line = event_dict
    if record is not None:
        line = {key: value for key, value in event_dict.items() if key not in _OF_STRUCTLOG}
    publisher.publish_log(line)
    return event_dict


class RedisLogHandler(logging.Handler):
    """Publishes the records of the standard library's ``logging`` as log lines.

    A line has "event" (the message), "level", "logger", "timestamp", what was given as ``extra``,
    and, where there is one, "exception" with the traceback and "stack". What fanwire logs itself is
    not published.

    Args:
        publisher: where the lines go. Default: that of :func:`get_publisher`, looked up for each.
        level: less serious records are left out.
    """

    def __init__(
        self, publisher: EventPublisher | None = None, level: int | str = logging.NOTSET
    ) -> None:
        super().__init__(level)
        self._publisher = publisher

    def createLock(self) -> None:  # noqa: N802
        """Make none: publishers are used by many threads, and a lock can be held during a fork."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Publish a record that the filters let through."""
        passed: object = self.filter(record)
        if isinstance(passed, logging.LogRecord):  # from Python 3.12 on a filter may replace it
            record = passed
        if passed:
            self.emit(record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        """Publish a record."""
        publisher = self._publisher or _publisher
        if publisher is None or _is_own(record.name):
            return
        try:
            line = self.line(record)
        except Exception:  # noqa: BLE001 (arguments that do not fit their message)
            self.handleError(record)
            return
        publisher.publish_log(line)

    def line(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return what is published of a record."""
        line = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "timestamp": datetime.fromtimestamp(record.created).isoformat(),  # noqa: DTZ006
        }
        for key, value in vars(record).items():
            if key not in _STANDARD:
                line.setdefault(key, value)
        if record.exc_info and not record.exc_text:
            formatter = self.formatter or logging.Formatter()
            record.exc_text = formatter.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        if record.stack_info:
            line["stack"] = record.stack_info
        return line


def _is_own(name: object) -> bool:
    return isinstance(name, str) and (name == "fanwire" or name.startswith("fanwire."))
