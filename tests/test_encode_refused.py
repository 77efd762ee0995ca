"""What is not JSON, or is JSON already: the checks before a message leaves."""

import json
import subprocess
import sys
import textwrap
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from tests.values import NOON, Point, Point3, Ratio, Slotted, Words
from tests.wire import Wire

# Bytes are JSON already


@pytest.mark.parametrize(
    "encoded",
    [b"{}", b' { "a" : 1.0 } \n', b'"\xc3\xbc \\u00fc"', b"1e400", b"null", b"[1,2,[3]]"],
)
def test_encoded_json_is_sent_as_it_is(wire: Wire, encoded: bytes) -> None:
    assert wire.send(encoded) == encoded.decode()


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"plain text",
        b"{",
        b"{'a':1}",
        b"[1,]",
        b"[1] [2]",
        b"NaN",
        b"Infinity",
        b'{"a":NaN}',
        b"\xff",
        b'"\xff"',
        b'"\xc3"',
        b"\xef\xbb\xbf{}",
        b'"\xed\xa0\x80"',
        b'"new\nline"',
        b"01",
    ],
)
def test_bytes_that_are_not_json(wire: Wire, encoded: bytes) -> None:
    with pytest.raises(ValueError):
        wire.send(encoded)


@given(encoded=st.binary(max_size=40))
def test_any_bytes_are_checked(wire: Wire, encoded: bytes) -> None:
    try:
        json.loads(encoded.decode(), parse_constant=pytest.fail)
        valid = True
    except (ValueError, pytest.fail.Exception):
        valid = False
    if valid:
        assert wire.send(encoded) == encoded.decode()
    else:
        with pytest.raises(ValueError):
            wire.send(encoded)


# What cannot be encoded


class Strange:
    pass


STRANGE = [
    (Strange(), "Strange"),
    (Strange, "Strange"),
    (lambda: None, "function"),
    (json, "module"),
    (iter, "builtin_function_or_method"),
    (Ellipsis, "ellipsis"),
]


@pytest.mark.parametrize(
    ("value", "name"), STRANGE, ids=lambda v: v if isinstance(v, str) else type(v).__name__
)
def test_what_has_no_json_form(wire: Wire, value: Any, name: str) -> None:
    with pytest.raises(TypeError, match=name):
        wire.send(value)
    with pytest.raises(TypeError) as raised:
        wire.send({"payload": {"items": [0, 1, 2, value]}})
    for part in (name, "payload", "items", "[3]"):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ([[], [Strange()]], ["[1]", "[0]"]),
        ((1, Strange()), ["[1]"]),
        ({"a b": {"ü": Strange()}}, ["a b", "ü"]),
        ({7: Strange()}, ["7"]),
        ({"inner": Slotted(Strange())}, ["inner", "text"]),  # type: ignore[arg-type]
        ({"struct": Point3(Strange(), NOON)}, ["struct", "x"]),  # type: ignore[arg-type]
        ({"p": Point(1, Strange())}, ["p", "[1]"]),  # type: ignore[arg-type]
        ({"d": OrderedDict(k=[Strange()])}, ["d", "k", "[0]"]),
    ],
)
def test_the_path_to_it(wire: Wire, message: Any, parts: list[str]) -> None:
    with pytest.raises(TypeError) as raised:
        wire.send(message)
    for part in [*parts, "Strange"]:
        assert part in str(raised.value)


def test_a_key_that_has_no_json_form(wire: Wire) -> None:
    with pytest.raises(TypeError) as raised:
        wire.send({"payload": [{Strange(): 1}]})
    for part in ("Strange", "payload", "[0]"):
        assert part in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), Ratio("nan")])
def test_numbers_that_json_does_not_know(wire: Wire, value: float) -> None:
    with pytest.raises(ValueError):
        wire.send(value)
    with pytest.raises(ValueError) as raised:
        wire.send({"payload": {"scores": [0.5, value]}})
    for part in ("payload", "scores", "[1]"):
        assert part in str(raised.value)
    with pytest.raises(ValueError):
        wire.send({value: "key"})


def test_text_that_utf8_cannot_carry(wire: Wire) -> None:
    for message in ["\ud800", ["a\udfffb"], {"key": "\ud83d"}, {"\ud800": 1}, Words("\ud800")]:
        with pytest.raises(ValueError):
            wire.send(message)


def test_circular_structures(wire: Wire) -> None:
    ring: list[Any] = []
    ring.append(ring)
    table: dict[str, Any] = {"payload": {}}
    table["payload"]["parent"] = table
    node = Slotted("x")
    through = {"slot": [node]}
    object.__setattr__(node, "text", through)
    for message in [ring, table, through, (1, ring), {"r": ring}]:
        with pytest.raises(ValueError) as raised:
            wire.send(message)
        # Both ends of the path to where it was given up, not hundreds of steps.
        text = str(raised.value)
        assert text.startswith("message") and " … " in text and len(text) < 400, text


def test_the_same_object_twice_is_no_circle(wire: Wire) -> None:
    shared = {"a": [1]}
    assert wire.send([shared, shared, {"x": shared}]) == '[{"a":[1]},{"a":[1]},{"x":{"a":[1]}}]'


def test_nesting_of_a_reasonable_depth(wire: Wire) -> None:
    message: Any = "bottom"
    for _ in range(50):
        message = {"a": [message]}
    assert wire.send(message) == to_json(message).decode()


DEEP = textwrap.dedent(
    """
    import asyncio, fanwire
    publisher = fanwire.UploadProgressPublisher("memory://")
    lists, tables = [], {}
    for _ in range(200_000):
        lists, tables = [lists], {"a": tables}
    for message in (lists, tables, {"a": lists}):
        try:
            asyncio.run(publisher.publish_progress("u1", message))
        except (ValueError, RecursionError) as error:
            print("refused")
    encoded = b"[" * 200_000 + b"]" * 200_000
    try:
        asyncio.run(publisher.publish_progress("u1", encoded))
    except ValueError:
        pass
    print("alive", flush=True)
    # Taking structures of this depth apart is the interpreter's affair, not that of this test.
    import os
    os._exit(0)
    """
)


def test_nesting_that_is_too_deep_does_not_crash() -> None:
    done = subprocess.run(  # noqa: PLW1510 (the status is looked at below)
        [sys.executable, "-c", DEEP], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout.split()) == (0, ["refused"] * 3 + ["alive"]), done.stderr


class Meddling(dict[str, Any]):
    """Changes itself while it is read."""

    def items(self) -> Any:
        for key in list(self):
            self.pop(key)
            yield key, 1


def test_a_container_that_changes_while_it_is_encoded(wire: Wire) -> None:
    shrinking: list[Any] = [1, 2, 3, 4]

    class Shrink:
        def model_dump_json(self) -> str:
            shrinking.clear()
            return "0"

    shrinking[1] = Shrink()
    # Any answer will do but a crash, and the wire has to work on.
    with suppress(RuntimeError, TypeError, IndexError):
        wire.send(shrinking)
    with suppress(RuntimeError, TypeError, IndexError):
        wire.send(Meddling(a=1, b=2))
    assert wire.send(1) == "1"
