"""The hub adapter beside PyView's own hub: the same calls, and the same messages arrive."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pyview.vendor.flet.pubsub import PubSubHub

import fanwire
from fanwire.pyview.hub import NO_TOPIC, HubAdapter
from tests.deadlines import bounded, until

METHODS = sorted(name for name in dir(PubSubHub) if not name.startswith("_"))
OF_A_TOPIC = [name for name in METHODS if "topic" in name and "async" not in name]


class Inbox:
    """What a session received, through a coroutine or through a plain function."""

    def __init__(self, in_threads: bool) -> None:
        self.received: list[Any] = []
        self.threads: set[int] = set()
        self.handler: Callable[..., Any] = self._take if in_threads else self._take_async

    def _take(self, *arguments: Any) -> None:
        self.threads.add(threading.get_ident())
        self.received.append(arguments)

    async def _take_async(self, *arguments: Any) -> None:
        self._take(*arguments)

    async def has(self, *expected: tuple[Any, ...]) -> None:
        """PyView's own hub promises no order, so none is asked for here."""
        await until(lambda: len(self.received) >= len(expected), f"{expected}")
        assert sorted(self.received, key=repr) == sorted(expected, key=repr)


class Hub:
    """A hub whose methods are called one way: all of them with ``_async``, or from a thread."""

    def __init__(self, hub: Any, in_threads: bool) -> None:
        self.hub = hub
        self.in_threads = in_threads

    async def __call__(self, method: str, *arguments: Any) -> None:
        if self.in_threads:
            await bounded(asyncio.to_thread(getattr(self.hub, method), *arguments))
        else:
            await bounded(getattr(self.hub, f"{method}_async")(*arguments))

    def inbox(self) -> Inbox:
        return Inbox(self.in_threads)


@pytest.fixture(params=["awaited", "from a thread"])
def in_threads(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "from a thread")


@pytest.fixture
async def adapter() -> AsyncIterator[HubAdapter]:
    hub = HubAdapter(fanwire.MemoryPubSub())
    yield hub
    await hub.close()


@pytest.fixture(params=["PyView's own", "the adapter"])
async def hub(request: pytest.FixtureRequest, in_threads: bool, adapter: HubAdapter) -> Hub:
    return Hub(adapter if request.param == "the adapter" else PubSubHub(), in_threads)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_hub_is_there_with_the_same_parameters(name: str) -> None:
    theirs, ours = getattr(PubSubHub, name), getattr(HubAdapter, name)
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)


def test_it_is_this_hub_that_was_compared() -> None:
    assert len(METHODS) == 18


async def test_all_of_a_topic_receive_topic_and_message(hub: Hub) -> None:
    ada, bob, eve = hub.inbox(), hub.inbox(), hub.inbox()
    await hub("subscribe_topic", "ada", "news", ada.handler)
    await hub("subscribe_topic", "bob", "news", bob.handler)
    await hub("subscribe_topic", "eve", "weather", eve.handler)
    await hub("send_all_on_topic", "news", {"n": 1})
    await hub("send_all_on_topic", "weather", "rain")
    await ada.has(("news", {"n": 1}))
    await bob.has(("news", {"n": 1}))
    await eve.has(("weather", "rain"))


async def test_others_of_a_topic_are_all_but_one(hub: Hub) -> None:
    ada, bob = hub.inbox(), hub.inbox()
    await hub("subscribe_topic", "ada", "news", ada.handler)
    await hub("subscribe_topic", "bob", "news", bob.handler)
    await hub("send_others_on_topic", "ada", "news", "not to ada")
    await hub("send_all_on_topic", "news", "to all")
    await ada.has(("news", "to all"))
    await bob.has(("news", "not to ada"), ("news", "to all"))


async def test_without_a_topic_the_message_comes_alone(hub: Hub) -> None:
    ada, bob, eve = hub.inbox(), hub.inbox(), hub.inbox()
    await hub("subscribe", "ada", ada.handler)
    await hub("subscribe", "bob", bob.handler)
    await hub("subscribe_topic", "eve", "news", eve.handler)
    await hub("send_all", "to all")
    await hub("send_others", "ada", "not to ada")
    await hub("send_all_on_topic", "news", "of the topic")
    await ada.has(("to all",))
    await bob.has(("to all",), ("not to ada",))
    await eve.has(("news", "of the topic"))


@pytest.mark.parametrize(
    ("method", "arguments", "still"),
    [
        ("unsubscribe_topic", ["news"], {"weather", "no topic"}),
        ("unsubscribe", [], {"news", "weather"}),
        ("unsubscribe_all", [], set()),
    ],
)
async def test_who_has_left_receives_nothing_more(
    adapter: HubAdapter, in_threads: bool, method: str, arguments: list[str], still: set[str]
) -> None:
    hub = Hub(adapter, in_threads)
    ada, bob = hub.inbox(), hub.inbox()
    for session, inbox in (("ada", ada), ("bob", bob)):
        await hub("subscribe_topic", session, "news", inbox.handler)
        await hub("subscribe_topic", session, "weather", inbox.handler)
        await hub("subscribe", session, inbox.handler)
    await hub(method, "ada", *arguments)
    await hub("send_all_on_topic", "news", "news")
    await hub("send_all_on_topic", "weather", "weather")
    await hub("send_all", "no topic")
    await bob.has(("news", "news"), ("weather", "weather"), ("no topic",))
    await until(lambda: {arguments[-1] for arguments in ada.received} == still)


async def test_to_leave_where_one_never_was_is_no_error(
    adapter: HubAdapter, in_threads: bool
) -> None:
    hub = Hub(adapter, in_threads)
    await hub("unsubscribe_topic", "nobody", "news")
    await hub("unsubscribe", "nobody")
    await hub("unsubscribe_all", "nobody")


async def test_subscribing_again_replaces_the_handler(hub: Hub) -> None:
    old, new = hub.inbox(), hub.inbox()
    for inbox in (old, new):
        await hub("subscribe_topic", "ada", "news", inbox.handler)
        await hub("subscribe", "ada", inbox.handler)
    await hub("send_all_on_topic", "news", 1)
    await hub("send_all", 2)
    await new.has(("news", 1), (2,))
    assert old.received == []


async def test_messages_come_to_each_session_in_the_order_in_which_they_were_sent(
    adapter: HubAdapter, in_threads: bool
) -> None:
    hub = Hub(adapter, in_threads)
    inboxes = [hub.inbox() for _ in range(5)]
    for number, inbox in enumerate(inboxes):
        await hub("subscribe_topic", f"session {number}", "news", inbox.handler)
    for number in range(50):
        await hub("send_all_on_topic", "news", number)
    for inbox in inboxes:
        await inbox.has(*(("news", number) for number in range(50)))
        assert inbox.received == [("news", number) for number in range(50)]


@pytest.mark.parametrize("kind", ["PyView's own", "the adapter"])
async def test_only_the_adapter_calls_a_session_for_one_message_at_a_time(
    adapter: HubAdapter, kind: str
) -> None:
    """Two ``handle_info`` side by side render two states, and send the diffs in any order."""
    hub: Any = adapter if kind == "the adapter" else PubSubHub()
    opened, begun, other = asyncio.Event(), 0, Inbox(in_threads=False)

    async def slow(topic: str, message: Any) -> None:
        nonlocal begun
        begun += 1
        await opened.wait()

    await hub.subscribe_topic_async("slow", "news", slow)
    await hub.subscribe_topic_async("other", "news", other.handler)
    for number in range(3):
        await hub.send_all_on_topic_async("news", number)
    await until(lambda: len(other.received) == 3)  # another session is not held up
    if kind == "the adapter":
        assert begun == 1
        opened.set()
    await until(lambda: begun == 3)
    opened.set()


@pytest.mark.parametrize("name", OF_A_TOPIC)
async def test_the_topic_of_what_has_no_topic_is_reserved(
    adapter: HubAdapter, in_threads: bool, name: str
) -> None:
    values = {"topic": NO_TOPIC, "handler": print}
    parameters = list(inspect.signature(getattr(adapter, name)).parameters)
    arguments = [values.get(name, "x") for name in parameters]
    with pytest.raises(fanwire.ConfigError, match="'fanwire:no-topic' is reserved"):
        await Hub(adapter, in_threads)(name.removesuffix("_async"), *arguments)
