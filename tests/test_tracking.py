"""``track`` without an event loop: what is told of a job, from its beginning to its end."""

import dataclasses
import json
from asyncio import CancelledError
from datetime import UTC, datetime
from typing import Any

import pytest

import fanwire
from fanwire.tracking import upload_message
from tests.messages import ProgressPayload
from tests.redis_server import RedisServer
from tests.tracking import Ear, brief

Publisher = fanwire.UploadProgressPublisher


def test_a_job_is_told_from_its_beginning_to_its_end(worker: Publisher, ear: Ear) -> None:
    begun = datetime.now(UTC)
    with worker.track("u1", 200, stage="extracting_frames", min_interval=0) as tracker:
        tracker.advance()
        tracker.message("frame 100")
        tracker.advance(99)
        tracker.stage("indexing", "nearly there")
        tracker.advance(50.5)
        tracker.result(description="a cat", audit_score=87)
        tracker.result(frames=200)
        assert (tracker.upload_id, tracker.done, tracker.total) == ("u1", 150.5, 200)
        assert (tracker.percent, repr(tracker)) == (75, "<Tracker of 'u1': 75 %>")
    *progress, completed = ear.messages("upload:u1")
    told = [tuple(message["payload"].values()) for message in progress]
    empty = (None, None)
    assert told == [
        ("u1", "processing", "extracting_frames", 0, "", *empty),
        ("u1", "processing", "extracting_frames", 0, "", *empty),
        ("u1", "processing", "extracting_frames", 0, "frame 100", *empty),
        ("u1", "processing", "extracting_frames", 50, "frame 100", *empty),
        ("u1", "processing", "indexing", 50, "nearly there", *empty),
        ("u1", "processing", "indexing", 75, "nearly there", *empty),
    ]
    assert {tuple(message) for message in progress} == {("action", "payload", "timestamp")}
    assert {message["action"] for message in progress} == {"upload_progress"}
    assert {tuple(message["payload"]) for message in progress} == {
        tuple(ProgressPayload.model_fields)
    }
    times = [datetime.fromisoformat(message["timestamp"]) for message in (*progress, completed)]
    assert [begun, *times] == sorted([begun, *times])
    del completed["timestamp"]
    assert completed == {
        "action": "upload_completed",
        "upload_id": "u1",
        "description": "a cat",
        "audit_score": 87,
        "frames": 200,
    }


def test_nothing_but_what_the_shape_has_is_told_of_an_empty_job(
    worker: Publisher, ear: Ear
) -> None:
    with worker.track("u1"):
        pass
    progress, completed = ear.messages("upload:u1")
    assert brief([progress]) == [(0, "queued")]
    assert completed.pop("timestamp").endswith("Z")
    assert completed == {
        "action": "upload_completed",
        "upload_id": "u1",
        "description": "",
        "audit_score": None,
    }


class TimeLimit(BaseException):
    """As Dramatiq's, which is no Exception."""


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("postgres://admin:secret@db/1"), "ValueError"),
        (FileNotFoundError(2, "No such file", "/home/ada/secret"), "FileNotFoundError"),
        (fanwire.PublishError("redis://:secret@host"), "PublishError"),
        (TimeLimit("secret"), "TimeLimit"),
        (CancelledError("secret"), "cancelled"),
        (GeneratorExit("secret"), "cancelled"),
        (KeyboardInterrupt("secret"), "interrupted"),
        (SystemExit(0), "interrupted"),
    ],
    ids=repr,
)
def test_a_job_that_fails_is_told_without_what_the_exception_says(
    worker: Publisher, ear: Ear, error: BaseException, text: str
) -> None:
    with pytest.raises(type(error)) as caught, worker.track("u1", 10):
        raise error
    assert caught.value is error and error.__context__ is None
    assert worker.flush(20)  # of a generator that was left half-way nobody waits for it
    progress, failed = ear.messages("upload:u1")
    assert brief([progress]) == [(0, "queued")]
    assert failed.pop("timestamp")
    assert failed == {"action": "upload_failed", "upload_id": "u1", "error_message": text}


def nothing(error: BaseException) -> Any:
    return None


def badly(error: BaseException) -> str:
    raise LookupError("no words")


@pytest.mark.parametrize(
    ("describe", "text"),
    [
        (str, "disk \udcff full"),
        (lambda error: f"Sorry: {error.args[0]}", "Sorry: disk \udcff full"),
        (lambda _: "", ""),
        (lambda _: "é" * 3_000, "é" * 2_000),
        (nothing, "OSError"),
        (badly, "OSError"),
    ],
    ids=["str", "own", "empty", "long", "nothing", "raises"],
)
def test_describe_says_what_is_shown_of_an_exception(
    worker: Publisher, ear: Ear, caplog: pytest.LogCaptureFixture, describe: Any, text: str
) -> None:
    with pytest.raises(OSError, match="full"), worker.track("u1", describe=describe):
        raise OSError("disk \udcff full")
    (_, failed) = ear.messages("upload:u1")
    assert failed["error_message"] == text.replace("\udcff", "?")
    logged = [record.getMessage() for record in caplog.records]
    assert logged == (
        ["fanwire: describe() of a tracker failed"] if describe in (nothing, badly) else []
    )


def test_a_user_is_told_everything_as_well(worker: Publisher, ear: Ear) -> None:
    with worker.track("u1", 2, user_id="ada", min_interval=0) as tracker:
        tracker.advance()
    with pytest.raises(ValueError, match=r"^$"), worker.track("u2", user_id="ada"):
        raise ValueError
    heard: dict[str, list[str]] = {}
    for channel, text in ear.texts():
        heard.setdefault(channel, []).append(text)
    assert heard["user:ada"] == heard["upload:u1"] + heard["upload:u2"]
    assert len(heard["upload:u1"]) == 3 and len(heard["upload:u2"]) == 2


@pytest.mark.parametrize("total", [None, 0, 0.0])
def test_an_unknown_total_is_0_percent_and_may_become_known(
    worker: Publisher, ear: Ear, total: float | None
) -> None:
    with worker.track("u1", total, min_interval=0) as tracker:
        tracker.advance(7)
        assert (tracker.percent, tracker.total, repr(tracker)) == (
            None,
            None,
            "<Tracker of 'u1': ? %>",
        )
        tracker.total = 14
        assert tracker.percent == 50
        tracker.advance(0)
        tracker.total = None
        tracker.advance(0)
    stage = "queued"
    assert brief(ear.messages("upload:u1")) == [
        *[(0, stage), (0, stage), (50, stage), (0, stage)],
        "completed",
    ]


@pytest.mark.parametrize(
    ("done", "total", "percent"),
    [
        (0, 3, 0),
        (1, 3, 33),
        (2.999, 3, 99),
        (3, 3, 100),
        (4, 3, 100),
        (10**30, 3, 100),
        (1, 10**30, 0),
        (10**30 - 1, 10**30, 99),
        (0.1, 1e-300, 100),
    ],
)
def test_percentages(done: float, total: float, percent: int) -> None:
    with fanwire.UploadProgressPublisher("memory://").track("u1", total) as tracker:
        tracker.advance(done)
        # What is nearly everything may be rounded up, but never beyond.
        assert tracker.percent == percent or (percent, tracker.percent) == (99, 100)


def test_a_message_of_ones_own(worker: Publisher, ear: Ear) -> None:
    events: list[fanwire.TrackerEvent] = []

    def to_message(event: fanwire.TrackerEvent) -> Any:
        events.append(event)
        return None if event.kind == "progress" else {"kind": event.kind, "n": event.done}

    error = ValueError("words")
    with worker.track("u1", 4, user_id="ada", min_interval=1e6, to_message=to_message) as tracker:
        tracker.advance(3)
        tracker.result(files=["a"])
        tracker.stage("sorting", "by name")
    with (
        pytest.raises(ValueError, match="words"),
        worker.track("u2", stage="x", to_message=to_message, describe=str),
    ):
        raise error
    assert ear.messages("upload:u1") == [{"kind": "completed", "n": 3}]
    first, sorting, completed, _, failed = events
    now = datetime.now(UTC)
    assert dataclasses.replace(first, timestamp=now) == fanwire.TrackerEvent(
        kind="progress",
        upload_id="u1",
        user_id="ada",
        done=0,
        total=4,
        percent=0,
        stage="queued",
        message="",
        result={},
        exception=None,
        error_message=None,
        timestamp=now,
    )
    assert (sorting.percent, sorting.stage, sorting.message) == (75, "sorting", "by name")
    assert (completed.percent, completed.result) == (75, {"files": ["a"]})
    assert (failed.total, failed.percent, failed.user_id, failed.stage) == (None, None, None, "x")
    assert (failed.exception, failed.error_message) == (error, "words")
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.done = 7  # type: ignore[misc]


def test_the_messages_of_fanwire_can_be_added_to(worker: Publisher, ear: Ear) -> None:
    def to_message(event: fanwire.TrackerEvent) -> dict[str, Any]:
        return upload_message(event) | {"host": "worker-1"}

    with worker.track("u1", to_message=to_message):
        pass
    assert [(m["action"], m["host"]) for m in ear.messages("upload:u1")] == [
        ("upload_progress", "worker-1"),
        ("upload_completed", "worker-1"),
    ]


def broken_at(kind: str) -> Any:
    return lambda event: {"bad": object()} if event.kind == kind else upload_message(event)


def test_messages_that_cannot_be_encoded_are_told_to_their_author(
    worker: Publisher, ear: Ear
) -> None:
    tracker = worker.track("u1", to_message=broken_at("progress"))
    with pytest.raises(TypeError, match="object"), tracker:
        raise AssertionError("the block is not entered")
    with pytest.raises(RuntimeError, match="was left"):
        tracker.advance()
    # What cannot be told of is no success: the block raises, so its watchers hear of a failure.
    tracker = worker.track("u2", to_message=broken_at("completed"))
    with pytest.raises(TypeError, match="object"), tracker:
        tracker.stage("all is well")
    assert brief(ear.messages()) == [(0, "queued"), (0, "all is well"), "failed"]


def test_trouble_with_a_message_does_not_hide_an_exception(
    worker: Publisher, ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pytest.raises(KeyError) as caught,
        worker.track("u1", to_message=broken_at("failed")),
    ):
        raise KeyError("mine")
    assert caught.value.args == ("mine",)
    assert [record.getMessage() for record in caplog.records] == [
        "fanwire: the end of a tracked job could not be told"
    ]
    assert worker.flush(20)
    assert brief(ear.messages("upload:u1")) == [(0, "queued")]


CALLS: dict[str, Any] = {
    "advance": lambda tracker: tracker.advance(),
    "stage": lambda tracker: tracker.stage("x"),
    "message": lambda tracker: tracker.message("x"),
    "result": lambda tracker: tracker.result(x=1),
    "wrap": lambda tracker: list(tracker.wrap([1])),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_tracker_is_used_inside_its_block(worker: Publisher, ear: Ear, call: str) -> None:
    tracker = worker.track("u1")
    with pytest.raises(RuntimeError, match="entered first"):
        CALLS[call](tracker)
    with tracker:
        CALLS[call](tracker)
    with pytest.raises(RuntimeError, match="was left"):
        CALLS[call](tracker)
    with pytest.raises(RuntimeError, match="one job"), tracker:
        pass
    assert brief(ear.messages("upload:u1"))[-1] == "completed"


def test_versions_grow_so_an_attempt_that_was_given_up_is_not_heard_again(
    redis_server: RedisServer, ear: Ear
) -> None:
    publisher = fanwire.UploadProgressPublisher(redis_server.url, history=fanwire.History())
    with publisher.track("u1", 10, version=1_000, min_interval=0) as given_up:
        given_up.advance()
        with publisher.track("u1", 10, version=2_000, stage="again") as tracker:
            given_up.advance(8)
            given_up.stage("too late")
            tracker.stage("indexing")
    assert publisher.flush()
    assert brief(ear.messages("upload:u1")) == [
        *[(0, "queued"), (10, "queued"), (0, "again"), (0, "indexing")],
        "completed",
    ]
    stats = publisher.stats()
    assert (stats["publish_stale"], stats["publish_failed"]) == (3, 0)


class Counting(fanwire.UploadProgressPublisher):
    """An app's own publisher, through whose methods everything goes."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.calls: list[tuple[str, str]] = []

    def publish_nowait(self, upload_id: str, message: Any, **options: Any) -> bool:
        self.calls.append(("nowait", message["action"]))
        return super().publish_nowait(upload_id, message, **options)

    async def publish_progress(self, upload_id: str, message: Any, **options: Any) -> Any:
        self.calls.append(("await", message["action"]))
        return await super().publish_progress(upload_id, message, **options)


async def test_subclasses_publish_by_their_own_methods() -> None:
    publisher = Counting("memory://")
    async with publisher.track("u1") as tracker:
        assert isinstance(tracker, fanwire.Tracker)
    assert publisher.calls == [("nowait", "upload_progress"), ("await", "upload_completed")]


def test_the_publisher_of_the_process_tracks(redis_server: RedisServer, ear: Ear) -> None:
    fanwire.init_publisher(redis_server.url)
    with fanwire.get_publisher().track("u1"):
        pass
    assert brief(ear.messages("upload:u1")) == [(0, "queued"), "completed"]


def test_trackers_side_by_side_and_inside_each_other(worker: Publisher, ear: Ear) -> None:
    def jobs() -> None:
        with worker.track("batch", 2, min_interval=0) as batch:
            for name in ("a", "b"):
                with worker.track(name, 1, min_interval=0) as tracker:
                    tracker.advance()
                    if name == "b":
                        raise KeyError(name)
                batch.advance()

    with pytest.raises(KeyError):
        jobs()
    heard: dict[str, list[Any]] = {}
    for channel, text in ear.texts():
        heard.setdefault(channel, []).extend(brief([json.loads(text)]))
    assert heard == {
        "upload:a": [(0, "queued"), (100, "queued"), "completed"],
        "upload:b": [(0, "queued"), (100, "queued"), "failed"],
        "upload:batch": [(0, "queued"), (50, "queued"), "failed"],
    }
