"""Messages: what comes out is what went in, each handler's own, or a clear error says where."""

import asyncio
import dataclasses
import json
import math
import random
import weakref
from collections import OrderedDict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import fanwire
from tests import pubsub
from tests.pubsub import (
    Backend,
    PubSub,
    Recorder,
    every_kind,
    served_kinds,
    settled,
    travelling_kinds,
)
from tests.values import ID, NOON, Colour, Point, Slotted

backend = pubsub.backend

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
    2**64 - 1,
    2**64,
    -(2**64),
    10**100,
    0.0,
    -0.0,
    1.0,
    0.1,
    1e16,
    1e22,
    -2.5e-8,
    5e-324,
    1.7976931348623157e308,
    "",
    "text",
    'quotes " and \\ and / and \b\f\n\r\t',
    "nul \x00 and \x1f and \x7f",
    "ü 検査 🚀 \u2028\u2029 \ufeff \uffff",
    "x" * 100_000,
]
CONTAINERS: list[Any] = [
    [],
    {},
    [[], {}, [[]]],
    {"a": {"b": {"c": [1, [2, [3, None]]]}}},
    {"": 0, "ü": 1, 'q"\\': 2, "\n\x00": 3},
    {"topic": "x", "message": "y", "except": "z"},
    [2**70, -(2**70), [2**70], {"n": 2**70}],
    list(range(10_000)),
    {f"key {n}": n for n in range(1_000)},
]


def nested(depth: int) -> Any:
    message: Any = "bottom"
    for level in range(depth):
        message = [message] if level % 2 else {"a": message}
    return message


async def heard_by_two(instance: PubSub, message: Any) -> tuple[Any, Any]:
    """What two sessions get of a message."""
    recorders = [Recorder("s1"), Recorder("s2")]
    for recorder in recorders:
        await instance.subscribe_topic(recorder.name, "t", recorder)
    await instance.broadcast("t", message)
    (one,), (other,) = [await recorder.received(1) for recorder in recorders]
    for recorder in recorders:
        await instance.unsubscribe_all(recorder.name)
    return one, other


# What comes out


@every_kind
async def test_what_json_can_carry_arrives_as_it_was(backend: Backend) -> None:
    instance = await backend.started()
    for message in [*SCALARS, *CONTAINERS]:
        for arrived in await heard_by_two(instance, message):
            assert (type(arrived), repr(arrived)) == (type(message), repr(message))


@every_kind
async def test_nesting_of_a_reasonable_depth(backend: Backend) -> None:
    instance = await backend.started()
    assert await heard_by_two(instance, nested(100)) == (nested(100), nested(100))


@travelling_kinds
async def test_integers_of_any_size(backend: Backend) -> None:
    """4,300 digits are as many as Python itself reads without being told to."""
    instance = await backend.started()
    for number in (10**1_000, -(10**4_000), 10**4_299):
        assert await heard_by_two(instance, [number]) == ([number], [number])


@travelling_kinds
async def test_what_becomes_something_else_on_its_way(backend: Backend) -> None:
    """Tuples are lists, keys are strings, and a dataclass is a dict: as JSON has it."""
    instance = await backend.started()
    became: list[tuple[Any, Any]] = [
        ((1, (2, 3)), [1, [2, 3]]),
        ({2: "a", True: "b", 1.5: "c"}, {"2": "a", "true": "b", "1.5": "c"}),
        (Point(1, 2.5), [1, 2.5]),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (Slotted("text", 3), {"text": "text", "number": 3}),
        (
            {"at": NOON, "id": ID, "colour": Colour.RED},
            {"at": "2026-02-20T12:00:00", "id": str(ID), "colour": "red"},
        ),
    ]
    for message, expected in became:
        for arrived in await heard_by_two(instance, message):
            assert arrived == expected
            assert type(arrived) is type(expected)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=4
        )
    ),
    max_leaves=20,
)


@given(messages=st.lists(JSON, max_size=5))
def test_anything_that_json_can_carry(messages: list[Any]) -> None:
    async def main() -> None:
        instance, recorder = fanwire.MemoryPubSub(json=True), Recorder()
        await instance.subscribe_topic("s", "t", recorder)
        for message in messages:
            await instance.broadcast("t", message)
        assert repr(await recorder.received(len(messages))) == repr(messages)

    asyncio.run(main())


@served_kinds
async def test_a_thousand_random_messages_through_the_broker(backend: Backend) -> None:
    chance, characters = random.Random(11), [*range(0xD800), 0x1F680]

    def anything(depth: int = 0) -> Any:
        kind = chance.randrange(8 if depth < 4 else 6)
        if kind == 6:
            return [anything(depth + 1) for _ in range(chance.randrange(4))]
        if kind == 7:
            return {str(n): anything(depth + 1) for n in range(chance.randrange(4))}
        text = "".join(map(chr, chance.choices(characters, k=5)))
        big = chance.randrange(-(2**80), 2**80)
        return [None, chance.random() < 0.5, big, chance.uniform(-1e9, 1e9), text, ""][kind]

    messages = [anything() for _ in range(1_000)]
    instance, recorder = await backend.started(), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    for start in range(0, 1_000, 100):
        await asyncio.gather(*(instance.broadcast("t", m) for m in messages[start : start + 100]))
    assert repr(await recorder.received(1_000)) == repr(messages)


# Whose it is


@travelling_kinds
async def test_no_handler_can_change_what_another_gets(backend: Backend) -> None:
    instance = await backend.started()
    original = {"list": [1, {"deep": [2]}], "dict": {"k": "v"}}
    expected = json.loads(json.dumps(original))
    seen = Recorder()

    async def spoil(topic: str, message: Any) -> None:
        await seen(topic, json.loads(json.dumps(message)))
        message["list"][1]["deep"].append("spoilt")
        message["list"].clear()
        message["dict"]["more"] = "spoilt"
        message["new"] = "spoilt"

    for n in range(20):
        await instance.subscribe_topic(f"s{n}", "t", spoil)
        await instance.subscribe_topic("one session of two topics", f"t{n % 2}", spoil)
    await instance.broadcast("t", original)
    await instance.broadcast("t0", original)
    await instance.broadcast("t1", original)
    assert await seen.received(22) == [expected] * 22
    assert original == expected


@travelling_kinds
async def test_what_is_changed_after_the_broadcast_is_not_changed_on_its_way(
    backend: Backend,
) -> None:
    instance, recorder = await backend.started(), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    message: list[Any] = [0]
    for n in range(1, 20):
        await instance.broadcast("t", message)
        message[0] = n
        message.append(n)
    await settled(instance, "s")
    assert [arrived[0] for arrived in recorder.messages] == list(range(19))


# As PyView's own hub has it


@dataclasses.dataclass
class Counted:
    count: int
    what: Any


async def test_memory_hands_over_the_object_itself() -> None:
    instance = fanwire.MemoryPubSub()
    messages: list[Any] = [object(), Counted(1, len), Recorder, b"bytes", {1, 2}, math.nan]
    messages += ["\ud800", nested(5_000), {(1, 2): "key"}, RuntimeError("an error"), [object()]]
    recorders = [Recorder("s1"), Recorder("s2")]
    for recorder in recorders:
        await instance.subscribe_topic(recorder.name, "t", recorder)
    for message in messages:
        await instance.broadcast("t", message)
    for recorder in recorders:
        assert len(await recorder.received(len(messages))) == len(messages)
        for arrived, message in zip(recorder.messages, messages, strict=True):
            assert arrived is message


async def test_memory_lets_the_object_go() -> None:
    instance, done = fanwire.MemoryPubSub(), Recorder()

    async def handler(topic: str, message: Any) -> None:
        await done(topic, None)

    await instance.subscribe_topic("s", "t", handler)
    message = Recorder("as a message")
    gone = weakref.ref(message)
    await instance.broadcast("t", message)
    await instance.broadcast("nobody listens", message)
    await done.received(1)
    del message
    await settled(instance, "s")
    assert gone() is None


async def test_objects_on_their_own_instances() -> None:
    one, other = fanwire.MemoryPubSub(), fanwire.MemoryPubSub()
    mine, not_mine = Recorder(), Recorder()
    await one.subscribe_topic("s", "t", mine)
    await other.subscribe_topic("s", "t", not_mine)
    await one.broadcast("t", 1)
    await settled(one, "s")
    await settled(other, "s")
    assert (mine.messages, not_mine.messages) == ([1], [])
