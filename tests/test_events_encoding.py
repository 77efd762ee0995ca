"""What goes out is what ``orjson.dumps(value, default=str)`` makes of it, byte for byte.

Its faults are not copied: the tests leave out the values that show them.
"""

import collections
import dataclasses
import decimal
import enum
import fractions
import pathlib
import types
import uuid
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any, ClassVar

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fanwire
from tests.events import Tap, flushed
from tests.redis_server import RedisServer
from tests.values import TREE, Colour, Inner, Level, Outer, Point, Slotted, Stage


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


class Row(list):  # type: ignore[type-arg]
    pass


class Table(dict):  # type: ignore[type-arg]
    pass


class Pair(tuple):  # type: ignore[type-arg]
    __slots__ = ()


class Moment(datetime):
    pass


class Says:
    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


class SaysText:
    def __str__(self) -> str:
        return Text("of a subclass")


class Meta(type):
    def __str__(cls) -> str:
        return "a class that speaks"


class OfMeta(metaclass=Meta):
    pass


class Flags(enum.IntFlag):
    A = 1
    B = 2


class Odd(enum.Enum):
    CLASS = object
    NESTED = Inner(datetime(2026, 1, 2), ["a"])
    LIST = [Colour.RED, {1}]  # noqa: RUF012


@dataclasses.dataclass
class Hidden:
    shown: int
    _hidden: int = 2
    constant: ClassVar[int] = 3
    unknown: Any = None


@dataclasses.dataclass(slots=True)
class HiddenSlots:
    shown: int
    _hidden: int = 2
    constant: ClassVar[int] = 3
    unknown: Any = None


@dataclasses.dataclass(slots=True)
class MoreSlots(HiddenSlots):
    more: int = 9


@dataclasses.dataclass
class Initialised(Hidden):
    given: dataclasses.InitVar[int] = 1

    def __post_init__(self, given: int) -> None:
        self.added = given


@dataclasses.dataclass
class Named(str):
    a: int = 1


class Undecorated(Hidden):
    pass


@dataclasses.dataclass
class Bare:
    later: int = dataclasses.field(init=False, repr=False)


AMSTERDAM = zoneinfo.ZoneInfo("Europe/Amsterdam")
VALUES: list[Any] = [
    None, True, False, 0, -1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63),
    0.0, -0.0, 0.1, 1.0, 1e15, 1e16, 1e21, 1e22, -2.5e-8, 5e-324, 1.7976931348623157e308,
    float("nan"), float("inf"), float("-inf"),
    "", "ä€😀", "\x00\x07\x08\t\n\x0b\x0c\r\x1b\x1f\x7f\u2028\"\\/</script>", "x" * 3000,
    [], {}, (), [[]], [{}], ({},), {"": ""}, {"a": {"b": [1, (2, [3])]}},
    Text("t"), Whole(5), Real(1.5), Real("nan"), Row([1]), Table(a=1), Pair((1,)), Point(1, 2.0),
    {"key": Text("value")}, collections.OrderedDict(b=1, a=2), collections.Counter("aab"),
    collections.defaultdict(list, a=[1]), collections.deque([1, 2]), types.MappingProxyType({}),
    {7}, frozenset([7]), b"bytes", bytearray(b"bytes"), range(3), 1j, ..., int, Outer, Meta, OfMeta,
    decimal.Decimal("1.50"), fractions.Fraction(1, 3), pathlib.PurePosixPath("/tmp/ä"),
    ValueError("what went wrong"), Says("something"), SaysText(), timedelta(days=1, seconds=2),
    uuid.UUID(int=2**100), Colour.RED, Colour.MIXED, Level.HIGH, Stage.QUEUED, Flags.A | Flags.B,
    *Odd,
    datetime(2026, 11, 21, 12, 30), datetime(1, 1, 1, microsecond=10),
    datetime(2026, 11, 21, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=AMSTERDAM),
    datetime(1900, 1, 1, tzinfo=AMSTERDAM),  # nineteen minutes and thirty-two seconds from UTC
    datetime(2026, 1, 1, tzinfo=timezone(-timedelta(hours=5, minutes=30, seconds=20))),
    datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1, microseconds=1))),
    datetime(2026, 1, 1, tzinfo=timezone(-timedelta(seconds=20))),
    Moment(2026, 11, 21), date(2026, 11, 21), date(1, 1, 1), time(1, 2, 3), time(1, 2, 3, 4),
    Inner(datetime(2026, 1, 1), ["t"]),
    Outer(uuid.UUID(int=1), Inner(datetime(2026, 1, 1), [])), Slotted("s", 1), Slotted("s"),
    Hidden(1, unknown={5}), HiddenSlots(1, unknown=b""), MoreSlots(1), Initialised(1),
    Named(7), Undecorated(1), Bare(), TREE,
]  # fmt: skip
REFUSED: list[Any] = [
    2**64, -(2**63) - 1, Whole(2**70), "\ud800", {"\ud800": 1}, {1: 1}, {None: 1}, {Text("k"): 1},
    {Stage.QUEUED: 1}, {b"k": 1}, time(1, 2, tzinfo=UTC),
]  # fmt: skip


@pytest.fixture(scope="module")
def wire(session_redis: RedisServer) -> Iterator[tuple[fanwire.EventPublisher, Tap]]:
    tap = Tap(session_redis, "encoding")
    options: dict[str, Any] = {"namespace": "encoding", "max_line_bytes": 1 << 20}
    with fanwire.EventPublisher(session_redis.url, **options) as publisher:
        yield publisher, tap
    tap.close()


def check(wire: tuple[fanwire.EventPublisher, Tap], *values: Any) -> None:
    """Each as a log line, as data, and among stats."""
    publisher, tap = wire
    for value in values:
        publisher.publish_log(value)
        publisher.publish_log({"event": value})
        publisher.publish_event("e", {"value": value})
        publisher.publish_stats({"timestamp": "t", "value": value})
    flushed(publisher)
    payloads = [payload for _, payload in tap.payloads()]
    assert len(payloads) == 4 * len(values), publisher.stats()
    for n, value in enumerate(values):
        alone, line, event, stats = payloads[4 * n : 4 * n + 4]
        expected = orjson.dumps(value, default=str)
        assert alone == expected
        assert line == b'{"event":' + expected + b"}"
        assert event.endswith(b'","data":{"value":' + expected + b"}}")
        assert stats == b'{"timestamp":"t","value":' + expected + b"}"


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}")
def test_as_orjson(wire: tuple[fanwire.EventPublisher, Tap], value: Any) -> None:
    check(wire, value)


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: f"{type(value).__name__}")
def test_refused_as_by_orjson(wire: tuple[fanwire.EventPublisher, Tap], value: Any) -> None:
    with pytest.raises(TypeError):
        orjson.dumps(value, default=str)
    with pytest.raises(TypeError):
        wire[0].publish_event("e", {"value": value})


def test_the_same_depth_as_orjson(wire: tuple[fanwire.EventPublisher, Tap]) -> None:
    values: list[Any] = [1, 1]
    for _ in range(252):  # and two levels of the event around it
        values = [[values[0]], {"a": values[1]}]
    publisher, tap = wire
    for value in values:
        publisher.publish_event("deep", {"value": value})
        for more in ([value], {"a": value}):
            with pytest.raises(TypeError):
                orjson.dumps({"data": {"value": more}}, default=str)
            with pytest.raises(TypeError, match="254 levels"):
                publisher.publish_event("too deep", {"value": more})
    flushed(publisher)
    deep = [payload.partition(b'"data":')[2][:-1] for _, payload in tap.payloads()]
    assert deep == [orjson.dumps({"value": value}) for value in values]


_text = st.text(st.characters(exclude_categories=["Cs"]))
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    _text,
    st.binary(),
    st.datetimes(),
    st.datetimes(timezones=st.sampled_from([UTC, AMSTERDAM, timezone(timedelta(hours=-3))])).filter(
        # The offsets of long ago have seconds, of which orjson may make a sixtieth minute.
        lambda moment: moment.year > 1940
    ),
    st.dates(),
    # Of other fractions orjson loses a zero in front.
    st.times().filter(lambda moment: moment.microsecond == 0 or moment.microsecond >= 100_000),
    st.timedeltas(),
    st.uuids(),
    st.decimals(),
    st.fractions(),
    st.complex_numbers(),
    st.sampled_from([Colour.RED, Colour.MIXED, Level.HIGH, Stage.QUEUED, Flags.B]),
    st.builds(Text, _text),
    st.builds(Says, _text),
    st.builds(Slotted, _text, st.none() | st.integers(0, 9)),
    st.builds(Hidden, st.integers(0, 9), unknown=st.sets(st.integers(0, 9), max_size=1)),
    st.builds(Point, st.integers(0, 9), st.floats(0, 1)),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.lists(inner).map(Row),
        st.dictionaries(_text, inner),
        st.dictionaries(_text, inner).map(Table),
        st.builds(Hidden, inner, unknown=inner),
        st.builds(HiddenSlots, inner, unknown=inner),
    ),
)


@given(values=st.lists(_values, max_size=5))
def test_as_orjson_whatever_it_is(
    wire: tuple[fanwire.EventPublisher, Tap], values: list[Any]
) -> None:
    check(wire, *values)
