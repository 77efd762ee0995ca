"""What is published of a record of the standard library's ``logging``."""

import logging
import sys
from datetime import datetime
from typing import Any

__all__ = ["FORMATTERS", "line_of"]

# What every record has, so that what is left was given as `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# What structlog's ProcessorFormatter adds to an event dict, and its wrap_for_formatter to a record.
FORMATTERS = frozenset({"_record", "_from_structlog"})
_WRAPPED = frozenset({"_logger", "_name"})


def line_of(record: logging.LogRecord, formatter: logging.Formatter) -> dict[str, Any]:
    """Return the line; the formatter makes the text of a traceback."""
    wrapped = vars(record).keys() >= _WRAPPED
    if wrapped and isinstance(record.msg, dict):
        return _line_of_structlog(record, record.msg, formatter)
    line = {"event": record.getMessage(), **_common(record)}
    end = {}
    if record.exc_info and not record.exc_text:
        record.exc_text = formatter.formatException(record.exc_info)
    if record.exc_text:
        end["exception"] = record.exc_text
    if record.stack_info:
        end["stack"] = record.stack_info
    unseen = _STANDARD | _WRAPPED if wrapped else _STANDARD
    for key, value in vars(record).items():
        if key not in unseen:
            _add(line, key, value, end)
    return line | end


def _common(record: logging.LogRecord) -> dict[str, Any]:
    return {
        "level": record.levelname.lower(),
        "logger": record.name,
        "timestamp": datetime.fromtimestamp(record.created).isoformat(),  # noqa: DTZ006
    }


def _add(line: dict[str, Any], key: str, value: object, end: dict[str, str]) -> None:
    """Add what was given as `extra`, under another name where the line has its own."""
    while key in line or key in end:
        if isinstance(value, str) and value == line.get(key):
            return  # structlog's render_to_log_kwargs gives the level and the name once more
        key = f"extra_{key}"
    line[key] = value


def _line_of_structlog(
    record: logging.LogRecord, event_dict: dict[str, Any], formatter: logging.Formatter
) -> dict[str, Any]:
    """Return the event dict, and of the record what the processors did not add."""
    line = event_dict | {k: v for k, v in _common(record).items() if k not in event_dict}
    info = line.pop("exc_info", None)
    if not info or "exception" in line:
        return line
    if isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    elif not isinstance(info, tuple):
        info = sys.exc_info()  # the handler runs inside of the call that logs
    if info[0] is not None:
        line["exception"] = formatter.formatException(info)
    return line
