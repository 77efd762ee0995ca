"""Log lines, events and stats of a daemon or a worker, published by one process-wide publisher.

Call :func:`init_publisher` once, before or after a fork. Then structlog's lines go out through
:func:`redis_log_processor`, those of the standard library through :class:`RedisLogHandler`, and
everything else through ``get_publisher()``.
"""

import itertools
import logging
import os
from collections.abc import MutableMapping
from typing import Any

from fanwire._core import EventPublisher
from fanwire._records import FORMATTERS, line_of

__all__ = ["RedisLogHandler", "get_publisher", "init_publisher", "redis_log_processor"]

_log = logging.getLogger("fanwire")
_publisher: EventPublisher | None = None
_refused = itertools.count()  # so that of two threads at once only one tells


def init_publisher(redis_url: str | None = None, **options: Any) -> EventPublisher:
    """Make the process-wide publisher and return it. One made before is replaced.

    What waits in the old one still goes out.

    Args:
        redis_url: as for :class:`fanwire.EventPublisher`. Default: the environment's FANWIRE_URL,
            then REDIS_URL, then ``memory://``, which nobody hears, with a warning in the log.
        options: as for :class:`fanwire.EventPublisher`.

    Raises:
        fanwire.ConfigError: the URL or an option makes no sense.
    """
    global _publisher, _refused  # noqa: PLW0603
    _refused = itertools.count()
    _publisher = EventPublisher(_url() if redis_url is None else redis_url, **options)
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
    a publisher it does nothing; what fanwire logs itself is not published. It never raises: what is
    no event dict, because it was rendered already, is counted in ``stats()["unencodable"]``, and
    the first one told to the logger ``fanwire``.
    """
    publisher = _publisher
    if publisher is None:
        return event_dict
    if not _is_mapping(event_dict):
        if not _is_own(getattr(logger, "name", None)):
            _refuse(publisher, event_dict)
        return event_dict
    record = event_dict.get("_record")
    name = getattr(logger if record is None else record, "name", None)
    if _is_own(name) or _is_own(event_dict.get("logger")):
        return event_dict
    line = event_dict
    if record is not None:
        line = {key: value for key, value in event_dict.items() if key not in FORMATTERS}
    publisher.publish_log(line)
    return event_dict


class RedisLogHandler(logging.Handler):
    """Publishes the records of the standard library's ``logging`` as log lines.

    A line has "event" (the message), "level", "logger", "timestamp" (local time), what was given as
    ``extra``, and, where there is one, "exception" with the traceback and "stack". An ``extra`` of
    one of these names comes as "extra_level", say. Of a record that structlog made for its
    ``ProcessorFormatter`` the line is the event dict. What fanwire logs itself is not published.

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
        return line_of(record, self.formatter or logging.Formatter())


def _url() -> str:
    url = os.environ.get("FANWIRE_URL") or os.environ.get("REDIS_URL")
    if not url:
        _log.warning(
            "fanwire: no broker URL was given and neither FANWIRE_URL nor REDIS_URL is set: using "
            "memory://, so nobody hears what is published"
        )
    return url or "memory://"


class _Rendered:
    """Has no JSON form, so a publisher counts it."""

    def __str__(self) -> str:
        raise TypeError("this line was rendered already")


def _refuse(publisher: EventPublisher, line: object) -> None:
    """Count a line that was rendered already, and tell of the first since `init_publisher`."""
    if next(_refused) == 0:
        _log.warning(
            "fanwire: redis_log_processor got a %s instead of an event dict, and publishes none: "
            "put it before the processor that renders the line",
            type(line).__name__,
        )
    publisher.publish_log(_Rendered())  # type: ignore[arg-type]


def _is_mapping(line: object) -> bool:
    return isinstance(line, (dict, MutableMapping))  # dict first: the other takes 0.4 us


def _is_own(name: object) -> bool:
    return isinstance(name, str) and (name == "fanwire" or name.startswith("fanwire."))
