"""Calls of the hub on the event loop's own thread, which leaves them to the loop: their order."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pyview.vendor.flet.pubsub import PubSubHub

import fanwire
from fanwire.pyview import hub as hub_module
from fanwire.pyview.hub import HubAdapter
from fanwire.testing import RecordingPubSub
from tests.deadlines import bounded, until


class Gated(fanwire.MemoryPubSub):
    """Every subscription, and the message "stuck", wait until the gate is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.begun: list[Any] = []

    async def subscribe_topic(self, session_id: str, topic: str, handler: Any) -> None:
        self.begun.append(session_id)
        await self.gate.wait()
        await super().subscribe_topic(session_id, topic, handler)

    async def broadcast(self, topic: str, message: Any, **but: Any) -> None:
        self.begun.append(message)
        if message == "stuck":
            await self.gate.wait()
        await super().broadcast(topic, message, **but)


class Inbox:
    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def take(self, topic: str, message: Any) -> None:
        self.messages.append(message)


@pytest.fixture
async def backend() -> Gated:
    return Gated()


@pytest.fixture
async def hub(backend: Gated) -> AsyncIterator[HubAdapter]:
    adapter = HubAdapter(backend)
    yield adapter
    backend.gate.set()
    await adapter.close()


@pytest.mark.parametrize("kind", ["PyView's own", "the adapter"])
async def test_what_is_awaited_comes_after_what_was_called_before(kind: str) -> None:
    pubsub = fanwire.MemoryPubSub()
    hub: Any = HubAdapter(pubsub) if kind == "the adapter" else PubSubHub()
    ada, ben = Inbox(), Inbox()
    hub.subscribe_topic("ada", "news", ada.take)
    await hub.send_all_on_topic_async("news", 1)
    hub.subscribe_topic("ben", "news", ben.take)
    await hub.unsubscribe_all_async("ben")
    await hub.send_all_on_topic_async("news", 2)
    await until(lambda: len(ada.messages) == 2)
    assert (sorted(ada.messages), ben.messages) == ([1, 2], [])
    if kind == "the adapter":
        assert pubsub.stats()["sessions"] == 1
        await hub.close()


async def test_what_a_thread_asks_for_comes_after_it_too(hub: HubAdapter, backend: Gated) -> None:
    ada = Inbox()
    backend.gate.set()
    hub.subscribe_topic("ada", "news", ada.take)
    await bounded(asyncio.to_thread(hub.send_all_on_topic, "news", 1))
    await until(lambda: ada.messages)


async def test_who_leaves_hears_what_was_sent_before(hub: HubAdapter, backend: Gated) -> None:
    ada = Inbox()
    backend.gate.set()
    await hub.subscribe_topic_async("ada", "news", ada.take)
    backend.gate.clear()
    hub.send_all_on_topic("news", "stuck")
    leaving = asyncio.create_task(hub.unsubscribe_all_async("ada"))
    await until(lambda: backend.begun[-1] == "stuck")
    assert not leaving.done() and backend.stats()["sessions"] == 1
    backend.gate.set()
    await bounded(leaving)
    assert backend.stats()["sessions"] == 0


async def test_sessions_do_not_wait_for_each_other_and_a_message_waits_for_all(
    hub: HubAdapter, backend: Gated
) -> None:
    inboxes = [Inbox() for _ in range(10)]
    for number, inbox in enumerate(inboxes):
        hub.subscribe_topic(f"session {number}", "news", inbox.take)
    await bounded(hub.unsubscribe_topic_async("of another session", "news"))
    hub.send_all_on_topic("news", "hello")
    await until(lambda: len(backend.begun) == 10, "all have begun")
    for _ in range(10):  # rounds of the loop in which it could be sent
        await asyncio.sleep(0)
    assert "hello" not in backend.begun
    backend.gate.set()
    await until(lambda: all(inbox.messages == ["hello"] for inbox in inboxes))


async def test_a_cancelled_call_holds_up_no_other(hub: HubAdapter, backend: Gated) -> None:
    hub.send_all_on_topic("news", "stuck")
    hub.send_all_on_topic("news", 1)
    await until(lambda: backend.begun == ["stuck"])
    next(iter(hub._left_to_loop)).cancel()
    await until(lambda: backend.begun == ["stuck", 1])
    hub.send_all_on_topic("news", 2)
    await until(lambda: backend.begun == ["stuck", 1, 2])
    await until(lambda: not hub._left_to_loop)


async def test_a_call_that_hangs_holds_up_the_others_for_a_while_only(
    hub: HubAdapter, backend: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "_ORDER_SECONDS", 0.01)
    hub.send_all_on_topic("news", "stuck")
    hub.send_all_on_topic("news", 1)
    await bounded(hub.send_all_on_topic_async("news", 2))
    await until(lambda: sorted(map(str, backend.begun)) == ["1", "2", "stuck"])


async def test_a_handler_that_runs_inside_a_call_does_not_wait_for_it() -> None:
    pubsub, heard = RecordingPubSub(), list[Any]()
    hub = HubAdapter(pubsub)

    async def answer(topic: str, message: Any) -> None:
        heard.append(message)
        if message == 1:
            hub.send_all_on_topic("news", 2)
            await hub.send_all_on_topic_async("news", 3)

    await hub.subscribe_topic_async("ada", "news", answer)
    hub.send_all_on_topic("news", 1)
    await until(lambda: sorted(heard) == [1, 2, 3])
    await hub.close()


async def test_closing_tells_how_many_calls_come_to_nothing(
    backend: Gated, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub_module, "_CLOSE_SECONDS", 0.01)
    hub, ada = HubAdapter(backend), Inbox()
    for number in range(3):
        hub.subscribe_topic(f"session {number}", "news", ada.take)
    hub.send_all_on_topic("news", 1)
    await bounded(hub.close())
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "nothing comes of 4 calls that were left to the event loop" in record.getMessage()
    await until(lambda: len(asyncio.all_tasks()) == 1)
    assert (hub._left_to_loop, hub._subscribed, backend.begun.count(1)) == ({}, {}, 0)


async def test_a_refused_subscription_is_not_kept() -> None:
    hub, ada = HubAdapter(fanwire.MemoryPubSub()), Inbox()
    await hub.subscribe_topic_async("ada", "news", ada.take)
    for session_id, topic in [("\ud800", "news"), ("ada", "\ud800")]:
        with pytest.raises(UnicodeEncodeError):
            await hub.subscribe_topic_async(session_id, topic, ada.take)
    assert hub._subscribed == {"ada": {"news"}}
    await hub.close()


async def test_a_refused_replacement_leaves_the_former_to_be_unsubscribed() -> None:
    class Refusing(fanwire.MemoryPubSub):
        async def subscribe_topic(self, session_id: str, topic: str, handler: Any) -> None:
            if self.stats()["subscriptions"]:
                raise fanwire.BrokerError("no")
            await super().subscribe_topic(session_id, topic, handler)

    pubsub, ada = Refusing(), Inbox()
    hub = HubAdapter(pubsub)
    await hub.subscribe_topic_async("ada", "news", ada.take)
    with pytest.raises(fanwire.BrokerError):
        await hub.subscribe_topic_async("ada", "news", ada.take)
    await hub.close()
    assert pubsub.stats()["subscriptions"] == 0


async def test_closing_goes_on_where_a_session_cannot_be_unsubscribed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(fanwire.MemoryPubSub):
        async def unsubscribe_all(self, session_id: str) -> None:
            if session_id == "ada":
                raise fanwire.BrokerError("no")
            await super().unsubscribe_all(session_id)

    pubsub, inbox = Failing(), Inbox()
    hub = HubAdapter(pubsub)
    for session_id in ("ada", "ben"):
        await hub.subscribe_topic_async(session_id, "news", inbox.take)
    await hub.close()
    assert pubsub.stats()["sessions"] == 1
    [record] = caplog.records
    assert "session 'ada' could not be unsubscribed" in record.getMessage()
