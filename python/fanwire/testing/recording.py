"""A pub/sub backend without a broker, which records what an app does with it."""

from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fanwire.types import TopicHandler

__all__ = ["RecordingPubSub"]


class RecordingPubSub:
    """Records every operation, and runs the handlers before ``broadcast`` returns.

    It has the methods of ``fanwire.PubSubProvider`` and takes the place of ``fanwire.RedisPubSub``
    in tests: no broker, no Task, no waiting. It needs no event loop of a certain kind.

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

        As in production a session's handlers run one at a time, in the order of publication: what
        a handler broadcasts to its own session is delivered when it has returned, what it
        broadcasts to others at once. All of it is delivered when the outermost ``broadcast``
        returns. A session that unsubscribes meanwhile is not called any more.

        Args:
            topic: whose subscribers are called.
            message: what they are handed: this object, not a copy.
            except_session_id: a session that is left out.

        Raises:
            Exception: what a handler raised, after all of them have run. If several raised, an
                ``ExceptionGroup`` of theirs. Inside a handler nothing is raised, as in production:
                the outermost ``broadcast`` does.
        """
        self.broadcasts.append((topic, message))
        sessions = [one for one in self.handlers.get(topic, {}) if one != except_session_id]
        for session_id in sessions:
            self._lanes.setdefault(session_id, _Lane()).waiting.append((topic, message))
        outermost = _outermost.get()
        if outermost is not None and outermost.open:
            await self._deliver(sessions, outermost.errors)
        else:
            await self._deliver_and_raise(sessions)

    async def start(self) -> None:
        """Record that the app started the backend; nothing depends on it."""
        self.started, self.stopped = True, False

    async def stop(self) -> None:
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
            self._lanes[session_id].drop(topic)

    async def _deliver_and_raise(self, sessions: list[str]) -> None:
        delivery = _Delivery()
        token = _outermost.set(delivery)
        try:
            await self._deliver(sessions, delivery.errors)
        except BaseException as interruption:
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

    async def _deliver(self, sessions: list[str], errors: list[Exception]) -> None:
        try:
            for session_id in sessions:
                await self._empty(session_id, errors)
        except BaseException:  # cancelled: the next broadcast does not deliver what is left
            for session_id in sessions:
                if session_id in self._lanes and not self._lanes[session_id].running:
                    del self._lanes[session_id]
            raise

    async def _empty(self, session_id: str, errors: list[Exception]) -> None:
        lane = self._lanes.get(session_id)
        if lane is None or lane.running:
            return  # whoever runs it takes what is waiting, too
        lane.running = True
        try:
            while lane.waiting:
                topic, message = lane.waiting.popleft()
                handler = self.handlers.get(topic, {}).get(session_id)
                if handler is None:
                    continue  # the test has taken it out of `handlers`
                try:
                    await handler(topic, message)
                except Exception as error:  # noqa: BLE001 - raised when all handlers have run
                    errors.append(error)
        finally:
            lane.running = False
        self._lanes.pop(session_id, None)


@dataclass
class _Lane:
    """What a session is still to hear. It is there while something waits or a handler runs."""

    waiting: deque[tuple[str, Any]] = field(default_factory=deque)
    running: bool = False

    def drop(self, topic: str) -> None:
        self.waiting = deque(entry for entry in self.waiting if entry[0] != topic)


@dataclass
class _Delivery:
    """An outermost ``broadcast``, and what was raised since it began."""

    errors: list[Exception] = field(default_factory=list)
    open: bool = True  # False for a Task that a handler made and that outlives the broadcast


# In a handler's context, and in that of Tasks which it makes.
_outermost: ContextVar[_Delivery | None] = ContextVar("fanwire_recording", default=None)
