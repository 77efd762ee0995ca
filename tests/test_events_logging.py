"""Log lines of the standard library, and none of fanwire's own."""

import io
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

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


def test_records_of_the_standard_library(
    publisher: fanwire.EventPublisher, tap: Tap, logger: logging.Logger
) -> None:
    logger.addHandler(events.RedisLogHandler(level="INFO"))
    begun = datetime.now()
    logger.debug("less serious")
    logger.info("read %s of %d", "all", 3, extra={"user": 7})
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


def test_extras_that_a_line_has_already(logger: logging.Logger) -> None:
    """They come under another name: nothing that was logged is lost without a word."""
    handler = events.RedisLogHandler()
    given = {"event": {"id": 1}, "level": "high", "logger": logger.name, "extra_level": 3}
    record = logger.makeRecord(logger.name, logging.INFO, "x.py", 1, "read", (), None, extra=given)
    line = handler.line(record)
    assert line.pop("timestamp")
    assert line == {
        "event": "read",
        "level": "info",
        "logger": logger.name,
        "extra_event": {"id": 1},
        "extra_level": "high",
        "extra_extra_level": 3,
    }


def test_extras_called_as_what_comes_of_an_exception(logger: logging.Logger) -> None:
    given = {"exception": "mine", "stack": "mine"}
    info = (ValueError, ValueError("theirs"), None)
    arguments = (logger.name, logging.INFO, "x.py", 1, "failed", ())
    failed = logger.makeRecord(*arguments, info, extra=given)
    plain = logger.makeRecord(*arguments, None, extra=given)
    line = events.RedisLogHandler().line(failed)
    assert (line["exception"], line["extra_exception"]) == ("ValueError: theirs", "mine")
    assert line["stack"] == "mine"
    line = events.RedisLogHandler().line(plain)
    assert (line["exception"], line["stack"]) == ("mine", "mine")


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
