"""What handlers may do, and may do wrong: raise, leave, come back, speak, and be cancelled."""

import asyncio
import contextvars
import logging
import time
from typing import Any, Literal

import pytest

from tests import pubsub
from tests.deadlines import bounded, until
from tests.pubsub import (
    Backend,
    Gated,
    Recorder,
    every_kind,
    figures,
    settled,
    until_figures,
)
from tests.test_lane_tasks import WORK, Work

backend = pubsub.backend
both_orderings = pytest.mark.parametrize("ordering", ["session", "concurrent"])
Ordering = Literal["session", "concurrent"]

# Raising


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [
        record
        for record in caplog.records
        if record.name.split(".")[0] == "fanwire" and record.levelno >= logging.ERROR
    ]


@every_kind
@both_orderings
async def test_a_handler_that_raises(
    backend: Backend, ordering: Ordering, caplog: pytest.LogCaptureFixture
) -> None:
    instance, healthy = await backend.started(ordering=ordering), Recorder("healthy")

    class Failing(Recorder):
        async def __call__(self, topic: str, message: Any) -> None:
            await super().__call__(topic, message)
            if message == 1:
                raise RuntimeError("at once")
            if message == 2:
                await asyncio.sleep(0)
                raise LookupError("after a while")

    failing = Failing()
    await instance.subscribe_topic('ada "1"', "room\n42", failing)
    await instance.subscribe_topic("bob", "room\n42", healthy)
    for n in range(4):
        await instance.broadcast("room\n42", n)
    assert await failing.received(4) == await healthy.received(4) == [0, 1, 2, 3]
    await until_figures(instance, handler_failed=2, delivered=8, queued_messages=0)
    assert len(errors(caplog)) == 2
    for record, kind in zip(errors(caplog), (RuntimeError, LookupError), strict=True):
        assert repr("room\n42") in record.getMessage()
        assert repr('ada "1"') in record.getMessage()
        assert record.exc_info is not None
        assert record.exc_info[0] is kind
        assert record.exc_info[2] is not None


@every_kind
@both_orderings
async def test_a_handler_that_is_no_coroutine_function(
    backend: Backend, ordering: Ordering, caplog: pytest.LogCaptureFixture
) -> None:
    """What is found only when a message comes is the handler's failure, and its alone."""
    instance, healthy = await backend.started(ordering=ordering), Recorder()

    def plain(topic: str, message: Any) -> None:
        healthy.name = message

    async def one_argument(topic: str) -> None:
        raise AssertionError("never called")

    def raising(topic: str, message: Any) -> Any:
        raise RuntimeError("before there is a coroutine")

    for n, handler in enumerate([plain, one_argument, raising]):
        await instance.subscribe_topic(f"s{n}", "t", handler)  # type: ignore[arg-type]
    await instance.subscribe_topic("healthy", "t", healthy)
    await instance.broadcast("t", "called all the same")
    assert await healthy.received(1) == ["called all the same"]
    await until_figures(instance, handler_failed=3)
    assert healthy.name == "called all the same"
    assert len(errors(caplog)) == 3


@every_kind
@both_orderings
async def test_a_handler_that_cancels_its_own_task(backend: Backend, ordering: Ordering) -> None:
    instance, healthy = await backend.started(ordering=ordering), Recorder()

    class CancelsItself(Recorder):
        async def __call__(self, topic: str, message: Any) -> None:
            if message == 1:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(0)
            await super().__call__(topic, message)

    odd = CancelsItself()
    await instance.subscribe_topic("odd", "t", odd)
    await instance.subscribe_topic("healthy", "t", healthy)
    for n in range(4):
        await instance.broadcast("t", n)
    assert await odd.received(3) == [0, 2, 3]
    assert await healthy.received(4) == [0, 1, 2, 3]
    await until_figures(instance, queued_messages=0)


@every_kind
async def test_a_handler_that_cancels_its_own_task_and_returns(backend: Backend) -> None:
    """One Task runs the handlers of many sessions: this is not for the others to suffer."""
    instance, healthy = await backend.started(), [Recorder(f"healthy {n}") for n in range(10)]

    async def cancel(topic: str, message: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    def wait_first(recorder: Recorder) -> pubsub.Handler:
        async def handle(topic: str, message: Any) -> None:
            await asyncio.sleep(0)
            await recorder(topic, message)

        return handle

    for n, recorder in enumerate(healthy):
        await instance.subscribe_topic(f"odd {n}", "t", cancel)
        await instance.subscribe_topic(recorder.name, "t", wait_first(recorder))
    for n in range(4):
        await instance.broadcast("t", n)
    for recorder in healthy:
        assert await recorder.received(4) == [0, 1, 2, 3]
    await until_figures(instance, queued_messages=0, delivered=80, handler_failed=0)


@every_kind
async def test_tasks_are_cancelled_between_the_handlers_of_two_sessions(backend: Backend) -> None:
    instance, recorders = await backend.started(), [Recorder(f"s{n}") for n in range(20)]
    event_loop, mine = asyncio.get_running_loop(), asyncio.current_task()
    cancelled: list[asyncio.Task[Any]] = []

    def cancel_all() -> None:
        for task in asyncio.all_tasks():
            if task is not mine:
                task.cancel()
                cancelled.append(task)

    def busy(recorder: Recorder) -> pubsub.Handler:
        async def handle(topic: str, message: Any) -> None:
            if not cancelled:
                event_loop.call_soon(cancel_all)
            time.sleep(0.002)  # noqa: ASYNC251 - longer than handlers run at a stretch
            await recorder(topic, message)

        return handle

    for recorder in recorders:
        await instance.subscribe_topic(recorder.name, "t", busy(recorder))
    for n in range(3):
        await instance.broadcast("t", n)
    for recorder in recorders:
        assert await recorder.received(3) == [0, 1, 2]
    assert cancelled
    await until_figures(instance, queued_messages=0, delivered=60, handler_failed=0)


@every_kind
async def test_handlers_that_do_not_wait_share_a_task(backend: Backend) -> None:
    instance, tasks = await backend.started(), set[asyncio.Task[Any] | None]()
    recorder = Recorder()

    async def handle(topic: str, message: Any) -> None:
        assert variable.get() == "of the test"
        tasks.add(asyncio.current_task())
        await recorder(topic, message)

    variable.set("of the test")
    for n in range(100):
        await instance.subscribe_topic(f"s{n}", "t", handle)

    async def share_a_task() -> None:
        # Where a handler, or the machine, takes a millisecond, the others are left to another Task.
        while len(tasks) != 1:
            tasks.clear()
            recorder.calls.clear()
            await instance.broadcast("t", 1)
            await recorder.received(100)

    await bounded(share_a_task())
    assert None not in tasks
    await until_figures(instance, handler_failed=0)


@every_kind
async def test_a_handler_whose_other_task_is_cancelled(backend: Backend) -> None:
    instance, recorder = await backend.started(), Recorder()
    others: list[asyncio.Task[Any]] = []

    async def await_another(topic: str, message: Any) -> None:
        if message == 0:
            others.append(asyncio.create_task(asyncio.Event().wait()))
            await others[0]
        await recorder(topic, message)

    await instance.subscribe_topic("s", "t", await_another)
    for n in range(3):
        await instance.broadcast("t", n)
    await until(lambda: others)
    others[0].cancel()
    assert await recorder.received(2) == [1, 2]


@every_kind
@pytest.mark.parametrize("rounds", [1, 4])
@both_orderings
async def test_all_tasks_of_the_app_are_cancelled(
    backend: Backend, rounds: int, ordering: Ordering
) -> None:
    """As some servers do when they shut down: what waits is not lost, and nothing hangs."""
    instance = await backend.started(ordering=ordering)
    gated, quick = Gated(), Recorder()
    await instance.subscribe_topic("gated", "t", gated)
    await instance.subscribe_topic("quick", "t", quick)
    in_hand = 0
    for round_ in range(rounds):
        for n in range(5):
            await instance.broadcast("t", [round_, n])
        in_hand = 5 * (round_ + 1) if ordering == "concurrent" else round_ + 1
        await gated.entered(in_hand)
        await quick.received(5 * (round_ + 1))
        cancelled = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in cancelled:
            task.cancel()
        await bounded(asyncio.gather(*cancelled, return_exceptions=True))
    gated.release()
    await settled(instance, "gated", "quick")
    assert gated.cancelled == in_hand
    assert len(gated.messages) == 5 * rounds - in_hand
    said = [[round_, n] for round_ in range(rounds) for n in range(5)]
    assert quick.messages == said
    assert gated.messages == said[in_hand:]


# Coming and going from inside


@every_kind
@pytest.mark.parametrize("method", ["unsubscribe_topic", "unsubscribe_all"])
async def test_leaving_from_inside(backend: Backend, method: str) -> None:
    instance, recorder = await backend.started(), Recorder()

    async def leave(topic: str, message: Any) -> None:
        await recorder(topic, message)
        if method == "unsubscribe_all":
            await instance.unsubscribe_all("s")
        else:
            await instance.unsubscribe_topic("s", topic)
        await recorder(topic, "left")

    await instance.subscribe_topic("s", "t", leave)
    await asyncio.gather(*(instance.broadcast("t", n) for n in range(20)))
    await recorder.received(2)
    await settled(instance, "s")
    assert recorder.messages == [0, "left"]
    await until_figures(instance, subscriptions=0, sessions=0, queued_messages=0)


@every_kind
async def test_throwing_another_session_out_from_inside(backend: Backend) -> None:
    instance = await backend.started()
    recorders = {session: Recorder(session) for session in ("ada", "bob")}
    inside: set[str] = set()

    def handler_of(session: str, other: str) -> pubsub.Handler:
        async def throw_out(topic: str, message: Any) -> None:
            inside.add(session)
            await recorders[session](topic, message)
            await instance.unsubscribe_all(other)
            inside.remove(session)

        return throw_out

    await instance.subscribe_topic("ada", "t", handler_of("ada", "bob"))
    await instance.subscribe_topic("bob", "t", handler_of("bob", "ada"))
    for n in range(5):
        await instance.broadcast("t", n)
    await settled(instance, "a bystander")
    await until(lambda: not inside and figures(instance)["queued_messages"] == 0)
    left = figures(instance)["sessions"]
    heard = sorted(len(recorder.messages) for recorder in recorders.values())
    # Either one was quicker, or both were called for the first message before either left.
    assert (left, heard) in ((1, [0, 5]), (0, [1, 1])), recorders


@every_kind
@both_orderings
async def test_speaking_from_inside(backend: Backend, ordering: Ordering) -> None:
    instance, recorder = await backend.started(ordering=ordering), Recorder()

    async def countdown(topic: str, message: Any) -> None:
        await recorder(topic, message)
        if message:
            await instance.broadcast(topic, message - 1)

    await instance.subscribe_topic("s", "t", countdown)
    await instance.broadcast("t", 50)
    assert await recorder.received(51) == list(range(50, -1, -1))


@every_kind
async def test_subscribing_and_changing_topics_from_inside(backend: Backend) -> None:
    instance, recorder = await backend.started(), Recorder()

    async def move_on(topic: str, message: Any) -> None:
        await recorder(topic, message)
        following = f"t{int(topic[1:]) + 1}"
        if following != "t20":
            await instance.subscribe_topic("s", following, move_on)
            await instance.unsubscribe_topic("s", topic)
            await instance.broadcast(topic, "nobody listens")
            await instance.broadcast(following, "follow")

    await instance.subscribe_topic("s", "t0", move_on)
    await instance.broadcast("t0", "follow")
    await recorder.received(20)
    await settled(instance, "s")
    assert recorder.calls == [(f"t{n}", "follow") for n in range(20)]
    assert figures(instance)["subscribed_topics"] == 1


@every_kind
async def test_a_new_handler_from_inside_the_old(backend: Backend) -> None:
    instance, new, recorder = await backend.started(), Recorder("new"), Recorder("old")

    async def replace(topic: str, message: Any) -> None:
        await recorder(topic, message)
        await instance.subscribe_topic("s", topic, new)

    await instance.subscribe_topic("s", "t", replace)
    for n in range(10):
        await instance.broadcast("t", n)
    await settled(instance, "s")
    assert recorder.messages == [0]
    assert new.messages == list(range(1, 10))


@every_kind
async def test_what_waits_goes_to_the_new_handler(backend: Backend) -> None:
    instance, old, new = await backend.started(), Gated("old"), Recorder("new")
    await instance.subscribe_topic("s", "t", old)
    for n in range(5):
        await instance.broadcast("t", n)
    await old.entered()
    await until_figures(instance, queued_messages=4)
    await instance.subscribe_topic("s", "t", new)
    old.release()
    assert await new.received(4) == [1, 2, 3, 4]
    assert old.messages == [0]


@every_kind
@pytest.mark.parametrize("method", ["unsubscribe_topic", "unsubscribe_all"])
async def test_what_waits_is_dropped_with_its_subscription(backend: Backend, method: str) -> None:
    instance, gated, again = await backend.started(), Gated(), Recorder("again")
    await instance.subscribe_topic("s", "t", gated)
    for n in range(5):
        await instance.broadcast("t", n)
    await gated.entered()
    await until_figures(instance, queued_messages=4)
    if method == "unsubscribe_all":
        await instance.unsubscribe_all("s")
    else:
        await instance.unsubscribe_topic("s", "t")
    # The call that had begun runs on; whoever subscribes anew hears none of the rest.
    await instance.subscribe_topic("s", "t", again)
    gated.release()
    assert await gated.received(1) == [0]
    await instance.broadcast("t", "after it")
    await settled(instance, "s")
    assert gated.begun == [0]
    assert again.messages == ["after it"]


# Where a handler runs


@pytest.mark.parametrize("backend", ["redis", "memory"], indirect=True)
@both_orderings
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
async def test_a_handler_may_do_what_a_task_may(
    backend: Backend, ordering: Ordering, work: Work
) -> None:
    instance = await backend.started(ordering=ordering)
    done, plain = Recorder("done"), Recorder("plain")

    async def handler(topic: str, message: Any) -> None:
        await work()
        await done(topic, message)

    for n in range(2):
        await instance.subscribe_topic(f"works {n}", "t", handler)
        await instance.subscribe_topic(f"plain {n}", "t", plain)
    for n in range(3):
        await instance.broadcast("t", n)
    assert sorted(await done.received(6)) == sorted(await plain.received(6)) == [0, 0, 1, 1, 2, 2]
    await until_figures(instance, handler_failed=0, delivered=12)


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@every_kind
@both_orderings
async def test_the_context_is_that_of_the_subscription(
    backend: Backend, ordering: Ordering
) -> None:
    instance, seen = await backend.started(ordering=ordering), Recorder()

    async def look(topic: str, message: Any) -> None:
        await seen(topic, [message, variable.get()])
        await asyncio.sleep(0)
        await seen(topic, [message, variable.get()])

    async def subscribe_as(name: str) -> None:
        variable.set(name)
        await instance.subscribe_topic("s", name, look)
        variable.set("too late")

    variable.set("of the test")
    for name in ("t1", "t2", "t3"):
        await asyncio.create_task(subscribe_as(name))
    for name in ("t2", "t1", "t3", "t1"):
        await instance.broadcast(name, 0)
    await seen.received(8)
    assert {(topic, shown) for topic, (_, shown) in seen.calls} == {
        (name, name) for name in ("t1", "t2", "t3")
    }
    await asyncio.create_task(subscribe_as("t1"))
    variable.set("while it is called")
    await instance.broadcast("t1", 1)
    assert (await seen.received(10))[8:] == [[1, "t1"], [1, "t1"]]


@every_kind
async def test_what_a_handler_sets_stays_with_its_session(backend: Backend) -> None:
    instance, seen = await backend.started(), Recorder()

    async def set_it(topic: str, message: Any) -> None:
        variable.set("set by a handler")
        await seen(topic, None)

    async def look(topic: str, message: Any) -> None:
        await seen(topic, variable.get())

    variable.set("of the test")
    await instance.subscribe_topic("one", "set", set_it)
    await instance.subscribe_topic("another", "look", look)
    for _ in range(2):
        await instance.broadcast("set", 0)
        await instance.broadcast("look", 0)
    await settled(instance, "one", "another")
    assert [shown for topic, shown in seen.calls if topic == "look"] == ["of the test"] * 2
    assert variable.get() == "of the test"
