"""The recorder that stands in for a broker in an app's tests."""

import asyncio
import inspect
from collections.abc import Coroutine
from typing import Any

import pytest

import fanwire
from fanwire.testing import RecordingPubSub, TestPubSub
from tests.visitors import App

METHODS = [
    "subscribe_topic",
    "unsubscribe_topic",
    "unsubscribe_all",
    "broadcast",
    "start",
    "stop",
]


@pytest.fixture
def app() -> App:
    return App()


def finished(coroutine: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine that waits for nothing, without an event loop."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


def parameters(method: Any) -> list[tuple[str, Any, Any]]:
    found = inspect.signature(method).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in found]


# The interface


def test_it_is_what_pyview_asks_for() -> None:
    assert isinstance(RecordingPubSub(), fanwire.PubSubProvider)


@pytest.mark.parametrize("name", METHODS)
def test_its_methods_are_those_of_the_backends(name: str) -> None:
    ours, native = RecordingPubSub(), fanwire.MemoryPubSub()
    assert inspect.iscoroutinefunction(getattr(RecordingPubSub, name))
    assert parameters(getattr(ours, name)) == parameters(getattr(native, name))


@pytest.mark.parametrize("name", [*METHODS, "clear"])
def test_its_methods_are_documented(name: str) -> None:
    documentation = inspect.getdoc(getattr(RecordingPubSub, name))
    assert documentation is not None and len(documentation.split()) >= 4


def test_both_names_are_one_class_which_pytest_does_not_collect() -> None:
    assert TestPubSub is RecordingPubSub
    assert RecordingPubSub.__test__ is False


# What is recorded


async def test_subscriptions_are_recorded_in_order(app: App) -> None:
    ada, ben = app.session("ada"), app.session("ben")
    await ada.subscribe("news", "sport")
    await ben.subscribe("news")
    await ada.subscribe("news")
    assert app.pubsub.subscriptions == [
        ("ada", "news"),
        ("ada", "sport"),
        ("ben", "news"),
        ("ada", "news"),
    ]
    assert app.pubsub.handlers == {
        "news": {"ada": ada.handle, "ben": ben.handle},
        "sport": {"ada": ada.handle},
    }


async def test_unsubscriptions_are_recorded_and_leave_nothing(app: App) -> None:
    ada, ben = app.session("ada"), app.session("ben")
    await ada.subscribe("news", "sport", "weather")
    await ben.subscribe("news")
    await app.pubsub.unsubscribe_topic("ada", "sport")
    await app.pubsub.unsubscribe_all("ada")
    assert app.pubsub.unsubscriptions == [("ada", "sport"), ("ada", "news"), ("ada", "weather")]
    assert app.pubsub.handlers == {"news": {"ben": ben.handle}}
    await app.pubsub.unsubscribe_topic("ben", "news")
    assert app.pubsub.handlers == {}


async def test_who_is_not_subscribed_may_unsubscribe(app: App) -> None:
    await app.session("ada").subscribe("news")
    await app.pubsub.unsubscribe_topic("ada", "sport")
    await app.pubsub.unsubscribe_topic("ben", "news")
    await app.pubsub.unsubscribe_all("ben")
    assert app.pubsub.unsubscriptions == [("ada", "sport"), ("ben", "news")]
    assert list(app.pubsub.handlers) == ["news"]


async def test_broadcasts_are_recorded_though_nobody_listens(app: App) -> None:
    message = {"n": [1]}
    await app.pubsub.broadcast("news", message)
    await app.pubsub.broadcast("news", 2, except_session_id="ada")
    assert app.pubsub.broadcasts == [("news", {"n": [1]}), ("news", 2)]
    assert app.pubsub.broadcasts[0][1] is message


async def test_started_and_stopped(app: App) -> None:
    pubsub = app.pubsub
    assert (pubsub.started, pubsub.stopped) == (False, False)
    await pubsub.start()
    assert (pubsub.started, pubsub.stopped) == (True, False)
    await pubsub.stop()
    assert (pubsub.started, pubsub.stopped) == (True, True)
    await pubsub.start()
    assert (pubsub.started, pubsub.stopped) == (True, False)


async def test_clear_forgets_what_was_and_unsubscribes_nobody(app: App) -> None:
    pubsub, ada = app.pubsub, app.session("ada")
    await pubsub.start()
    await ada.subscribe("news", "sport")
    await pubsub.unsubscribe_topic("ada", "sport")
    await pubsub.broadcast("news", 1)
    pubsub.clear()
    assert (pubsub.subscriptions, pubsub.unsubscriptions, pubsub.broadcasts) == ([], [], [])
    assert pubsub.started
    await pubsub.broadcast("news", 2)
    assert pubsub.broadcasts == [("news", 2)]
    assert ada.heard == [("news", 1), ("news", 2)]


# Delivery


async def test_broadcast_returns_when_every_handler_has_run(app: App) -> None:
    async def slow(topic: str, message: Any) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    for name in ("ada", "ben"):
        session = app.session(name)
        session.react = slow
        await session.subscribe("news")
    await app.pubsub.broadcast("news", 1)
    assert app.log == ["ada begins 1", "ada ends 1", "ben begins 1", "ben ends 1"]


async def test_a_handler_gets_topic_and_the_very_message(app: App) -> None:
    ada, message = app.session("ada"), object()
    await ada.subscribe("news", "sport")
    await app.pubsub.broadcast("sport", message)
    ((topic, heard),) = ada.heard
    assert topic == "sport" and heard is message


async def test_one_session_can_be_left_out(app: App) -> None:
    ada, ben = app.session("ada"), app.session("ben")
    await ada.subscribe("news")
    await ben.subscribe("news")
    await app.pubsub.broadcast("news", 1, except_session_id="ada")
    assert (ada.heard, ben.heard) == ([], [("news", 1)])


async def test_the_last_handler_of_a_session_and_topic_counts(app: App) -> None:
    old, new = app.session("ada"), app.session("ada")
    await old.subscribe("news")
    await new.subscribe("news")
    await app.pubsub.broadcast("news", 1)
    assert (old.heard, new.heard) == ([], [("news", 1)])


def test_it_needs_no_event_loop(app: App) -> None:
    ada = app.session("ada")
    finished(app.pubsub.start())
    finished(ada.subscribe("news"))
    finished(app.pubsub.broadcast("news", 1))
    finished(app.pubsub.unsubscribe_all("ada"))
    assert ada.heard == [("news", 1)]
