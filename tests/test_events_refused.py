"""Bad input: a log line never breaks its program; an event that is none is told to its author."""

import logging
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fanwire
from tests.events import Tap, flushed
from tests.redis_server import RedisServer


@pytest.fixture
def publisher(redis_server: RedisServer) -> Iterator[fanwire.EventPublisher]:
    with fanwire.EventPublisher(redis_server.url) as publisher:
        yield publisher


@pytest.fixture
def terse(redis_server: RedisServer) -> Iterator[fanwire.EventPublisher]:
    with fanwire.EventPublisher(redis_server.url, max_line_bytes=1000) as publisher:
        yield publisher


@pytest.fixture
def tap(redis_server: RedisServer) -> Iterator[Tap]:
    tap = Tap(redis_server)
    yield tap
    tap.close()


class Unspeakable:
    def __str__(self) -> str:
        raise LookupError("no words")


class Wordless:
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307


def circular() -> Any:
    inner: list[Any] = []
    inner.append({"again": inner})
    return inner


def nested(levels: int) -> Any:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


UNFIT: dict[str, Any] = {
    "circular": circular(),
    "a key that is no str": {1: 2},
    "a key that is an unhashed tuple": {(1, 2): 3},
    "a wide int": 2**64,
    "a lone surrogate": "\ud800",
    "a lone surrogate as key": {"\udcff": 1},
    "str() raises": Unspeakable(),
    "str() returns no str": Wordless(),
    "too deep": nested(260),
}
unfit = pytest.mark.parametrize("value", UNFIT.values(), ids=UNFIT.keys())


@unfit
def test_a_line_that_has_no_json_form_is_counted(
    publisher: fanwire.EventPublisher, tap: Tap, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for line in ({"event": "bad", "value": value}, {"nested": [{"deeper": (value,)}]}):
        publisher.publish_log(line)
    publisher.publish_log({"event": "good"})
    flushed(publisher)
    assert tap.logs() == [{"event": "good"}]
    assert publisher.stats()["unencodable"] == 2
    (record,) = caplog.records
    assert record.name == "fanwire" and record.levelno == logging.WARNING
    assert "line['value']" in record.getMessage()
    assert len(record.getMessage()) < 400  # a circle's path is hundreds of steps long


@unfit
def test_an_event_or_stats_without_json_form_are_refused(
    publisher: fanwire.EventPublisher, tap: Tap, value: Any
) -> None:
    with pytest.raises(TypeError, match=r"data\['value'\]\[0\]"):
        publisher.publish_event("bad", {"value": [value]})
    with pytest.raises(TypeError, match=r"stats\['value'\]"):
        publisher.publish_stats({"value": value})
    assert publisher.stats()["unencodable"] == 0
    flushed(publisher)
    assert tap.payloads() == []


def test_the_cause_is_chained(publisher: fanwire.EventPublisher) -> None:
    with pytest.raises(TypeError, match=r"Unspeakable") as raised:
        publisher.publish_event("bad", {"value": Unspeakable()})
    assert isinstance(raised.value.__cause__, LookupError)


@pytest.mark.parametrize("kind", [None, 1, b"bytes", ["type"]])
def test_an_event_type_is_a_str(publisher: fanwire.EventPublisher, kind: Any) -> None:
    with pytest.raises(TypeError, match="event_type must be str"):
        publisher.publish_event(kind)


@pytest.mark.parametrize("stats", [None, 1, "text", [("a", 1)], {1: 2}])
def test_stats_are_a_mapping_with_names(publisher: fanwire.EventPublisher, stats: Any) -> None:
    with pytest.raises(TypeError):
        publisher.publish_stats(stats)


def test_events_and_stats_that_are_too_large(redis_server: RedisServer) -> None:
    tap = Tap(redis_server)
    with fanwire.EventPublisher(redis_server.url, max_message_bytes=500) as publisher:
        for value in ("x" * 500, ["x"] * 300, {"a": "ä" * 250}, {str(n): n for n in range(100)}):
            with pytest.raises(ValueError, match="500 bytes"):
                publisher.publish_event("large", {"value": value})
            with pytest.raises(ValueError, match="500 bytes"):
                publisher.publish_stats({"value": value})
        publisher.publish_event("fits", {"value": "x" * 300})
        flushed(publisher)
    assert [message["type"] for _, message in tap.messages()] == ["fits"]
    tap.close()


def test_what_is_larger_than_all_that_may_wait(redis_server: RedisServer) -> None:
    tap = Tap(redis_server)
    with fanwire.EventPublisher(redis_server.url, max_pending_bytes=400) as publisher:
        with pytest.raises(ValueError, match="400 bytes"):
            publisher.publish_event("large", {"value": "x" * 400})
        publisher.publish_log({"event": "y" * 400})
        flushed(publisher)
    (line,) = tap.logs()
    assert line["fanwire.truncated"] and line["event"].startswith("yyy")
    tap.close()


def test_a_structure_that_would_never_end(publisher: fanwire.EventPublisher, tap: Tap) -> None:
    """Forty levels of pairs of the same thing are a million million members."""
    value: list[Any] = []
    for _ in range(40):
        value = [value, value]
    with pytest.raises(ValueError, match="bytes"):
        publisher.publish_event("bomb", {"value": value})
    publisher.publish_log({"event": "bomb", "value": value, "level": "info"})
    flushed(publisher)
    (line,) = tap.logs()
    assert (line["event"], line["level"], line["fanwire.truncated"]) == ("bomb", "info", True)


def test_a_long_line_is_cut_and_marked(terse: fanwire.EventPublisher, tap: Tap) -> None:
    terse.publish_log(
        {
            "event": "saved",
            "level": "info",
            "text": '"quoted"\n' * 10_000,
            "count": 3,
            "rows": [{"n": n} for n in range(1000)],
            "error": ValueError("z" * 5000),
        }
    )
    terse.publish_log({"event": "just short enough", "text": "x" * 955})
    flushed(terse)
    payloads = [payload for _, payload in tap.payloads()]
    assert all(len(payload) <= 1000 for payload in payloads)
    long, short = map(orjson.loads, payloads)
    assert (long["event"], long["level"], long["count"]) == ("saved", "info", 3)
    assert long["text"].startswith('"quoted"\n"quo') and long["text"].endswith("…")
    assert long["rows"].startswith('[{"n":0},{"n":1}') and long["rows"].endswith("…")
    assert long["error"].startswith("zzzz") and long["error"].endswith("…")
    assert long["fanwire.truncated"] is True
    assert len(payloads[0]) > 900
    assert "fanwire.truncated" not in short
    assert terse.stats()["truncated"] == 1


_leaves = st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=400), st.binary(max_size=300))
_values = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(), inner, max_size=10),
    max_leaves=60,
)


@pytest.fixture(scope="module")
def endless(session_redis: RedisServer) -> Iterator[tuple[fanwire.EventPublisher, Tap]]:
    tap = Tap(session_redis, "cut")
    with fanwire.EventPublisher(
        session_redis.url, namespace="cut", max_line_bytes=300
    ) as publisher:
        yield publisher, tap
    tap.close()


@given(line=st.dictionaries(st.text(max_size=60), _values, max_size=12) | _values)
def test_whatever_comes_out_is_json_within_the_limit(
    endless: tuple[fanwire.EventPublisher, Tap], line: Any
) -> None:
    publisher, tap = endless
    publisher.publish_log(line)
    flushed(publisher)
    ((_, payload),) = tap.payloads()
    whole = orjson.dumps(line, default=str)
    if len(whole) <= 300:
        assert payload == whole
        return
    assert len(payload) <= 300
    short = orjson.loads(payload)
    assert short["fanwire.truncated"] is True
    if isinstance(line, dict):
        assert set(short) - {"fanwire.truncated"} <= set(line)


def test_an_interruption_is_not_swallowed(publisher: fanwire.EventPublisher) -> None:
    class Interrupting:
        def __str__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publisher.publish_log({"value": Interrupting()})
    with pytest.raises(KeyboardInterrupt):
        publisher.publish_event("e", {"value": Interrupting()})
    assert publisher.stats()["unencodable"] == 0


def test_a_dict_that_changes_while_it_is_encoded(
    publisher: fanwire.EventPublisher, tap: Tap
) -> None:
    line: dict[str, Any] = {"a": 1}
    items: list[Any] = []

    class Meddler:
        def __str__(self) -> str:
            line.clear()
            line.update({str(n): n for n in range(50)})
            items.clear()
            return "meddled"

    line["b"], line["c"] = Meddler(), 2
    publisher.publish_log(line)
    items.extend([Meddler(), 1, 2, 3])
    publisher.publish_log({"items": items})
    flushed(publisher)
    assert tap.logs() == [{"a": 1, "b": "meddled", "c": 2}, {"items": ["meddled"]}]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"namespace": ""}, "namespace"),
        ({"max_pending_messages": 0}, "max_pending_messages"),
        ({"max_pending_bytes": 0}, "max_pending_bytes"),
        ({"max_line_bytes": 127}, "max_line_bytes"),
        ({"max_message_bytes": 0}, "max_message_bytes"),
        ({"connect_timeout_seconds": 0}, "connect_timeout_seconds"),
        ({"publish_timeout_seconds": float("nan")}, "publish_timeout_seconds"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], text: str) -> None:
    with pytest.raises(fanwire.ConfigError, match=text):
        fanwire.EventPublisher("memory://", **options)


def test_a_url_that_makes_no_sense_is_told_without_its_secrets() -> None:
    with pytest.raises(fanwire.ConfigError) as raised:
        fanwire.EventPublisher("amqp://app:hunter2@localhost")
    assert "hunter2" not in str(raised.value)
    publisher = fanwire.EventPublisher("redis://app:hunter2@localhost:1")
    assert publisher.url == "redis://app:***@localhost:1"
    assert repr(publisher) == 'EventPublisher("redis://app:***@localhost:1")'


@pytest.mark.parametrize("limit", [1 << 62, (1 << 63) - 1, (1 << 64) - 1])
def test_limits_may_be_as_large_as_a_number_can_be(redis_server: RedisServer, limit: int) -> None:
    tap = Tap(redis_server)
    with fanwire.EventPublisher(
        redis_server.url,
        max_line_bytes=limit,
        max_message_bytes=limit,
        max_pending_messages=limit,
        max_pending_bytes=limit,
    ) as publisher:
        publisher.publish_log({"event": "x" * 1000, "more": [1, 2]})
        flushed(publisher)
    assert [message["event"] for _, message in tap.messages()] == ["x" * 1000]
    tap.close()
