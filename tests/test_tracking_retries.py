"""Jobs that fail and are tried again: ``retrying=``."""

from typing import Any

import pytest

import fanwire
from tests.redis_server import RedisServer
from tests.tracking import Ear, brief

Publisher = fanwire.UploadProgressPublisher


class Retry(Exception):  # noqa: N818 (that is what they are called)
    """As Celery's."""


def breaks(error: BaseException) -> bool:
    raise LookupError("no answer")


@pytest.mark.parametrize(
    ("retrying", "error", "end"),
    [
        (Retry, Retry(), "retrying"),
        (Retry, OSError(), "failed"),
        ((Retry, OSError), FileNotFoundError(), "retrying"),
        ((), OSError(), "failed"),
        (lambda error: error.args[0] < 3, OSError(2), "retrying"),
        (lambda error: error.args[0] < 3, OSError(3), "failed"),
        (lambda _: None, OSError(), "failed"),
        (breaks, OSError(), "failed"),
        (BaseException, KeyboardInterrupt(), "retrying"),
    ],
)
@pytest.mark.parametrize("form", ["with", "async with"])
async def test_what_is_no_end_is_not_told_as_one(
    worker: Publisher,
    ear: Ear,
    caplog: pytest.LogCaptureFixture,
    form: str,
    retrying: Any,
    error: BaseException,
    end: str,
) -> None:
    tracker = worker.track("u1", 4, user_id="ada", stage="reading", retrying=retrying)

    async def job() -> None:
        if form == "with":
            with tracker:
                tracker.advance(1)
                raise error
        async with tracker:
            tracker.advance(1)
            raise error

    with pytest.raises(type(error)) as caught:
        await job()
    assert caught.value is error and error.__context__ is None
    last = await ear.until("upload:u1", lambda heard: len(heard) == 2)
    if end == "failed":
        assert brief(last) == [(0, "reading"), "failed"]
    else:
        assert brief(last) == [(0, "reading"), (25, "queued")]
        payload = last[-1]["payload"]
        assert (payload["message"], payload["error_message"]) == ("will be tried again", None)
    logged = [record.getMessage() for record in caplog.records]
    assert logged == (["fanwire: retrying() of a tracker failed"] if retrying is breaks else [])


def test_the_next_attempt_is_what_a_history_ends_with(redis_server: RedisServer, ear: Ear) -> None:
    publisher = fanwire.UploadProgressPublisher(redis_server.url, history=fanwire.History())
    with pytest.raises(Retry), publisher.track("again", 2, version=1, retrying=Retry):
        raise Retry
    with publisher.track("again", 2, version=10, retrying=Retry):
        pass
    assert brief(ear.messages("upload:again")) == [(0, "queued")] * 3 + ["completed"]


def test_a_job_that_does_not_fail_completes(worker: Publisher, ear: Ear) -> None:
    with worker.track("u1", retrying=lambda _: True):
        pass
    assert brief(ear.messages("upload:u1")) == [(0, "queued"), "completed"]


def test_messages_of_ones_own_know_it(worker: Publisher, ear: Ear) -> None:
    events: list[fanwire.TrackerEvent] = []
    tracker = worker.track("u1", retrying=OSError, to_message=events.append, describe=str)
    error = OSError("the disk is full")
    with pytest.raises(OSError, match="full"), tracker:
        raise error
    assert [event.kind for event in events] == ["progress", "retrying"]
    assert (events[-1].exception, events[-1].error_message) == (error, "the disk is full")
    assert ear.messages() == []
