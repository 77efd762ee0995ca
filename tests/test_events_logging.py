"""Log lines of structlog and of the standard library, and none of fanwire's own."""

import io
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest
import structlog

import fanwire
from fanwire import events
from tests.conftest import Unique
from tests.deadlines import until_blocking
from tests.events import Tap, flushed, settled
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


def test_before_and_after_initialisation(redis_server: RedisServer) -> None:
    assert events.get_publisher() is None
    line = {"event": "nobody hears"}
    assert events.redis_log_processor(None, "info", line) is line
    events.RedisLogHandler().handle(logging.makeLogRecord({"msg": "nobody hears"}))
    first = events.init_publisher(redis_server.url)
    assert events.get_publisher() is first
    second = events.init_publisher(redis_server.url, namespace="other")
    assert events.get_publisher() is second and second.CHANNEL_LOGS == "other:logs"
    assert not first.closed
    events._publisher = None


def test_the_url_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://from-redis-url:1")
    monkeypatch.setenv("FANWIRE_URL", "")
    assert events.init_publisher().url == "redis://from-redis-url:1"
    monkeypatch.setenv("FANWIRE_URL", "redis://from-fanwire-url:2")
    assert events.init_publisher(namespace="shop").url == "redis://from-fanwire-url:2"
    assert events.init_publisher(redis_url="redis://given:3").url == "redis://given:3"
    with pytest.raises(fanwire.ConfigError):
        events.init_publisher("")
    assert not caplog.records
    monkeypatch.delenv("REDIS_URL")
    monkeypatch.delenv("FANWIRE_URL")
    assert events.init_publisher().url == "memory://"
    [told] = caplog.records
    assert (told.name, told.levelname) == ("fanwire", "WARNING")
    assert "FANWIRE_URL" in told.getMessage() and "memory://" in told.getMessage()
    events._publisher = None


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


def test_records_of_the_standard_library(
    publisher: fanwire.EventPublisher, tap: Tap, logger: logging.Logger
) -> None:
    logger.addHandler(events.RedisLogHandler(level="INFO"))
    begun = datetime.now()
    logger.debug("less serious")
    logger.info("read %s of %d", "all", 3, extra={"user": 7, "level": "not this"})
    try:
        int("as intended")
    except ValueError:
        logger.exception("failed", stack_info=True)
    flushed(publisher)
    read, failed = tap.logs()
    moment = datetime.fromisoformat(read.pop("timestamp"))
    assert begun <= moment <= datetime.now()
    assert read == {"event": "read all of 3", "level": "info", "logger": logger.name, "user": 7}
    assert (failed["event"], failed["level"]) == ("failed", "error")
    assert failed["exception"].startswith("Traceback (most recent call last)")
    assert failed["exception"].endswith("base 10: 'as intended'")
    assert failed["stack"].startswith("Stack (most recent call last)")


def test_a_handler_with_a_publisher_of_its_own(
    redis_server: RedisServer, logger: logging.Logger, unique: Unique
) -> None:
    tap = Tap(redis_server, unique("own"))
    with fanwire.EventPublisher(redis_server.url, namespace=unique("own")) as own:
        handler = events.RedisLogHandler(own)
        handler.addFilter(lambda record: "secret" not in record.getMessage())
        logger.addHandler(handler)
        logger.info("a secret")
        logger.info("none")
        flushed(own)
    assert [line["event"] for line in tap.logs()] == ["none"]
    tap.close()


def test_arguments_that_do_not_fit(
    publisher: fanwire.EventPublisher,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As with any handler: told on stderr, and the program goes on."""
    monkeypatch.setattr(logging, "raiseExceptions", True)
    record = logging.makeLogRecord({"msg": "%d", "args": ("no number",)})
    events.RedisLogHandler().handle(record)
    assert "--- Logging error ---" in capsys.readouterr().err


class Talkative:
    """Logs whenever it is shown."""

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger

    def __str__(self) -> str:
        self.logger.info("about to be shown", extra={"what": self})
        return "shown"


def test_a_line_that_logs_while_it_is_encoded(
    publisher: fanwire.EventPublisher, tap: Tap, logger: logging.Logger
) -> None:
    logger.addHandler(events.RedisLogHandler())
    logger.info("first", extra={"value": Talkative(logger)})
    publisher.publish_event("second", {"value": Talkative(logger)})
    flushed(publisher)
    lines = [
        (channel, message.get("event") or message.get("type"))
        for channel, message in tap.messages()
    ]
    # What an event logs is a line of its own; what a line logs while it is made is not.
    assert lines == [("logs", "first"), ("logs", "about to be shown"), ("events", "second")]
    assert publisher.stats()["reentrant"] == 2


def test_fanwires_own_lines_are_not_published(
    own_redis: RedisServer, tap: Tap, unique: Unique
) -> None:
    """Though everything that is logged goes to the publisher, its trouble included."""
    handler, heard = events.RedisLogHandler(), list[str]()

    class Relay(logging.Handler):
        """What logs in turn because fanwire logged."""

        def emit(self, record: logging.LogRecord) -> None:
            if record.name == "fanwire":
                heard.append(record.getMessage())
                logging.getLogger("alarm").warning("fanwire says: %s", record.getMessage())

    relay, root = Relay(), logging.getLogger()
    own_redis.kill()
    publisher = events.init_publisher(own_redis.url)
    for each in (handler, relay):
        root.addHandler(each)
    try:
        logging.getLogger(unique("app")).warning("one")
        until_blocking(lambda: publisher.stats()["outages"] == 1, "the outage is noticed")
        logging.getLogger(unique("app")).warning("two")
        publisher.publish_log({"value": {1: 2}})
    finally:
        for each in (handler, relay):
            root.removeHandler(each)
    assert any("cannot be published" in text for text in heard)
    assert any("line['value']" in text for text in heard)
    own_redis.start()
    stats = settled(publisher)
    assert (stats["published"], stats["unencodable"]) == (2, 1)
    assert stats["reentrant"] >= 2
    publisher.close()
    events._publisher = None


def test_many_threads_and_handlers(
    publisher: fanwire.EventPublisher, tap: Tap, logger: logging.Logger
) -> None:
    logger.addHandler(events.RedisLogHandler())
    logger.addHandler(logging.StreamHandler(io.StringIO()))
    logger.addHandler(events.RedisLogHandler())
    barrier = threading.Barrier(6)

    def work(thread: int) -> None:
        barrier.wait()
        for n in range(200):
            logger.info("step", extra={"worker": thread, "n": n})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    flushed(publisher)
    lines = tap.logs()
    for thread in range(6):
        mine = [line["n"] for line in lines if line["worker"] == thread]
        assert mine == [n for n in range(200) for _ in range(2)]
