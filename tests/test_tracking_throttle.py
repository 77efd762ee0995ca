"""How often a tracker tells, and that nothing stays behind the interval for ever.

A clock that stands still decides what may go out; a loop's timers run in real time all the same.
"""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import fanwire
from fanwire.tracking import upload_message
from tests.deadlines import until
from tests.tracking import Clock, Ear, brief, percents

Publisher = fanwire.UploadProgressPublisher
Track = Callable[..., fanwire.Tracker]
SOON = 0.02
NEVER = 1e6


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def track(worker: Publisher, clock: Clock) -> Track:
    def make(total: float | None = 100, **options: Any) -> fanwire.Tracker:
        return fanwire.Tracker(worker, "u1", total, clock=clock, **options)

    return make


def test_the_first_a_stage_and_the_last_go_at_once_and_of_the_rest_one_per_interval(
    track: Track, clock: Clock, ear: Ear
) -> None:
    with track(100, min_interval=10) as tracker:  # first
        for _ in range(5):
            tracker.advance()
        clock.now += 9.99
        tracker.advance()
        clock.now += 0.01
        tracker.advance()  # it has been 10 s
        tracker.advance()
        tracker.stage("indexing")  # at once, and the interval begins anew
        clock.now += 9.99
        tracker.advance()
        tracker.message("held back")
        tracker.stage("indexing")  # no other stage
        clock.now += 100
        tracker.advance()  # one, not ten
        tracker.advance(40)
    # What was held back in the end says less than that the job is completed.
    queued, indexing = "queued", "indexing"
    assert brief(ear.messages("upload:u1")) == [
        *[(0, queued), (7, queued), (8, indexing), (10, indexing)],
        "completed",
    ]


def test_a_thousand_steps_in_one_interval_are_one_message(
    track: Track, clock: Clock, ear: Ear
) -> None:
    with track(1_000, min_interval=1) as tracker:
        for step in range(1_000):
            if step % 100 == 0:
                clock.now += 1
            tracker.advance()
    percents = [percent for percent, _ in brief(ear.messages("upload:u1"))[:-1]]
    assert percents == [0, 0, 10, 20, 30, 40, 50, 60, 70, 80, 90]


def test_texts_are_held_back_and_go_with_the_next_message(
    track: Track, clock: Clock, ear: Ear
) -> None:
    with track(min_interval=10) as tracker:
        tracker.message("one")
        tracker.message("two")
        clock.now += 10
        tracker.advance()
        tracker.stage("next")  # the text was that of the former stage
    *progress, _ = ear.messages("upload:u1")
    assert [message["payload"]["message"] for message in progress] == ["", "two", ""]


def test_an_interval_of_nothing_lets_everything_out(track: Track, ear: Ear) -> None:
    with track(3, min_interval=0) as tracker:
        for _ in range(3):
            tracker.advance()
    assert len(ear.messages("upload:u1")) == 5


def test_without_a_loop_what_is_held_back_waits_for_the_next_call(
    track: Track, worker: Publisher, clock: Clock, ear: Ear
) -> None:
    with track(100, min_interval=10) as tracker:
        tracker.advance(50)
        clock.now += 1_000
        assert worker.flush()
        assert brief(ear.messages("upload:u1")) == [(0, "queued")]
        tracker.advance(0)
        assert worker.flush()
        assert brief(ear.messages("upload:u1")) == [(50, "queued")]


@pytest.mark.parametrize("form", ["async with", "with"])
async def test_in_a_loop_a_producer_that_stalls_is_told_of(
    worker: Publisher, ear: Ear, form: str
) -> None:
    async def stall(tracker: fanwire.Tracker) -> None:
        for n in (9, 1, 5, 5):
            tracker.advance(n)
            if tracker.done in (10, 20):
                await ear.until("upload:u1", lambda heard: tracker.percent in percents(heard))

    tracker = worker.track("u1", 100, min_interval=SOON)
    if form == "with":
        with tracker:
            await stall(tracker)
    else:
        async with tracker:
            await stall(tracker)


async def test_a_timer_that_comes_too_early_sends_nothing(
    worker: Publisher, track: Track, clock: Clock, ear: Ear
) -> None:
    async with track(100, min_interval=SOON) as tracker:
        tracker.advance(50)
        looked = clock.looked
        await until(lambda: clock.looked > looked + 10, "several timers have come")
        assert await asyncio.to_thread(worker.flush, 20)
        assert percents(ear.messages("upload:u1")) == [0]
        clock.now += SOON
        assert percents(await ear.until("upload:u1", bool)) == [50]


async def test_a_thread_that_works_for_a_loop_is_told_of_too(worker: Publisher, ear: Ear) -> None:
    go_on = threading.Event()

    def work(tracker: fanwire.Tracker) -> None:
        tracker.advance(9)
        tracker.advance(1)
        assert go_on.wait(20)

    async with worker.track("u1", 100, min_interval=SOON) as tracker:
        working = asyncio.create_task(asyncio.to_thread(work, tracker))
        try:
            await ear.until("upload:u1", lambda heard: 10 in percents(heard))
        finally:
            go_on.set()
        await working


async def test_the_timer_and_a_thread_never_go_back(worker: Publisher, ear: Ear) -> None:
    total = 20_000

    def work(tracker: fanwire.Tracker) -> None:
        for _ in range(total):
            tracker.advance()

    async with worker.track("u1", total, min_interval=0.0001) as tracker:
        await asyncio.to_thread(work, tracker)
        assert tracker.percent == 100
    told = percents(ear.messages("upload:u1")[:-1])
    assert told == sorted(told)


async def test_the_end_waits_for_what_a_thread_is_telling(worker: Publisher, ear: Ear) -> None:
    telling, go_on = threading.Event(), threading.Event()

    def to_message(event: fanwire.TrackerEvent) -> Any:
        if event.stage == "slow":
            telling.set()
            assert go_on.wait(20)
        return upload_message(event)

    async with worker.track("u1", to_message=to_message) as tracker:
        working = asyncio.create_task(asyncio.to_thread(tracker.stage, "slow"))
        await until(telling.is_set)
        tracker._stage = "on"  # the last message is not slow
        threading.Timer(0.05, go_on.set).start()
    await working
    heard = await ear.until("upload:u1", lambda heard: len(heard) == 3)
    assert brief(heard) == [(0, "queued"), (0, "slow"), "completed"]


async def test_a_thread_that_is_too_late_tells_nothing(worker: Publisher, ear: Ear) -> None:
    late, left = threading.Event(), threading.Event()
    here = threading.get_ident()

    def clock() -> float:
        if threading.get_ident() != here and not late.is_set():
            late.set()  # it is inside advance(), past the look at whether the block was left
            assert left.wait(20)
        return time.monotonic()

    async with fanwire.Tracker(worker, "u1", min_interval=0, clock=clock) as tracker:
        working = asyncio.create_task(asyncio.to_thread(tracker.advance))
        await until(late.is_set)
    left.set()
    await working
    await asyncio.to_thread(worker.flush, 20)
    assert brief(ear.messages("upload:u1")) == [(0, "queued"), "completed"]


async def test_a_thread_that_goes_on_after_the_block_ends_there(
    worker: Publisher, ear: Ear
) -> None:
    entered, left = threading.Event(), threading.Event()

    def work(tracker: fanwire.Tracker) -> None:
        entered.set()
        assert left.wait(20)
        tracker.advance()

    async with worker.track("u1") as tracker:
        working = asyncio.create_task(asyncio.to_thread(work, tracker))
        await until(entered.is_set)
    left.set()
    with pytest.raises(RuntimeError, match="was left"):
        await working
    assert brief(ear.messages("upload:u1")) == [(0, "queued"), "completed"]


class Crowded(fanwire.UploadProgressPublisher):
    """Has no room for a user's next messages."""

    refusals = 0

    def publish_to_user_nowait(self, user_id: str, message: Any) -> bool:
        if self.refusals:
            self.refusals -= 1
            return False
        return super().publish_to_user_nowait(user_id, message)


async def test_progress_that_finds_no_room_is_sent_when_there_is_some(
    worker: Publisher, ear: Ear
) -> None:
    publisher = Crowded(worker.url)
    publisher.refusals = 3
    async with publisher.track("u1", user_id="ada", min_interval=SOON):
        await ear.until("user:ada", bool)
    assert publisher.refusals == 0


def test_the_last_message_waits_for_room(worker: Publisher, ear: Ear) -> None:
    publisher = Crowded(worker.url)
    with publisher.track("u1", user_id="ada"):
        publisher.refusals = 3
    heard = ear.texts()
    assert [channel for channel, text in heard if "upload_completed" in text] == [
        "upload:u1",
        "user:ada",
    ]


async def test_the_last_message_of_a_coroutine_waits_for_room(worker: Publisher, ear: Ear) -> None:
    publisher = Crowded(worker.url)
    async with publisher.track("u1", user_id="ada"):
        publisher.refusals = 3
    assert publisher.refusals == 2
    assert brief(ear.messages("user:ada"))[-1] == "completed"


async def test_where_nobody_may_wait_for_room_it_is_logged(
    worker: Publisher, ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Crowded(worker.url)
    with publisher.track("u1", user_id="ada"):
        publisher.refusals = 1
    assert [record.getMessage() for record in caplog.records] == [
        "fanwire: too much waits already: the end of a job was not told"
    ]
    assert publisher.refusals == 0
    await ear.until("upload:u1", lambda heard: "completed" in brief(heard))
    assert brief(ear.messages("user:ada")) == []


async def test_many_trackers_cost_no_tasks_no_threads_and_no_memory_after_all() -> None:
    publisher = fanwire.UploadProgressPublisher("memory://")
    await publisher.publish_progress("u1", 1)
    threads, tasks = threading.active_count(), len(asyncio.all_tasks())
    trackers = [publisher.track(f"u{n}", 10, min_interval=NEVER) for n in range(500)]
    for tracker in trackers:
        await tracker.__aenter__()
        tracker.advance()
        tracker.advance()
    assert (threading.active_count(), len(asyncio.all_tasks())) == (threads, tasks)
    references = [weakref.ref(tracker) for tracker in trackers]
    for tracker in trackers:
        await tracker.__aexit__(None, None, None)
    gc.collect()
    gc.disable()
    try:
        del tracker, trackers
        # Their timers are cancelled, which lets go of them.
        assert not any(reference() for reference in references)
    finally:
        gc.enable()


async def test_errors_of_a_message_that_a_timer_makes_go_to_the_loop(worker: Publisher) -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    def to_message(event: fanwire.TrackerEvent) -> Any:
        return object() if event.kind == "progress" and event.done else {}

    async with worker.track("u1", 100, min_interval=SOON, to_message=to_message) as tracker:
        tracker.advance()
        await until(lambda: told)
        assert tracker.done == 1
    assert isinstance(told[0]["exception"], TypeError)
