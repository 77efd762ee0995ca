"""Log lines of structlog, by its processors and by the standard library."""

import io
import logging
import logging.handlers
import queue
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

import fanwire
from fanwire import events
from tests.conftest import Unique
from tests.events import Tap, flushed
from tests.redis_server import RedisServer


@pytest.fixture
def publisher(redis_server: RedisServer) -> Iterator[fanwire.EventPublisher]:
    with events.init_publisher(redis_server.url) as publisher:
        yield publisher
    events._publisher = None


@pytest.fixture
def tap(redis_server: RedisServer) -> Iterator[Tap]:
    tap = Tap(redis_server)
    yield tap
    tap.close()


@pytest.fixture(autouse=True)
def structlog_as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def logger(unique: Unique) -> Iterator[logging.Logger]:
    """A logger of this test, whose handlers are gone afterwards."""
    logger = logging.getLogger(unique("app"))
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.handlers.clear()


def test_structlogs_lines(publisher: fanwire.EventPublisher, tap: Tap) -> None:
    written: list[dict[str, Any]] = []

    def keep(_: Any, __: str, line: Any) -> str:
        written.append(dict(line))
        return "rendered"

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=False),
            structlog.processors.format_exc_info,
            events.redis_log_processor,
            keep,
        ],
        logger_factory=structlog.PrintLoggerFactory(file=io.StringIO()),
    )
    log = structlog.get_logger().bind(repo="fan")
    log.info("analysed", path=Tap, n=3)
    try:
        int("as intended")
    except ValueError:
        log.exception("failed")
    flushed(publisher)
    analysed, failed = tap.logs()
    assert analysed == written[0] | {"path": str(Tap)}
    assert (analysed["event"], analysed["level"], analysed["repo"]) == ("analysed", "info", "fan")
    assert failed["exception"].endswith("base 10: 'as intended'")


def test_structlog_over_the_standard_library(
    publisher: fanwire.EventPublisher, tap: Tap, logger: logging.Logger
) -> None:
    """Lines of both kinds pass the processor where its formatter is used; fanwire's own do not."""
    shared: list[Any] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        events.redis_log_processor,
    ]
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.processors.JSONRenderer(default=str)]
        )
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    own = logging.getLogger("fanwire")
    for each in (logger, own):
        each.addHandler(handler)
    try:
        structlog.stdlib.get_logger(logger.name).info("ours", n=1)
        logger.warning("theirs %d", 2)
        own.warning("of fanwire")
        structlog.stdlib.get_logger("fanwire.pyview").warning("of fanwire")
    finally:
        own.removeHandler(handler)
    flushed(publisher)
    ours, theirs = tap.logs()
    assert ours == {"event": "ours", "n": 1, "logger": logger.name, "level": "info"}
    assert theirs == {"event": "theirs 2", "logger": logger.name, "level": "warning"}


@pytest.mark.parametrize("rendered", ["a str", "a tuple"])
def test_a_processor_behind_the_renderer(
    publisher: fanwire.EventPublisher,
    tap: Tap,
    caplog: pytest.LogCaptureFixture,
    rendered: str,
) -> None:
    """The program logs as ever, and is told once what is wrong."""
    written, formatted = io.StringIO(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter
    renderer: Any = structlog.processors.JSONRenderer() if rendered == "a str" else formatted
    structlog.configure(
        processors=[renderer, events.redis_log_processor, lambda _, __, line: str(line)],
        logger_factory=structlog.PrintLoggerFactory(file=written),
    )
    for n in range(3):
        structlog.get_logger().info("seen", n=n)
    publisher.publish_log({"event": "after it"})
    flushed(publisher)
    assert [line["event"] for line in tap.logs()] == ["after it"]
    assert publisher.stats()["unencodable"] == 3
    assert written.getvalue().count("seen") == 3
    told = [record.getMessage() for record in caplog.records if record.name == "fanwire"]
    assert f"redis_log_processor got {rendered} instead" in told[0]
    assert "before the processor that renders" in told[0]
    assert len(told) == 2 and "later ones are only counted" in told[1]


def test_fanwires_own_lines_behind_the_renderer(
    publisher: fanwire.EventPublisher, caplog: pytest.LogCaptureFixture
) -> None:
    line: Any = "rendered"
    assert events.redis_log_processor(logging.getLogger("fanwire"), "info", line) is line
    assert publisher.stats()["unencodable"] == 0 and not caplog.records


def wrapping(logger: logging.Logger, *processors: Any) -> Any:
    """A logger of structlog that hands its event dicts on to the standard library."""
    structlog.configure(
        processors=[*processors, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return structlog.stdlib.get_logger(logger.name)


def formatted(*processors: Any) -> tuple[logging.Handler, io.StringIO]:
    """A handler that renders both kinds of records."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                *processors,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(default=str),
            ]
        )
    )
    return handler, written


def test_the_processor_in_structlogs_formatter(
    publisher: fanwire.EventPublisher, tap: Tap, logger: logging.Logger
) -> None:
    """As the README has it: lines of both kinds, each once, as they are rendered."""
    handler, written = formatted(
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.format_exc_info,
        events.redis_log_processor,
    )
    logger.addHandler(handler)
    wrapping(logger).info("ours", n=1)
    try:
        int("as intended")
    except ValueError:
        logger.exception("theirs %d", 2)
    flushed(publisher)
    ours, theirs = tap.logs()
    assert ours == {"event": "ours", "n": 1, "logger": logger.name, "level": "info"}
    assert (theirs["event"], theirs["logger"]) == ("theirs 2", logger.name)
    assert theirs["exception"].endswith("base 10: 'as intended'")
    assert written.getvalue().count("Traceback") == 1


def test_the_handler_takes_structlogs_event_dicts(
    publisher: fanwire.EventPublisher, tap: Tap, logger: logging.Logger
) -> None:
    handler, written = formatted()
    logger.addHandler(events.RedisLogHandler())
    logger.addHandler(handler)
    log = wrapping(logger)
    log.info("ours", n=1)
    log.warning("named", level="mine", logger="mine", timestamp="mine")
    flushed(publisher)
    ours, named = tap.logs()
    assert ours.pop("timestamp")
    assert ours == {"event": "ours", "n": 1, "level": "info", "logger": logger.name}
    assert named == {
        "event": "named",
        "level": "mine",
        "logger": "mine",
        "timestamp": "mine",
    }
    # The next handler gets the event dict as it was.
    assert '{"n": 1, "event": "ours"}' in written.getvalue()


@pytest.mark.parametrize("form", ["True", "an exception", "a tuple"])
def test_exceptions_in_structlogs_event_dicts(
    publisher: fanwire.EventPublisher, tap: Tap, logger: logging.Logger, form: str
) -> None:
    logger.addHandler(events.RedisLogHandler())
    log = wrapping(logger)
    try:
        int("as intended")
    except ValueError as error:
        forms = {"True": True, "an exception": error, "a tuple": sys.exc_info()}
        log.exception("failed", exc_info=forms[form])
        log.exception("formatted already", exc_info=forms[form], exception="mine")
    log.bind(exc_info=True).error("there is none")
    flushed(publisher)
    failed, already, none = tap.logs()
    assert failed["exception"].startswith("Traceback (most recent call last)")
    assert failed["exception"].endswith("base 10: 'as intended'")
    assert already["exception"] == "mine"
    assert "exception" not in none
    assert not any("exc_info" in line for line in (failed, already, none))


def test_dicts_that_are_not_structlogs(logger: logging.Logger) -> None:
    handler = events.RedisLogHandler()
    record = logger.makeRecord(logger.name, logging.INFO, "x.py", 1, {"a": 1}, (), None)
    assert handler.line(record)["event"] == "{'a': 1}"


def test_event_dicts_that_a_queue_made_text_of(
    publisher: fanwire.EventPublisher, tap: Tap, logger: logging.Logger
) -> None:
    """The text is all there is; what structlog keeps on the record for itself is not published."""
    waiting: queue.Queue[logging.LogRecord] = queue.Queue()
    logger.addHandler(logging.handlers.QueueHandler(waiting))
    wrapping(logger).info("ours", n=1)
    events.RedisLogHandler().handle(waiting.get_nowait())
    flushed(publisher)
    [line] = tap.logs()
    assert line.keys() == {"event", "level", "logger", "timestamp"}
    assert "'event': 'ours'" in line["event"]
