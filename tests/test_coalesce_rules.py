"""CoalesceRule: what a rule of one's own makes progress."""

from typing import Any

import pytest

from fanwire import CoalesceRule, init_manager
from tests.delivery import Message, through_a_stalled_lane

PROGRESS = {"action": "upload_progress", "upload_id": "u1"}


async def is_progress(message: Any, rule: CoalesceRule, channel: str = "upload:u1") -> bool:
    """Whether one such message overwrites another."""
    outcome = await through_a_stalled_lane([(channel, message)] * 3, coalesce=[rule])
    assert outcome.figures["coalesced"] in (0, 2)
    return outcome.figures["coalesced"] == 2


@pytest.mark.parametrize(
    ("pointer", "value", "message"),
    [
        ("/type", "tick", {"type": "tick"}),
        ("/type", "tick", {"first": [1, {"type": "tock"}], "type": "tick"}),
        ("/a/b/c", "x", {"a": {"b": {"c": "x"}}}),
        ("/events/0", "x", {"events": ["x", "y"]}),
        ("/events/1/kind", "x", {"events": [{"kind": "y"}, {"kind": "x"}, 3]}),
        ("/0/0", "x", [["x"]]),
        ("/10", "x", [*range(10), "x"]),
        ("/0", "x", {"0": "x"}),
        ("", "x", "x"),
        ("", "7", 7),
        ("/", "x", {"": "x"}),
        ("/a~1b", "x", {"a/b": "x"}),
        ("/m~0n", "x", {"m~n": "x"}),
        ("/~01", "x", {"~1": "x"}),
        ("/größe", "groß", {"größe": "groß"}),
        ("/k", 'quo"ted\n', {"k": 'quo"ted\n'}),
        ("/k", "7", {"k": 7}),
        ("/k", "7", {"k": "7"}),
        ("/k", "-7", {"k": -7}),
        ("/k", "18446744073709551615", {"k": 2**64 - 1}),
        ("/k", "2.5", {"k": 2.5}),
        ("/k", "1.0", {"k": 1.0}),
        ("/k", "true", {"k": True}),
        ("/k", "false", {"k": False}),
        ("/k", "x", b'{"k": "y", "k": "x"}'),
        ("/k", "x", b' {"\\u006b" : "\\u0078"} '),
    ],
    ids=repr,
)
async def test_what_a_pointer_finds(pointer: str, value: str, message: Any) -> None:
    assert await is_progress(message, CoalesceRule(pointer, (value,)))


@pytest.mark.parametrize(
    ("pointer", "value", "message"),
    [
        ("/type", "tick", {"type": "tock"}),
        ("/type", "tick", {"type": "ticks"}),
        ("/type", "tick", {"payload": {"type": "tick"}}),
        ("/type", "tick", {"Type": "tick"}),
        ("/type", "tick", [{"type": "tick"}]),
        ("/type", "tick", {"type": ["tick"]}),
        ("/type", "tick", {"type": {"tick": "tick"}}),
        ("/type", "tick", "tick"),
        ("/k", "null", {"k": None}),
        ("/k", "True", {"k": True}),
        ("/k", "1", {"k": True}),
        ("/01", "x", ["a", "x"]),
        ("/-", "x", ["x"]),
        ("/+0", "x", ["x"]),
        ("/0", "x", ["y", "x"]),
        ("/a/", "x", {"a": "x"}),
        ("/k", "x", b'{"k": "x", "k": "y"}'),
    ],
    ids=repr,
)
async def test_what_it_does_not_find(pointer: str, value: str, message: Any) -> None:
    assert not await is_progress(message, CoalesceRule(pointer, (value,)))


async def test_rules_replace_the_default() -> None:
    assert not await is_progress(PROGRESS, CoalesceRule("/type", ("tick",)))
    assert await is_progress(PROGRESS, CoalesceRule("/action", ("upload_progress",)))


async def test_no_values_is_no_progress() -> None:
    assert not await is_progress(PROGRESS, CoalesceRule("/action", ()))


async def test_several_rules_and_several_values() -> None:
    rules = [
        CoalesceRule("/type", ("tick", "tock"), ids=("/job",)),
        CoalesceRule("/kind", ("gauge",), ids=("/name", "/number")),
    ]
    messages: list[Message] = [
        ("user:ada", message)
        for message in (
            {"type": "tick", "job": 1, "n": 0},
            {"type": "tock", "job": 2, "n": 1},
            {"kind": "gauge", "name": "a", "n": 2},
            {"kind": "gauge", "number": 5, "n": 3},
            {"kind": "gauge", "name": "a", "number": 6, "n": 4},
            {"type": "tick", "job": 1, "n": 5},
            {"type": "bell", "job": 2, "n": 6},
            {"type": "tock", "job": 2, "n": 7},
            {"kind": "gauge", "number": 5, "n": 8},
            {"kind": "gauge", "n": 9},
            {"kind": "gauge", "n": 10},
        )
    ]
    outcome = await through_a_stalled_lane(messages, coalesce=rules)
    assert [message["n"] for message in outcome.messages] == [5, 1, 4, 8, 6, 7, 9, 10]


async def test_on_an_upload_s_channel_its_id_is_not_asked_for() -> None:
    rule = CoalesceRule("/type", ("tick",), ids=("/job",))
    assert await is_progress({"type": "tick"}, rule)
    assert not await is_progress({"type": "tick"}, rule, channel="user:ada")
    assert await is_progress({"type": "tick", "job": "j"}, rule, channel="user:ada")


async def test_rules_may_come_from_any_iterable() -> None:
    rules = (CoalesceRule("/type", (name,)) for name in ("tick", "tock"))
    ticks: list[Message] = [("upload:u1", {"type": "tock"})] * 4
    outcome = await through_a_stalled_lane(ticks, coalesce=rules)
    assert outcome.figures["coalesced"] == 3


def test_the_process_wide_manager_takes_rules_as_well() -> None:
    manager = init_manager(coalesce=[CoalesceRule("/type", ("tick",))], overflow="coalesce")
    assert manager.stats()["coalesced"] == 0


def test_a_rule_is_a_value() -> None:
    rule = CoalesceRule("/type", ("tick",))
    assert rule == CoalesceRule("/type", ("tick",))
    assert len({rule, CoalesceRule("/type", ("tick",))}) == 1
    assert rule.ids == ("/payload/upload_id", "/payload/batch_id", "/upload_id", "/batch_id")
    with pytest.raises(AttributeError):
        rule.pointer = "/other"  # type: ignore[misc]
