"""The hub adapter between threads and the event loop, and after its end."""

import asyncio
import contextvars
import functools
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import fanwire
from fanwire.pyview import hub as hub_module
from fanwire.pyview.hub import HubAdapter
from tests.deadlines import DEADLINE_SECONDS, bounded, until


@pytest.fixture
def pubsub() -> fanwire.MemoryPubSub:
    return fanwire.MemoryPubSub(json=True)


@pytest.fixture
async def hub(pubsub: fanwire.MemoryPubSub) -> AsyncIterator[HubAdapter]:
    adapter = HubAdapter(pubsub)
    yield adapter
    await adapter.close()


class Received:
    """Where a handler was called, and with what."""

    def __init__(self) -> None:
        self.loop_thread = threading.get_ident()
        self.calls: list[tuple[str, Any]] = []

    def note(self, topic: str, message: Any) -> None:
        where = "loop" if threading.get_ident() == self.loop_thread else "thread"
        self.calls.append((where, message))

    async def note_async(self, topic: str, message: Any) -> None:
        asyncio.current_task()
        self.note(topic, message)


class AsyncCallable:
    def __init__(self, received: Received) -> None:
        self.received = received

    async def __call__(self, topic: str, message: Any) -> None:
        await self.received.note_async(topic, message)


@pytest.mark.parametrize("subscribed", ["subscribe_topic", "subscribe_topic_async"])
@pytest.mark.parametrize("kind", ["coroutine", "partial", "lambda", "object", "plain"])
async def test_any_handler_may_be_given_to_any_method(
    hub: HubAdapter, subscribed: str, kind: str
) -> None:
    received = Received()
    handlers: dict[str, Callable[..., Any]] = {
        "coroutine": received.note_async,
        "partial": functools.partial(received.note_async),
        "lambda": lambda topic, message: received.note_async(topic, message=message),
        "object": AsyncCallable(received),
        "plain": received.note,
    }
    handler = handlers[kind]
    if subscribed == "subscribe_topic":
        await asyncio.to_thread(hub.subscribe_topic, "ada", "news", handler)
    else:
        await hub.subscribe_topic_async("ada", "news", handler)
    await hub.send_all_on_topic_async("news", 1)
    await until(lambda: received.calls)
    in_a_thread = kind == "plain" and subscribed == "subscribe_topic"
    assert received.calls == [("thread" if in_a_thread else "loop", 1)]


async def test_a_plain_handler_that_blocks_holds_up_its_own_session_alone(hub: HubAdapter) -> None:
    release, blocked, free = threading.Event(), Received(), Received()
    daemons: list[bool] = []

    def block(topic: str, message: Any) -> None:
        daemons.append(threading.current_thread().daemon)
        assert release.wait(DEADLINE_SECONDS)
        blocked.note(topic, message)

    await asyncio.to_thread(hub.subscribe_topic, "blocked", "news", block)
    await asyncio.to_thread(hub.subscribe_topic, "free", "news", free.note)
    for number in range(3):
        await hub.send_all_on_topic_async("news", number)
    await until(lambda: daemons and len(free.calls) == 3)
    assert daemons == [True] and blocked.calls == []  # the second message waits for the first
    release.set()
    await until(lambda: len(blocked.calls) == 3)
    assert [message for _, message in blocked.calls] == [0, 1, 2]
    assert daemons == [True] * 3


@pytest.mark.parametrize("error", [ValueError("no"), StopIteration(), SystemExit(3)])
async def test_a_handler_that_raises_in_its_thread_is_told_and_counted(
    hub: HubAdapter,
    pubsub: fanwire.MemoryPubSub,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    received = Received()

    def fail_first(topic: str, message: Any) -> None:
        received.note(topic, message)
        if message == 0:
            raise error

    await asyncio.to_thread(hub.subscribe_topic, "ada", "news", fail_first)
    for number in range(2):
        await hub.send_all_on_topic_async("news", number)
    await until(lambda: len(received.calls) == 2)
    assert pubsub.stats()["handler_failed"] == 1
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "'ada'" in record.getMessage() and "'news'" in record.getMessage()
    assert record.exc_info is not None


async def test_a_thread_has_what_it_asked_for_when_its_call_returns(
    hub: HubAdapter, pubsub: fanwire.MemoryPubSub
) -> None:
    received = Received()

    def in_a_thread() -> tuple[int, int]:
        hub.subscribe_topic("ada", "news", received.note)
        subscribed = pubsub.stats()["subscriptions"]
        hub.send_all_on_topic("news", 1)
        hub.unsubscribe_all("ada")
        return subscribed, pubsub.stats()["subscriptions"]

    assert await bounded(asyncio.to_thread(in_a_thread)) == (1, 0)


async def test_a_thread_is_told_what_went_wrong(hub: HubAdapter) -> None:
    with pytest.raises(TypeError, match="JSON"):
        await asyncio.to_thread(hub.send_all, object())


class Stuck(fanwire.MemoryPubSub):
    async def broadcast(self, *arguments: Any, **options: Any) -> None:
        await asyncio.Event().wait()


async def test_a_thread_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_THREAD_WAIT_SECONDS", 0.01)
    with pytest.raises(TimeoutError, match=r"event loop has not done it within 0\.01 s"):
        await asyncio.to_thread(HubAdapter(Stuck()).send_all, 1)
    await until(lambda: len(asyncio.all_tasks()) == 1, "the call is cancelled")


async def test_the_backends_own_time_out_reaches_the_thread() -> None:
    class Down(fanwire.MemoryPubSub):
        async def broadcast(self, *arguments: Any, **options: Any) -> None:
            raise fanwire.BrokerTimeoutError("the broker is down")

    with pytest.raises(fanwire.BrokerTimeoutError, match="the broker is down"):
        await asyncio.to_thread(HubAdapter(Down()).send_all, 1)


async def test_on_the_loops_own_thread_calls_are_done_later_and_in_order(hub: HubAdapter) -> None:
    received = Received()
    hub.subscribe_topic("ada", "news", received.note_async)
    for number in range(3):
        hub.send_all_on_topic("news", number)
    hub.unsubscribe_topic("ada", "weather")
    assert received.calls == []
    await until(lambda: len(received.calls) == 3)
    assert received.calls == [("loop", 0), ("loop", 1), ("loop", 2)]
    hub.send_all_on_topic("news", 3)  # and again, after there was nothing to do
    await until(lambda: len(received.calls) == 4)


async def test_what_is_sent_right_after_a_subscription_finds_it_in_place() -> None:
    class Slow(fanwire.MemoryPubSub):
        async def subscribe_topic(self, session_id: str, topic: str, handler: Any) -> None:
            for _ in range(10):  # as one that waits for a broker's word
                await asyncio.sleep(0)
            await super().subscribe_topic(session_id, topic, handler)

    hub, received = HubAdapter(Slow()), Received()
    hub.subscribe_topic("ada", "news", received.note_async)
    hub.send_all_on_topic("news", 1)
    await until(lambda: received.calls)
    await hub.close()


async def test_what_goes_wrong_on_the_loops_own_thread_is_logged(
    hub: HubAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    received = Received()
    hub.subscribe_topic("ada", "news", received.note_async)
    hub.send_all_on_topic("news", object())
    hub.send_all_on_topic("news", 1)
    await until(lambda: received.calls)
    assert [message for _, message in received.calls] == [1]
    [record] = [record for record in caplog.records if record.name == "fanwire"]
    assert record.levelno == logging.ERROR and record.exc_info is not None
    assert "a call that nobody waits for failed" in record.getMessage()


@pytest.mark.parametrize("handled", ["on the loop", "in a thread"])
@pytest.mark.parametrize("called", ["from a thread", "on the loop"])
async def test_a_handler_has_the_context_of_who_subscribed_it(
    hub: HubAdapter, called: str, handled: str
) -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    seen: list[str] = []

    async def see(topic: str, message: Any) -> None:
        seen.append(user.get())

    handler = see if handled == "on the loop" else lambda *_: seen.append(user.get())

    def subscribe() -> None:
        user.set("ada")
        hub.subscribe_topic("ada", "news", handler)

    if called == "from a thread":
        await asyncio.to_thread(subscribe)
    else:
        contextvars.copy_context().run(subscribe)
    hub.send_all_on_topic("news", 1)
    await until(lambda: seen)
    assert (seen, user.get()) == (["ada"], "nobody")


async def test_a_closed_hub_does_nothing_and_has_left_nothing(
    pubsub: fanwire.MemoryPubSub, caplog: pytest.LogCaptureFixture
) -> None:
    hub, received = HubAdapter(pubsub), Received()
    await hub.subscribe_topic_async("ada", "news", received.note_async)
    await hub.subscribe_async("bob", received.note_async)
    await pubsub.subscribe_topic("of the app itself", "news", received.note_async)
    hub.subscribe_topic("eve", "news", received.note_async)  # before the end, though only just
    hub.send_others_on_topic("ada", "news", "the last word")
    await hub.close()
    assert (pubsub.stats()["sessions"], pubsub.stats()["subscriptions"]) == (1, 1)

    await hub.unsubscribe_topic_async("ada", "news")
    await hub.unsubscribe_all_async("ada")
    await hub.unsubscribe_async("ada")
    hub.unsubscribe_all("ada")
    await asyncio.to_thread(hub.unsubscribe_topic, "ada", "news")
    assert caplog.records == []

    await hub.subscribe_topic_async("ada", "news", received.note_async)
    hub.subscribe_topic("ada", "news", received.note)
    await hub.send_all_on_topic_async("news", "late")
    await asyncio.to_thread(hub.send_all_on_topic, "news", "late")
    assert pubsub.stats()["subscriptions"] == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 4
    assert "the app has ended, so nothing comes of" in caplog.text
    await pubsub.broadcast("news", "of the app itself")
    await until(lambda: ("loop", "of the app itself") in received.calls)
    of_app = [message for _, message in received.calls]
    assert of_app[-1] == "of the app itself" and "the last word" in of_app
    assert set(of_app) == {"of the app itself", "the last word"}


async def test_closing_does_not_wait_for_what_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_CLOSE_SECONDS", 0.01)
    hub = HubAdapter(Stuck())
    hub.send_all(1)
    await bounded(hub.close())
    await until(lambda: len(asyncio.all_tasks()) == 1, "the call is cancelled")


async def test_a_thread_that_comes_after_the_loop_is_told_so(
    pubsub: fanwire.MemoryPubSub,
) -> None:
    async def make() -> HubAdapter:
        return HubAdapter(pubsub)

    hub = await asyncio.to_thread(asyncio.run, make())  # a loop that was not closed in order
    with pytest.raises(RuntimeError, match="loop is closed"):
        await asyncio.to_thread(hub.send_all, 1)
