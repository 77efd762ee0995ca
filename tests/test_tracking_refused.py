"""What ``track`` and its trackers refuse, and when."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

import fanwire
from tests.redis_server import RedisServer
from tests.tracking import Ear, brief

Publisher = fanwire.UploadProgressPublisher

BAD: dict[str, tuple[type[Exception], str, Any]] = {
    "no id": (TypeError, "upload_id", lambda p: p.track()),
    "id": (TypeError, "upload_id must be a str, not int", lambda p: p.track(7)),
    "total": (TypeError, "total must be a number, not str", lambda p: p.track("u", "7")),
    "negative": (
        ValueError,
        "total must be finite and at least 0, not -1",
        lambda p: p.track("u", -1),
    ),
    "nan": (ValueError, "total must be finite", lambda p: p.track("u", float("nan"))),
    "user": (TypeError, "user_id must be a str, not bytes", lambda p: p.track("u", user_id=b"a")),
    "interval": (ValueError, "min_interval must be", lambda p: p.track("u", min_interval=-0.1)),
    "stage": (TypeError, "stage must be a str", lambda p: p.track("u", stage=None)),
    "message": (TypeError, "to_message must be callable", lambda p: p.track("u", to_message={})),
    "describe": (TypeError, "describe must be callable", lambda p: p.track("u", describe="x")),
    "exit": (
        TypeError,
        "exit_timeout_seconds must be",
        lambda p: p.track("u", exit_timeout_seconds="2"),
    ),
    "option": (TypeError, "shape", lambda p: p.track("u", shape=print)),
    "option's name": (
        TypeError,
        r"^UploadProgressPublisher.track\(\) got an unexpected keyword",
        lambda p: p.track("u", stge="x"),
    ),
    "positional": (TypeError, "positional", lambda p: p.track("u", 1, "ada")),
    "version": (ValueError, "history", lambda p: p.track("u", version=1).__enter__()),
    "version's kind": (
        TypeError,
        "version must be an int, not str",
        lambda p: p.track("u", version="5"),
    ),
    "bool": (TypeError, "version must be an int, not bool", lambda p: p.track("u", version=True)),
    "nanoseconds": (
        ValueError,
        r"version must be from 0 to 2\*\*53 - 1, not 17",
        lambda p: p.track("u", version=17 * 10**17),
    ),
    "past": (ValueError, "version must be from 0", lambda p: p.track("u", version=-1)),
    "retrying": (
        TypeError,
        "retrying must be exception types or callable, not int",
        lambda p: p.track("u", retrying=7),
    ),
    "retrying's kind": (
        TypeError,
        "retrying must be of exceptions, not int",
        lambda p: p.track("u", retrying=(OSError, int)),
    ),
    "retrying's parts": (
        TypeError,
        "retrying must be exception types or callable, not function",
        lambda p: p.track("u", retrying=(OSError, lambda _: True)),
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_arguments_that_make_no_sense(what: str) -> None:
    error, text, call = BAD[what]
    with pytest.raises(error, match=text):
        call(fanwire.UploadProgressPublisher("memory://"))


BAD_CALLS: dict[str, tuple[type[Exception], str, Any]] = {
    "negative": (ValueError, "n must be finite and at least 0, not -1", lambda t: t.advance(-1)),
    "infinite": (ValueError, "n must be finite", lambda t: t.advance(float("inf"))),
    "nan": (ValueError, "n must be finite", lambda t: t.advance(float("nan"))),
    "text": (TypeError, "n must be a number, not str", lambda t: t.advance("1")),
    "stage": (TypeError, "name must be a str, not int", lambda t: t.stage(1)),
    "stage's text": (TypeError, "message must be a str", lambda t: t.stage("x", None)),
    "message": (TypeError, "text must be a str, not NoneType", lambda t: t.message(None)),
    "result": (
        ValueError,
        "result.. cannot set action, timestamp",
        lambda t: t.result(timestamp=1, action=2),
    ),
    "result's kind": (
        TypeError,
        r'message\["a"\]\[0\]: cannot encode object as JSON',
        lambda t: t.result(a=[object()]),
    ),
    "too large": (ValueError, "n must be finite", lambda t: t.advance(Fraction(10**400))),
    "total": (ValueError, "total must be", lambda t: setattr(t, "total", -1)),
    "entered": (RuntimeError, "one job", lambda t: t.__enter__()),
}


@pytest.mark.parametrize("what", BAD_CALLS)
def test_calls_that_make_no_sense_change_nothing(worker: Publisher, ear: Ear, what: str) -> None:
    error, text, call = BAD_CALLS[what]
    with worker.track("u1", 10) as tracker:
        with pytest.raises(error, match=text):
            call(tracker)
        assert (tracker.done, tracker.total) == (0, 10)
    assert brief(ear.messages("upload:u1")) == [(0, "queued"), "completed"]


@pytest.mark.parametrize("options", [{"version": "5"}, {"version": 10**18}])
def test_with_a_history_versions_are_refused_before_the_job(
    redis_server: RedisServer, options: Any
) -> None:
    publisher = fanwire.UploadProgressPublisher(redis_server.url, history=fanwire.History())
    with pytest.raises((TypeError, ValueError), match="version must be"):
        publisher.track("u1", **options)


def test_numbers_of_every_kind(worker: Publisher, ear: Ear) -> None:
    kinds = [Decimal("1.5"), Fraction(1, 2), True, 1, 0.5]
    with worker.track("u1", Decimal(9), min_interval=Decimal(0)) as tracker:  # type: ignore[arg-type]
        for n in kinds:
            tracker.advance(n)  # type: ignore[arg-type]
        assert (tracker.done, tracker.total, tracker.percent) == (4.5, 9, 50)
    assert [len(told) for told in brief(ear.messages("upload:u1"))[:-1]] == [2] * 6


def test_a_result_for_a_message_of_ones_own_is_anything(worker: Publisher, ear: Ear) -> None:
    thing = object()

    def to_message(event: fanwire.TrackerEvent) -> Any:
        return {"is": event.result["thing"] is thing} if event.kind == "completed" else None

    with worker.track("u1", to_message=to_message) as tracker:
        tracker.result(thing=thing)
    assert ear.messages("upload:u1") == [{"is": True}]
