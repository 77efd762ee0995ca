"""What a message looks like on the wire, with pydantic as the oracle."""

import json
from collections import Counter, OrderedDict, defaultdict
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_core import to_json

from tests.values import (
    ID,
    NOON,
    TREE,
    Amount,
    Colour,
    Custom,
    Inner,
    Items,
    Leaf,
    Level,
    Outer,
    Point,
    Point3,
    Ratio,
    Slotted,
    Stage,
    Words,
)
from tests.wire import Wire

SCALARS: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    2**63,
    2**64,
    2**200,
    -(2**70),
    0.0,
    -0.0,
    1.0,
    0.1,
    -2.5e-8,
    1e15,
    1e16,
    1e21,
    5e-324,
    1.7976931348623157e308,
    "",
    "text",
    'quotes " and \\ and / and \b\f\n\r\t',
    "nul \x00 and \x1f and \x7f",
    "ü 検査 🚀 \u2028\u2029 \ufeff \uffff",
    "e\u0301",
]
TIMES: list[Any] = [
    NOON,
    NOON.replace(microsecond=1),
    NOON.replace(microsecond=250_000),
    NOON.replace(tzinfo=UTC),
    NOON.replace(tzinfo=timezone(timedelta(hours=2))),
    NOON.replace(tzinfo=timezone(timedelta(hours=-9, minutes=-30)), microsecond=123_456),
    NOON.replace(tzinfo=timezone(timedelta(0), "GMT")),
    datetime.min,
    datetime.max,
    date(2026, 2, 20),
    date.min,
    time(12, 30),
    time(1, 2, 3, 45),
    time(1, 2, 3, tzinfo=UTC),
    timedelta(0),
    timedelta(days=1, hours=2, minutes=3, seconds=4, microseconds=5),
    timedelta(hours=-1),
    timedelta(days=-1, seconds=3),
    timedelta(milliseconds=1),
    timedelta(days=4000),
]
OTHERS: list[Any] = [
    ID,
    Colour.RED,
    Colour.MIXED,
    Level.HIGH,
    Stage.QUEUED,
    Decimal("1.10"),
    Decimal("-0"),
    Decimal("1E+5"),
    Decimal("123456789012345678901234567890.123456789"),
]
CONTAINERS: list[Any] = [
    {},
    [],
    (),
    set(),
    frozenset(),
    [1, [2, [3, []]]],
    (1, (2, "three")),
    {7},
    frozenset({"one"}),
    Point(1, 2.5),
    Point([1], None),  # type: ignore[arg-type]
    OrderedDict(b=1, a=2),
    defaultdict(list, a=[1]),
    Counter("aab"),
    {"z": 1, "a": {"nested": [None, True, {"deep": 1.5}]}},
    {"ü": "key", "": "empty", 'q"\\': "quotes", "\n": "newline"},
    {"model": TREE, "list": [TREE, Leaf(score=3)]},
    {"a": Inner(NOON, ["x"]), "b": [Slotted("s")]},
    {"ids": [ID], "at": NOON, "colour": Colour.RED, "price": Decimal("2.0")},
]
KEYS: list[Any] = [
    {1: "int", -5: "negative"},
    {True: "bool"},
    {None: "none"},
    {1.5: "float"},
    {ID: "uuid"},
    {date(2026, 2, 20): "date", NOON: "datetime"},
    {Colour.RED: "enum"},
    {Level.HIGH: "int enum"},
    {Stage.QUEUED: "str enum"},
    {Decimal("1.5"): "decimal"},
    {2**70: "big"},
]
STRUCTURED: list[Any] = [
    Outer(ID, Inner(NOON, ["a", "b"])),
    Slotted("text", 3),
    Slotted("text"),
]


@pytest.mark.parametrize(
    "value", SCALARS + TIMES + OTHERS + CONTAINERS + KEYS + STRUCTURED, ids=lambda v: ascii(v)[:40]
)
def test_the_text_is_that_of_pydantic(wire: Wire, value: Any) -> None:
    assert wire.send(value) == to_json(value).decode()
    assert wire.send({"nested": [value]}) == to_json({"nested": [value]}).decode()


@pytest.mark.parametrize(
    "model", [TREE, Leaf(score=1e16), Custom(secret="abc", length=timedelta(1))]
)
def test_a_model_encodes_itself(wire: Wire, model: BaseModel) -> None:
    assert wire.send(model) == model.model_dump_json()


def test_the_text_of_a_model_is_not_looked_at(wire: Wire) -> None:
    class Odd:
        def model_dump_json(self) -> str:
            return '{ "spaces":   1.0 , "big": 1e400}'

    assert wire.send(Odd()) == '{ "spaces":   1.0 , "big": 1e400}'


def test_a_model_with_its_own_nan_rule(wire: Wire) -> None:
    model = Leaf.model_construct(score=float("nan"), stage=Stage.QUEUED)
    assert wire.send(model) == model.model_dump_json()


def test_an_error_of_a_model_comes_out(wire: Wire) -> None:
    class Broken:
        def model_dump_json(self) -> str:
            raise LookupError("no such field")

    with pytest.raises(LookupError, match="no such field"):
        wire.send(Broken())


def test_a_model_class_is_no_message(wire: Wire) -> None:
    with pytest.raises(TypeError):
        wire.send(Leaf)
    with pytest.raises(TypeError):
        wire.send({"model": Leaf})


def test_a_dataclass_class_is_no_message(wire: Wire) -> None:
    with pytest.raises(TypeError):
        wire.send(Slotted)
    with pytest.raises(TypeError):
        wire.send([Point3])


def test_a_struct(wire: Wire) -> None:
    struct = Point3(1, NOON.replace(tzinfo=UTC), [Point3(2, NOON)])
    expected = msgspec.json.encode(struct).decode()
    assert wire.send(struct) == expected
    assert wire.send({"nested": [struct]}) == f'{{"nested":[{expected}]}}'


def test_a_set_of_several(wire: Wire) -> None:
    assert sorted(json.loads(wire.send({1, 2, 3}))) == [1, 2, 3]
    assert sorted(json.loads(wire.send({"in": frozenset("abc")}))["in"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "value", [Words("ü"), Amount(5), Ratio(1.5), Items([1, Words("x")]), {Words("k"): Amount(1)}]
)
def test_subclasses_of_plain_types(wire: Wire, value: Any) -> None:
    assert wire.send(value) == to_json(value).decode()


# Anything that JSON can say


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=5)
    ),
    max_leaves=30,
)


@given(value=json_values)
def test_json_comes_back_as_it_was(wire: Wire, value: Any) -> None:
    text = wire.send(value)
    assert json.loads(text) == value
    assert text == to_json(value).decode()


@given(value=st.datetimes() | st.timedeltas() | st.dates() | st.times() | st.uuids())
def test_times_are_those_of_pydantic(wire: Wire, value: Any) -> None:
    assert wire.send([value]) == to_json([value]).decode()


@given(value=st.decimals(allow_nan=False, allow_infinity=False))
def test_decimals_are_those_of_pydantic(wire: Wire, value: Decimal) -> None:
    assert wire.send({"d": value}) == to_json({"d": value}).decode()


@given(zone=st.integers(-24 * 3600 + 1, 24 * 3600 - 1), micros=st.integers(0, 999_999))
def test_offsets_are_those_of_pydantic(wire: Wire, zone: int, micros: int) -> None:
    whole_minutes = timedelta(minutes=int(zone / 60))
    value = NOON.replace(tzinfo=timezone(whole_minutes), microsecond=micros)
    assert wire.send(value) == to_json(value).decode()
