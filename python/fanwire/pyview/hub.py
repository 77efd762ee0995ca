"""The hub of PyView 0.9.0, method by method, on a backend that other instances share.

PyView's own hub keeps sessions and handlers in dictionaries of one process. This one has the same
public methods and leaves all of that to a backend of six methods; what it adds is the way in from
threads, and messages without a topic.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from fanwire.errors import ConfigError
from fanwire.pyview.handlers import in_thread, on_loop, without_topic
from fanwire.types import PubSubProvider, TopicHandler

__all__ = ["NO_TOPIC", "HubAdapter"]

logger = logging.getLogger("fanwire")

# What has no topic travels on this one. It is part of the wire: all instances must agree on it.
NO_TOPIC = "fanwire:no-topic"

# What a thread waits for the event loop: longer than a backend takes while its broker is down.
_THREAD_WAIT_SECONDS = 10.0
# What a call waits for those before it that were left to the loop. One that hangs holds up no more.
_ORDER_SECONDS = 5.0
# What the calls that were left to the loop may still take when the app ends.
_CLOSE_SECONDS = 2.0

_Method = Callable[..., Coroutine[Any, Any, None]]
_Operation = Callable[[], Coroutine[Any, Any, None]]
# Whom a call is about: a session, or all of them.
_Whom = str | None
_ALL: _Whom = None


class HubAdapter:
    """Takes the place of PyView's hub while an app runs. Made on the app's event loop.

    The threaded methods (those without ``_async``) wait until the loop has done what they ask for.
    On the loop's own thread they cannot: there they only leave it to the loop. Every call made
    after that, by whichever method, waits for those left to the loop before it: for the ones about
    the same session and for what is sent; what sends waits for all.

    Args:
        pubsub: the backend. Whoever made it starts and stops it.
    """

    def __init__(self, pubsub: PubSubProvider) -> None:
        self._pubsub = pubsub
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._subscribed: dict[str, set[str]] = {}  # session to topics
        self._left_to_loop: dict[asyncio.Task[None], _Whom] = {}  # in the order in which they came

    # Subscribing

    async def subscribe_topic_async(
        self, session_id: str, topic: str, handler: Callable[..., Any]
    ) -> None:
        await self._in_order(self._subscribe, session_id, _named(topic), on_loop(handler))

    def subscribe_topic(self, session_id: str, topic: str, handler: Callable[..., Any]) -> None:
        self._do(self._subscribe, session_id, _named(topic), in_thread(handler))

    async def subscribe_async(self, session_id: str, handler: Callable[..., Any]) -> None:
        await self._in_order(self._subscribe, session_id, NO_TOPIC, without_topic(on_loop(handler)))

    def subscribe(self, session_id: str, handler: Callable[..., Any]) -> None:
        self._do(self._subscribe, session_id, NO_TOPIC, without_topic(in_thread(handler)))

    async def _subscribe(self, session_id: str, topic: str, handler: TopicHandler) -> None:
        if self._closed:
            self._tell_of_late(self._subscribe, topic)
            return
        is_new = topic not in self._subscribed.get(session_id, ())
        self._subscribed.setdefault(session_id, set()).add(topic)
        try:
            await self._pubsub.subscribe_topic(session_id, topic, handler)
        except Exception:
            if is_new:  # otherwise its former handler is still there
                self._forget(session_id, topic)
            raise

    # Unsubscribing

    async def unsubscribe_topic_async(self, session_id: str, topic: str) -> None:
        await self._in_order(self._unsubscribe, session_id, _named(topic))

    def unsubscribe_topic(self, session_id: str, topic: str) -> None:
        self._do(self._unsubscribe, session_id, _named(topic))

    async def unsubscribe_async(self, session_id: str) -> None:
        await self._in_order(self._unsubscribe, session_id, NO_TOPIC)

    def unsubscribe(self, session_id: str) -> None:
        self._do(self._unsubscribe, session_id, NO_TOPIC)

    async def unsubscribe_all_async(self, session_id: str) -> None:
        await self._in_order(self._unsubscribe_all, session_id)

    def unsubscribe_all(self, session_id: str) -> None:
        self._do(self._unsubscribe_all, session_id)

    async def _unsubscribe(self, session_id: str, topic: str) -> None:
        if self._closed:
            return
        self._forget(session_id, topic)
        await self._pubsub.unsubscribe_topic(session_id, topic)

    async def _unsubscribe_all(self, session_id: str) -> None:
        if self._closed:
            return
        self._subscribed.pop(session_id, None)
        await self._pubsub.unsubscribe_all(session_id)

    def _forget(self, session_id: str, topic: str) -> None:
        topics = self._subscribed.get(session_id, set())
        topics.discard(topic)
        if not topics:
            self._subscribed.pop(session_id, None)

    # Sending

    async def send_all_async(self, message: Any) -> None:
        await self._in_order(self._broadcast, NO_TOPIC, message)

    def send_all(self, message: Any) -> None:
        self._do(self._broadcast, NO_TOPIC, message)

    async def send_all_on_topic_async(self, topic: str, message: Any) -> None:
        await self._in_order(self._broadcast, _named(topic), message)

    def send_all_on_topic(self, topic: str, message: Any) -> None:
        self._do(self._broadcast, _named(topic), message)

    async def send_others_async(self, except_session_id: str, message: Any) -> None:
        await self._in_order(
            self._broadcast, NO_TOPIC, message, except_session_id=except_session_id
        )

    def send_others(self, except_session_id: str, message: Any) -> None:
        self._do(self._broadcast, NO_TOPIC, message, except_session_id=except_session_id)

    async def send_others_on_topic_async(
        self, except_session_id: str, topic: str, message: Any
    ) -> None:
        await self._in_order(
            self._broadcast, _named(topic), message, except_session_id=except_session_id
        )

    def send_others_on_topic(self, except_session_id: str, topic: str, message: Any) -> None:
        self._do(self._broadcast, _named(topic), message, except_session_id=except_session_id)

    async def _broadcast(self, topic: str, message: Any, **but: str) -> None:
        if self._closed:
            self._tell_of_late(self._broadcast, topic)
            return
        await self._pubsub.broadcast(topic, message, **but)

    # The order

    async def _in_order(self, method: _Method, *args: Any, **but: str) -> None:
        await _ended(self._before(self._whom(method, *args)))
        await method(*args, **but)

    def _leave_to_loop(self, method: _Method, *args: Any, **but: str) -> None:
        whom = self._whom(method, *args)
        operation = partial(method, *args, **but)
        task = self._loop.create_task(_later(self._before(whom), operation))
        self._left_to_loop[task] = whom
        task.add_done_callback(self._left_to_loop.pop)

    def _whom(self, method: _Method, session_id: str, *_: Any) -> _Whom:
        return _ALL if method == self._broadcast else session_id

    def _before(self, whom: _Whom) -> set[asyncio.Task[None]]:
        if asyncio.current_task() in self._left_to_loop:
            return set()  # a handler that the backend runs inside its broadcast, which must end
        before = set()
        for task, of_whom in reversed(self._left_to_loop.items()):
            if whom is _ALL or of_whom in (_ALL, whom):
                before.add(task)
            if of_whom is _ALL:
                break  # it waits for all before it
        return before

    # From threads

    def _do(self, method: _Method, *args: Any, **but: str) -> None:
        if self._closed:
            self._tell_of_late(method, args[0])
        elif self._is_running_here():
            self._leave_to_loop(method, *args, **but)
        else:
            self._wait_for(partial(self._in_order, method, *args, **but))

    def _is_running_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _wait_for(self, operation: _Operation) -> None:
        coroutine = operation()
        try:
            waiting = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # the loop has been closed just now
            coroutine.close()
            raise
        try:
            waiting.result(_THREAD_WAIT_SECONDS)
        except TimeoutError as error:
            if waiting.done():
                raise  # the backend's own
            waiting.cancel()
            raise TimeoutError(
                f"PyView's event loop has not done it within {_THREAD_WAIT_SECONDS} s: it is busy, "
                "or waits for this thread"
            ) from error

    # The end

    async def close(self) -> None:
        """From now on nothing reaches the backend, and it has forgotten every session.

        A backend keeps what is subscribed while it is stopped, for its next start; but a socket
        that closes later than the app will not be there.
        """
        if self._left_to_loop:
            await asyncio.wait(self._left_to_loop, timeout=_CLOSE_SECONDS)
        self._closed = True
        if undone := list(self._left_to_loop):
            logger.warning(
                "fanwire: the app has ended, so nothing comes of %d calls that were left to the "
                "event loop",
                len(undone),
            )
            for task in undone:
                task.cancel()
            await asyncio.wait(undone, timeout=_CLOSE_SECONDS)
        sessions = list(self._subscribed)
        self._subscribed.clear()
        for session_id in sessions:
            try:
                await self._pubsub.unsubscribe_all(session_id)
            except Exception:
                logger.exception("fanwire: session %r could not be unsubscribed", session_id)

    def _tell_of_late(self, method: _Method, of: str) -> None:
        # Sockets that unsubscribe late are in order: close() has been there before them.
        if method in (self._subscribe, self._broadcast):
            what = method.__name__.lstrip("_")
            logger.warning("fanwire: the app has ended, so nothing comes of: %s %r", what, of)


def _named(topic: str) -> str:
    if topic == NO_TOPIC:
        raise ConfigError(f"the topic {NO_TOPIC!r} is reserved for messages without a topic")
    return topic


async def _ended(tasks: set[asyncio.Task[None]]) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=_ORDER_SECONDS)


async def _later(before: set[asyncio.Task[None]], operation: _Operation) -> None:
    await _ended(before)
    try:
        await operation()
    except Exception:
        logger.exception("fanwire: a call that nobody waits for failed: %s", operation)
