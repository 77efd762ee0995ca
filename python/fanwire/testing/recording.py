"""A pub/sub backend without a broker, which records what an app does with it."""

import asyncio
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fanwire.types import TopicHandler

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RecordingPubSub"]


class RecordingPubSub:
    """Records every operation, and runs the handlers before ``broadcast`` returns.

    It has the methods of ``fanwire.PubSubProvider`` and takes the place of ``fanwire.RedisPubSub``
    in tests: no broker and no Task. It needs an event loop only where Tasks broadcast side by side.

    Attributes:
        subscriptions: ``(session_id, topic)`` of every ``subscribe_topic``, in order.
        unsubscriptions: ``(session_id, topic)`` of every ``unsubscribe_topic``, whether the session
            was subscribed or not, and one for each topic that an ``unsubscribe_all`` ended.
        broadcasts: ``(topic, message)`` of every ``broadcast``, the message being the very object.
        handlers: who is subscribed now: topic, then session, then handler.
        started: whether ``start`` was awaited.
        stopped: whether ``stop`` was awaited since.
    """

    # Its other name begins with "Test", and test modules import it.
    __test__: ClassVar[bool] = False

    def __init__(self) -> None:
        self.subscriptions: list[tuple[str, str]] = []
        self.unsubscriptions: list[tuple[str, str]] = []
        self.broadcasts: list[tuple[str, Any]] = []
        self.handlers: dict[str, dict[str, TopicHandler]] = {}
        self.started = False
        self.stopped = False
        self._lanes: dict[str, _Lane] = {}

    async def subscribe_topic(self, session_id: str, topic: str, handler: TopicHandler) -> None:
        """Subscribe a session to a topic. A second handler of the pair replaces the first.

        Args:
            session_id: whose handler it is.
            topic: what it is to hear of.
            handler: ``async def handler(topic, message)``.
        """
        self.subscriptions.append((session_id, topic))
        self.handlers.setdefault(topic, {})[session_id] = handler

    async def unsubscribe_topic(self, session_id: str, topic: str) -> None:
        """Unsubscribe a session from a topic. That it was not subscribed is no error.

        Args:
            session_id: whose handler it is.
            topic: what it no longer is to hear of.
        """
        self.unsubscriptions.append((session_id, topic))
        self._forget(session_id, topic)

    async def unsubscribe_all(self, session_id: str) -> None:
        """Unsubscribe a session from all its topics.

        Args:
            session_id: whose handlers they are.
        """
        for topic in [topic for topic, sessions in self.handlers.items() if session_id in sessions]:
            self.unsubscriptions.append((session_id, topic))
            self._forget(session_id, topic)

    async def broadcast(
        self, topic: str, message: Any, *, except_session_id: str | None = None
    ) -> None:
        """Run the handlers of a topic, one after another in the order of subscription.

        As in production a session's handlers run one at a time, in the order of publication: where
        another Task's broadcast runs one of them, this waits for it. A broadcast made inside a
        handler waits for nobody else's, its own session least of all: what it says to its own
        session is delivered when the handler has returned, to others at once unless they are busy.
        All of it is delivered when the outermost ``broadcast`` returns. A session that unsubscribes
        meanwhile is not called any more.

        Args:
            topic: whose subscribers are called.
            message: what they are handed: this object, not a copy.
            except_session_id: a session that is left out.

        Raises:
            Exception: what a handler raised over this message, after all of them have run. If
                several raised, an ``ExceptionGroup`` of theirs. Inside a handler nothing is raised,
                as in production: the outermost ``broadcast`` does.
        """
        self.broadcasts.append((topic, message))
        sessions = [one for one in self.handlers.get(topic, {}) if one != except_session_id]
        lanes = [
            self._lanes.setdefault(session_id, _Lane(self, session_id)) for session_id in sessions
        ]
        outermost = _outermost.get()
        if outermost is not None and outermost.open:
            self._publish(topic, message, lanes, outermost)
            for lane in lanes:
                while lane in outermost.unheard and not lane.running:
                    await lane.hear_next(outermost)
            return
        delivery = _Delivery()
        self._publish(topic, message, lanes, delivery)
        await self._deliver_and_raise(delivery)

    async def start(self) -> None:
        """Record that the app started the backend; nothing depends on it."""
        self.started, self.stopped = True, False

    async def stop(self, drain_seconds: float = 1.0) -> None:  # noqa: ARG002 nothing waits here
        """Record that the app stopped the backend. Subscriptions stay, for the test to look at."""
        self.stopped = True

    def clear(self) -> None:
        """Forget what was recorded, so that a test sees only what comes next.

        Empties ``subscriptions``, ``unsubscriptions`` and ``broadcasts``. Who is subscribed stays
        subscribed, and ``started`` and ``stopped`` stay as they are.
        """
        self.subscriptions.clear()
        self.unsubscriptions.clear()
        self.broadcasts.clear()

    def _forget(self, session_id: str, topic: str) -> None:
        sessions = self.handlers.get(topic, {})
        sessions.pop(session_id, None)
        if not sessions:
            self.handlers.pop(topic, None)
        if session_id in self._lanes:
            self._lanes[session_id].drop(lambda entry: entry.topic == topic)

    @staticmethod
    def _publish(topic: str, message: Any, lanes: "list[_Lane]", delivery: "_Delivery") -> None:
        for lane in lanes:
            lane.waiting.append(_Entry(topic, message, delivery))
            delivery.unheard.append(lane)

    async def _deliver_and_raise(self, delivery: "_Delivery") -> None:
        token = _outermost.set(delivery)
        try:
            while delivery.unheard:
                await delivery.unheard[0].hear_next(delivery)
        except BaseException as interruption:  # cancelled: nobody delivers what is left
            for lane in set(delivery.unheard):
                lane.drop(lambda entry: entry.delivery is delivery)
            for error in delivery.errors:
                interruption.add_note(f"a handler had raised before: {error!r}")
            raise
        finally:
            delivery.open = False
            _outermost.reset(token)
        if len(delivery.errors) == 1:
            raise delivery.errors[0]
        if delivery.errors:
            raise ExceptionGroup(f"{len(delivery.errors)} handlers raised", delivery.errors)


@dataclass(eq=False)
class _Lane:
    """What a session is still to hear, one message after another."""

    pubsub: RecordingPubSub
    session_id: str
    waiting: "deque[_Entry]" = field(default_factory=deque)
    running: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def hear_next(self, by: "_Delivery") -> None:
        """Run the next handler, whichever broadcast it is for; or wait while another runs one."""
        if self.running:
            await self.changed.wait()
            return
        entry = self.waiting.popleft()
        handler = self.pubsub.handlers.get(entry.topic, {}).get(self.session_id)
        self.running = True
        token = _outermost.set(entry.delivery)
        try:
            if handler is not None:  # otherwise the test has taken it out of `handlers`
                await handler(entry.topic, entry.message)
        except Exception as error:  # noqa: BLE001 - raised when all handlers have run
            (entry.delivery if entry.delivery.open else by).errors.append(error)
        except BaseException as error:
            if entry.delivery is not by:
                entry.delivery.errors.append(
                    RuntimeError(
                        f"a broadcast was interrupted that ran this handler, too: {error!r}"
                    )
                )
            raise
        finally:
            _outermost.reset(token)
            self.running = False
            self.heard(entry)

    def heard(self, *entries: "_Entry") -> None:
        for entry in entries:
            entry.delivery.unheard.remove(self)
        self.changed.set()  # for those who wait now
        self.changed = asyncio.Event()

    def drop(self, is_meant: "Callable[[_Entry], bool]") -> None:
        dropped = [entry for entry in self.waiting if is_meant(entry)]
        self.waiting = deque(entry for entry in self.waiting if not is_meant(entry))
        self.heard(*dropped)


@dataclass(eq=False)
class _Delivery:
    """An outermost ``broadcast``, and what was raised since it began."""

    unheard: list[_Lane] = field(default_factory=list)  # once for each entry of its
    errors: list[Exception] = field(default_factory=list)
    open: bool = True  # False for a Task that a handler made and that outlives the broadcast


@dataclass(eq=False)
class _Entry:
    """A message for a session, and the outermost ``broadcast`` it is of."""

    topic: str
    message: Any
    delivery: _Delivery


# In a handler's context, and in that of Tasks which it makes.
_outermost: ContextVar[_Delivery | None] = ContextVar("fanwire_recording", default=None)
