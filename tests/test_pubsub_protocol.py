"""The interface: the protocol, and what is refused at it."""

import inspect
from typing import Any

import pytest

import fanwire
from tests import pubsub
from tests.pubsub import (
    Backend,
    Provider,
    Recorder,
    every_kind,
    figures,
    settled,
    until_figures,
)

backend = pubsub.backend

CLASSES: list[Any] = [fanwire.RedisPubSub, fanwire.MemoryPubSub, fanwire.UploadProgressPublisher]
METHODS = [
    "subscribe_topic",
    "unsubscribe_topic",
    "unsubscribe_all",
    "broadcast",
    "start",
    "stop",
]


async def ignore(topic: str, message: Any) -> None:
    """A handler of whom nothing is expected."""


# The protocol


@every_kind
async def test_every_backend_satisfies_the_protocol(backend: Backend) -> None:
    instance = backend.make()
    assert isinstance(instance, Provider)
    assert isinstance(instance, fanwire.PubSubProvider)
    typed: Provider = instance
    also_typed: fanwire.PubSubProvider = instance
    assert typed is also_typed


def test_something_else_does_not() -> None:
    assert not isinstance(fanwire.ConnectionManager(), fanwire.PubSubProvider)
    assert not isinstance(fanwire.ConnectionManager(), Provider)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cls", CLASSES)
def test_the_methods_are_coroutine_functions(cls: Any, method: str) -> None:
    assert inspect.iscoroutinefunction(getattr(cls, method))
    parameters = list(inspect.signature(getattr(cls, method)).parameters)
    documented = list(inspect.signature(getattr(Provider, method)).parameters)
    assert parameters[: len(documented)] == documented
    assert inspect.getdoc(getattr(cls, method))


@every_kind
async def test_arguments_may_be_named(backend: Backend) -> None:
    instance, recorder = await backend.started(), Recorder()
    await instance.subscribe_topic(session_id="s", topic="t", handler=recorder)
    await instance.broadcast(topic="t", message=1, except_session_id=None)
    assert await recorder.received(1) == [1]
    await instance.unsubscribe_topic(session_id="s", topic="t")
    await instance.unsubscribe_all(session_id="s")


@every_kind
async def test_nothing_happens_before_it_is_awaited(backend: Backend) -> None:
    instance, recorder = await backend.started(), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    made = [
        instance.subscribe_topic("s", "another", ignore),
        instance.broadcast("t", "never said"),
        instance.unsubscribe_topic("s", "t"),
        instance.unsubscribe_all("s"),
        instance.stop(),
    ]
    assert all(inspect.iscoroutine(coroutine) for coroutine in made)
    await instance.broadcast("t", "said")
    await settled(instance, "s")
    assert recorder.messages == ["said"]
    assert figures(instance)["subscriptions"] == 1
    for coroutine in made:
        coroutine.close()
    await instance.broadcast("t", "said again")
    assert await recorder.received(2) == ["said", "said again"]


# What is refused


@every_kind
async def test_a_handler_that_cannot_be_called(backend: Backend) -> None:
    instance = await backend.started()
    handlers: list[Any] = [None, "handler", 5, ignore("t", 1)]
    for handler in handlers:
        with pytest.raises(TypeError, match="handler"):
            await instance.subscribe_topic("s", "t", handler)
    handlers[3].close()
    assert figures(instance)["subscriptions"] == 0
    await until_figures(instance, sessions=0, subscribed_topics=0)


@every_kind
@pytest.mark.parametrize(
    "wrong", [None, 5, b"bytes", ["t"], object()], ids=lambda wrong: type(wrong).__name__
)
async def test_names_that_are_no_str(backend: Backend, wrong: Any) -> None:
    instance = await backend.started()
    for made in (
        instance.subscribe_topic(wrong, "t", ignore),
        instance.subscribe_topic("s", wrong, ignore),
        instance.unsubscribe_topic(wrong, "t"),
        instance.unsubscribe_topic("s", wrong),
        instance.unsubscribe_all(wrong),
        instance.broadcast(wrong, 1),
    ):
        with pytest.raises(TypeError):
            await made
    if wrong is not None:
        with pytest.raises(TypeError):
            await instance.broadcast("t", 1, except_session_id=wrong)
    await until_figures(instance, sessions=0, subscribed_topics=0, subscriptions=0)


@every_kind
async def test_names_that_no_broker_can_carry(backend: Backend) -> None:
    instance = await backend.started()
    for made in (
        instance.subscribe_topic("s", "\ud800", ignore),
        instance.subscribe_topic("\ud800", "t", ignore),
        instance.broadcast("a\udfff", 1),
        instance.broadcast("t", 1, except_session_id="\ud800"),
    ):
        with pytest.raises(ValueError):
            await made
    await until_figures(instance, sessions=0, subscribed_topics=0, subscriptions=0)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "options",
    [
        {"ordering": "random"},
        {"ordering": ""},
        {"ordering": "Session"},
        {"max_queued_messages": 0},
        {"max_queued_bytes": 0},
        {"max_message_bytes": 0},
        {"subscribe_timeout_seconds": 0.0},
        {"subscribe_timeout_seconds": -1.0},
        {"subscribe_timeout_seconds": float("nan")},
        {"publish_timeout_seconds": 0.0},
        {"connect_timeout_seconds": float("inf")},
    ],
    ids=repr,
)
def test_an_option_that_makes_no_sense(cls: Any, options: dict[str, Any]) -> None:
    if options.keys() - inspect.signature(cls).parameters.keys():
        with pytest.raises(TypeError):
            cls(**options)
        return
    with pytest.raises(fanwire.ConfigError, match=next(iter(options))):
        cls(**options)


@pytest.mark.parametrize("cls", CLASSES)
def test_options_of_another_type(cls: Any) -> None:
    wrong: list[dict[str, Any]] = [{"ordering": 5}, {"ordering": None}, {"max_message_bytes": "1"}]
    wrong += [{"unknown": 1}]
    if cls is not fanwire.UploadProgressPublisher:
        wrong += [{"on_drop": 5}]
    if cls is not fanwire.MemoryPubSub:
        wrong += [{"url": 5}, {"channel_prefix": b"x"}]
    for options in wrong:
        with pytest.raises(TypeError):
            cls(**options)


def test_only_url_and_prefix_come_by_position() -> None:
    instance = fanwire.RedisPubSub("redis://127.0.0.1:1", "mine:")
    assert (instance.url, instance.channel_prefix) == ("redis://127.0.0.1:1", "mine:")
    make: Any = fanwire.RedisPubSub
    with pytest.raises(TypeError):
        make("redis://127.0.0.1:1", "mine:", "concurrent")
    make = fanwire.MemoryPubSub
    with pytest.raises(TypeError):
        make(True)


def test_the_documented_defaults() -> None:
    instance = fanwire.RedisPubSub()
    assert (instance.url, instance.channel_prefix) == ("redis://localhost:6379", "pyview:")
    assert not instance.running


MALFORMED = [
    "nonsense",
    "localhost:6379",
    "http://localhost:6379",
    "redis://",
    "redis://:hunter2@localhost:port",
    "redis://app:hunter2@[::1",
    "",
]


@pytest.mark.parametrize("url", MALFORMED, ids=ascii)
async def test_a_malformed_url(url: str) -> None:
    instance = fanwire.RedisPubSub(url)
    for made in (instance.start(), instance.broadcast("t", 1)):
        with pytest.raises(fanwire.ConfigError) as raised:
            await made
        assert isinstance(raised.value, ValueError)
        assert "hunter2" not in str(raised.value) + repr(raised.value)
    assert not instance.running
    assert "hunter2" not in repr(instance) + instance.url
