"""Messages that cannot travel: refused where they are broadcast, and counted where they arrive."""

import math
from typing import Any

import pytest

import fanwire
from tests import pubsub
from tests.pubsub import (
    Backend,
    PubSub,
    Recorder,
    every_kind,
    figures,
    only_redis,
    settled,
    travelling_kinds,
)
from tests.test_pubsub_messages import CONTAINERS, SCALARS, heard_by_two, nested
from tests.values import ID, NOON, Colour, Outer, Slotted

backend = pubsub.backend


class Strange:
    pass


UNFIT: list[tuple[Any, list[str]]] = [
    (Strange(), ["message:", "Strange"]),
    ({"a": [Strange()]}, ['message["a"][0]:', "Strange"]),
    ([0, {"b": [1, 2, Strange()]}], ['message[1]["b"][2]:', "Strange"]),
    ({"f": len}, ['message["f"]:', "builtin_function_or_method"]),
    ({"inner": Slotted(Strange())}, ["inner", "text", "Strange"]),  # type: ignore[arg-type]
    ([{Strange(): 1}], ["message[0]", "Strange"]),
]
BYTES: list[tuple[Any, list[str]]] = [
    (b"bytes", ["message:", "bytes"]),
    (b"{}", ["message:", "bytes"]),
    (bytearray(b"{}"), ["message:", "bytearray"]),
    ({"b": [b"{}"]}, ['message["b"][0]:', "bytes"]),
    ([{"b": bytearray(b"x")}], ['message[0]["b"]:', "bytearray"]),
    ({b"key": 1}, ["message", "bytes"]),
]
UNFIT_VALUES: list[tuple[Any, list[str]]] = [
    (math.nan, ["message"]),
    ({"x": [0.5, math.inf]}, ['message["x"][1]']),
    ([-math.inf], ["message[0]"]),
    ("\ud800", ["message"]),
    ({"text": ["fine", "a\udfffb"]}, ['message["text"][1]']),
    ([{"\ud83d": 1}], ["message[0]"]),
]


@travelling_kinds
@pytest.mark.parametrize("unfit", [UNFIT, BYTES], ids=["objects", "bytes"])
async def test_what_is_not_serialisable_is_a_type_error_with_the_path(
    backend: Backend, unfit: list[tuple[Any, list[str]]]
) -> None:
    instance, recorder = await backend.started(), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    for message, parts in unfit:
        with pytest.raises(TypeError) as raised:
            await instance.broadcast("t", message)
        assert [part for part in parts if part not in str(raised.value)] == [], str(raised.value)
    await settled(instance, "s")
    assert recorder.messages == []


@travelling_kinds
async def test_a_value_that_json_does_not_know_is_a_value_error_with_the_path(
    backend: Backend,
) -> None:
    instance, recorder = await backend.started(), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    for message, parts in UNFIT_VALUES:
        with pytest.raises(ValueError) as raised:
            await instance.broadcast("t", message)
        assert [part for part in parts if part not in str(raised.value)] == [], str(raised.value)
    ring: list[Any] = []
    ring.append({"ring": ring})
    with pytest.raises(ValueError):
        await instance.broadcast("t", ring)
    await settled(instance, "s")
    assert recorder.messages == []


@travelling_kinds
@pytest.mark.parametrize("depth", [150, 190, 210, 300, 1_000, 100_000])
async def test_nesting_arrives_or_is_refused_where_it_is_broadcast(
    backend: Backend, depth: int
) -> None:
    """Never accepted and then lost on its way."""
    instance, recorder = await backend.started(), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    message = nested(depth)
    try:
        await instance.broadcast("t", message)
        said = 1
    except (ValueError, RecursionError):
        said = 0
    await settled(instance, "s")
    assert len(recorder.messages) == said
    assert figures(instance)["handler_failed"] == figures(instance)["undecodable"] == 0
    # Taken apart by hand: the interpreter would do it by recursion.
    while not isinstance(message, str):
        message = message.pop() if isinstance(message, list) else message.pop("a")


@only_redis
@pytest.mark.parametrize(
    ("payload", "value"),
    [
        (r'"\ud800"', "\ud800"),
        (r'["\udfff"]', ["\udfff"]),
        (r'{"\ud83d":1}', {"\ud83d": 1}),
        ("NaN", None),
        ("[Infinity,-Infinity]", None),
        ("1e400", math.inf),
        ("-1e400", -math.inf),
        ("1" + "0" * 5_000, None),
        ("123456789012345678901234567890.5", 123456789012345678901234567890.5),
    ],
    ids=lambda value: ascii(value)[:30],
)
async def test_what_other_programs_write_is_exact_or_counted(
    backend: Backend, payload: str, value: Any
) -> None:
    """The reference writes such payloads, for what is strictly no JSON."""
    instance, recorder = await backend.started(), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    assert backend.server is not None
    backend.server.publish(backend.prefix + "t", f'{{"topic":"t","message":{payload}}}')
    await instance.broadcast("t", "after it")
    await settled(instance, "s")
    assert recorder.messages[-1] == "after it"
    counted = figures(instance)["not_json"] + figures(instance)["undecodable"]
    assert counted == 2 - len(recorder.messages)
    assert counted or recorder.messages[0] == value


@every_kind
async def test_an_object_of_many_kinds_is_refused_or_arrives_alike_everywhere(
    backend: Backend,
) -> None:
    """``json=True`` finds early what will not travel: it does as every broker does."""
    instance = await backend.started()
    oracle = fanwire.MemoryPubSub(json=backend.kind != "memory")
    samples: list[Any] = [*SCALARS[:20], *CONTAINERS[:5], NOON, ID, Colour.RED, Outer, {1, 2}]
    samples += [
        Strange(),
        b"x",
        math.nan,
        "\udc00",
        Slotted("x"),
        range(3),
        (1,),
        1j,
        Exception("x"),
    ]

    async def outcome(of: PubSub, message: Any) -> Any:
        try:
            return repr(await heard_by_two(of, message))
        except (TypeError, ValueError) as error:
            return type(error), str(error)

    for sample in samples:
        assert await outcome(instance, sample) == await outcome(oracle, sample)
