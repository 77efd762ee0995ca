"""The native module. Its public names are re-exported by ``fanwire``; import them from there."""

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, TypeVar, final, overload

from typing_extensions import disjoint_base

from fanwire.coalesce import CoalesceRule
from fanwire.recovery import History, Outbox, Receipt
from fanwire.tracking import Tracker, TrackerEvent
from fanwire.types import Connection, TopicHandler

_D = TypeVar("_D")

__all__ = [
    "BrokerPubSub",
    "ClientMessage",
    "ConnectionManager",
    "EventPublisher",
    "MapView",
    "MemoryPubSub",
    "PostgresPubSub",
    "RedisPubSub",
    "UploadProgressPublisher",
    "__build_profile__",
    "__version__",
    "get_manager",
    "get_publisher",
    "init_manager",
    "init_publisher",
    "migrate",
    "schema_sql",
]

__version__: str
__build_profile__: str

@final
class ClientMessage:
    """A frame that a browser sent on its WebSocket, read by the client protocol."""

    @property
    def action(self) -> str:
        """One of "auth", "subscribe_upload", "unsubscribe_upload", "ping" and "pong"."""
    @property
    def token(self) -> str | None:
        """What an "auth" proves its user with; None otherwise."""
    @property
    def upload_id(self) -> str | None:
        """The upload; None for actions that have none."""
    @property
    def since(self) -> tuple[str, int] | None:
        """Epoch and offset of what the client has of the upload already, or None."""
    @staticmethod
    def parse(text: str) -> ClientMessage:
        """Read a frame of at most 64 KiB.

        Raises:
            ValueError: it is not of the client protocol; the text says why, without repeating it.
        """

@final
class MapView(Mapping[str, frozenset[Any]]):
    """A live, read-only view of one of the manager's maps, from a name to a set.

    Behaves as the ``defaultdict(set)`` it stands for: ``view[missing]`` is an empty set (nothing
    is created by looking), ``view.get(missing)`` is None, and it is equal to a dict of the same
    content.
    """

    def __getitem__(self, key: str, /) -> frozenset[Any]: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    @overload
    def get(self, key: str, default: None = None, /) -> frozenset[Any] | None: ...
    @overload
    def get(self, key: str, default: frozenset[Any] | _D, /) -> frozenset[Any] | _D: ...

@disjoint_base
class ConnectionManager:
    """Who is connected to this process, and who watches which upload. The maps live in Rust.

    Args:
        max_queued_messages: how many messages may wait for one slow connection, that is, one whose
            send has been suspended for 250 ms on a loop that runs. Where only the event loop is
            behind, nobody is to blame: the listener reads more slowly.
        max_queued_bytes: how many bytes of payload may wait for one.
        coalesce: whether a progress message takes the place of an older one of the same upload that
            still waits, as long as nothing else of that upload was queued after it. True for the
            actions upload_progress, batch_progress and file_progress; False; or rules.
        overflow: what happens when too much waits for a slow connection: "disconnect" it,
            "drop-oldest" message, or "coalesce": drop the oldest progress, and disconnect it where
            none waits.
        send_timeout_seconds: a connection whose send takes longer is disconnected.
        time_slice_seconds: how long deliveries may hold the event loop in one turn.
        on_drop: called on the event loop with a connection, a count of messages, and a reason
            ("overflow", or "disconnected" for what waited for a connection that was given up). What
            the application drops by disconnecting is only counted.
        on_disconnect: called on the event loop with a connection that was given up, and a reason
            ("send failed", "overflow" or "send timed out").

    Raises:
        fanwire.ConfigError: an option makes no sense.
    """

    def __init__(
        self,
        *,
        max_queued_messages: int = 1024,
        max_queued_bytes: int = 4_194_304,
        coalesce: bool | Iterable[CoalesceRule] = True,
        overflow: Literal["disconnect", "drop-oldest", "coalesce"] = "disconnect",
        send_timeout_seconds: float = 10.0,
        time_slice_seconds: float = 0.001,
        on_drop: Callable[[Any, int, str], object] | None = None,
        on_disconnect: Callable[[Any, str], object] | None = None,
    ) -> None: ...
    @property
    def user_connections(self) -> MapView:
        """User id to the set of that user's connections here."""
    @property
    def upload_subscribers(self) -> MapView:
        """Upload id to the set of ids of the users who watch it here."""
    @property
    def user_subscriptions(self) -> MapView:
        """User id to the set of ids of the uploads the user watches."""
    def connect(self, user_id: str, websocket: Connection) -> Coroutine[Any, Any, None]:
        """Register a connection of a user at once. The same connection counts once.

        It is served on the event loop that runs where this is called, or, where none does, on the
        one that awaits it.

        Raises:
            TypeError: the id is not a str, or the connection is not hashable.
        """
    def disconnect(self, user_id: str, websocket: Connection) -> Coroutine[Any, Any, None]:
        """Take a connection out at once, and with the user's last one the user's subscriptions.

        It is not closed. One that is not registered is no error.
        """
    def subscribe_upload(
        self,
        user_id: str,
        upload_id: str,
        *,
        connection: Connection | None = None,
        since: tuple[str, int] | None = None,
    ) -> Coroutine[Any, Any, None]:
        """Make a user watch an upload from now on. The user need not be connected yet.

        Where the listener keeps a history (``UploadProgressPublisher(history=...)``) the user's
        connections get the upload's current state first, and then exactly what follows it. Nothing
        is waited for: while the broker cannot be reached, that comes when it is back.

        Args:
            user_id: any str.
            upload_id: any str.
            connection: which of the user's connections is to get the current state, or what follows
                ``since``. Default: those that have nothing of this upload yet. One that is not
                registered gets nothing.
            since: epoch and offset of the last message of this upload that the client has: it gets
                what follows, or ``{"action": "resync", "upload_id": ...}`` and the current state
                where the history does not reach back so far.

        Raises:
            TypeError, ValueError: ``since`` is no pair of a str and an int from 0 to 2**53 - 1.
        """
    def unsubscribe_upload(self, user_id: str, upload_id: str) -> Coroutine[Any, Any, None]:
        """Make a user stop watching an upload at once. One that is not watched is no error."""
    async def send_to_user(self, user_id: str, message: Any) -> None:
        """Send to every connection of a user in this process, side by side.

        Done when each send has finished or failed; one that fails is disconnected. The message is
        encoded as by ``UploadProgressPublisher.publish_progress``.

        Raises:
            TypeError, ValueError: the message cannot be encoded; the text says where in it.
        """
    async def send_to_upload_subscribers(self, upload_id: str, message: Any) -> None:
        """Send to every connection of every user who watches an upload, as ``send_to_user``."""
    def get_upload_subscriber_ids(self, upload_id: str) -> set[str]:
        """Return the ids of the users who watch an upload here: a copy."""
    async def disconnect_all(self) -> None:
        """Close every connection with 1012 "Server reloading", and clear all maps.

        Errors while closing are ignored; what does not close within 5 s is left alone.
        """
    def stats(self) -> dict[str, Any]:
        """Return counters, gauges and histograms of deliveries to local connections, by name."""

@disjoint_base
class EventPublisher:
    """Publishes log lines, events and stats from daemons, workers and threads.

    No event loop is needed, and no call waits for the broker or raises for its trouble. A message
    is encoded, as ``orjson.dumps(message, default=str)`` would, and queued; a background thread
    sends what is queued, in order, in pipelined batches. While the broker cannot be reached
    messages wait. When too much waits, the oldest log lines and stats are dropped first, and events
    only where nothing else is left; what was dropped is told by one message on the events channel
    when the broker is back: ``{"type": "fanwire.dropped", "timestamp": ..., "data": {"logs": 3,
    "stats": 0, "events": 0}}``. A batch that was under way when the connection broke is not sent
    again: a message comes once or not at all. How many that may concern is told as "unclear",
    beside "logs".

    It may be made and used before a fork, and in the child and the parent after it. What waits when
    the interpreter ends has half a second to go out.

    Args:
        redis_url: ``redis://``, ``rediss://``, ``unix:///path``, ``postgresql://``, or
            ``memory://``.
        namespace: what the channels' names begin with: ``{namespace}:logs``, ``:events`` and
            ``:stats``. A subclass may also have constants of its own.
        max_pending_messages, max_pending_bytes: how much may wait.
        max_line_bytes: a longer log line is cut, and marked by ``"fanwire.truncated": true``.
        max_message_bytes: larger events and stats are refused with ValueError.
        connect_timeout_seconds: for connecting and authenticating together.
        publish_timeout_seconds: for the broker's answer to a batch.

    Raises:
        fanwire.ConfigError: the URL or an option makes no sense.
    """

    CHANNEL_LOGS: ClassVar[str]
    CHANNEL_EVENTS: ClassVar[str]
    CHANNEL_STATS: ClassVar[str]

    def __init__(
        self,
        redis_url: str,
        *,
        namespace: str = "codeworm",
        max_pending_messages: int = 10_000,
        max_pending_bytes: int = 16_777_216,
        max_line_bytes: int = 65_536,
        max_message_bytes: int = 1_048_576,
        connect_timeout_seconds: float = 2.0,
        publish_timeout_seconds: float = 2.0,
    ) -> None: ...
    @property
    def url(self) -> str:
        """The broker's URL, its secrets masked."""
    @property
    def closed(self) -> bool:
        """Whether it is closed."""
    def publish_log(self, event_dict: Mapping[str, Any]) -> None:
        """Publish a log line. It never raises, and nothing that fanwire logs itself is published.

        A line that has no JSON form is counted in ``stats()["unencodable"]``, and the first one is
        told to the logger ``fanwire``; one longer than ``max_line_bytes`` is cut. A line that comes
        while its own thread is encoding another, from a ``__str__`` that logs say, is counted in
        ``stats()["reentrant"]``; one that comes after ``close()`` in ``stats()["after_close"]``.

        Args:
            event_dict: a dict as structlog's processors get it.
        """
    def publish_event(self, event_type: str, data: Mapping[str, Any] | None = None) -> None:
        """Publish an event: ``{"type": event_type, "timestamp": ..., "data": data}``.

        Args:
            event_type: what happened.
            data: what belongs to it; None is an empty object.

        Raises:
            TypeError, ValueError: the type is no str, or the data cannot be encoded or are larger
                than ``max_message_bytes``; the text says where in them.
            RuntimeError: the publisher is closed.
        """
    def publish_stats(self, stats: Mapping[str, Any]) -> None:
        """Publish figures: ``{"timestamp": ..., **stats}``. A timestamp among them counts.

        Args:
            stats: a mapping.

        Raises:
            TypeError, ValueError: it is no mapping, cannot be encoded or is larger than
                ``max_message_bytes``.
            RuntimeError: the publisher is closed.
        """
    def flush(self, timeout_seconds: float = 2.0) -> bool:
        """Wait until everything published so far has gone out. It blocks its thread.

        Args:
            timeout_seconds: how long to wait; 0 only looks.

        Returns:
            Whether the broker has taken it all: False when the time is up, or when some was lost.
        """
    def close(self) -> None:
        """Let out what waits, for 2 s at most, drop the rest, and close the connection.

        A second call does nothing. Afterwards events and stats raise RuntimeError, and log lines
        are only counted.
        """
    def stats(self) -> dict[str, Any]:
        """Return counters and gauges by name."""
    def __enter__(self) -> Self:
        """Return the publisher itself."""
    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
        /,
    ) -> None:
        """Close it, whatever ended the block."""

@disjoint_base
class UploadProgressPublisher:
    """Publishes upload progress, and forwards what any instance publishes to local connections.

    Publishing needs no ``start()``, works from any event loop, from several one after another,
    and after a fork.

    Args:
        url: ``redis://``, ``rediss://``, ``unix:///path``, ``postgresql://`` or ``memory://``.
            Default: the
            environment's FANWIRE_URL, then REDIS_URL, then ``memory://`` with a warning in the log.
        manager: whose connections are served. Default: that of ``get_manager()``, looked up
            whenever a message arrives.
        strict: raise trouble with the broker instead of logging it once per outage.
        connect_timeout_seconds: for connecting, authenticating and subscribing together.
        publish_timeout_seconds: for the broker's answer to a publish.
        max_message_bytes: a larger payload is refused with ValueError.
        max_pending_messages: how many messages ``publish_nowait`` lets wait.
        max_pending_bytes: how many bytes of payload ``publish_nowait`` lets wait.
        channel_prefix: what a channel's name has before a topic. Default: "pyview:", on PostgreSQL
            "pyview_".
        ordering, subscribe_timeout_seconds: for topics, as for ``RedisPubSub``.
        on_state_change: called on the event loop that called ``start()``, as for ``RedisPubSub``.
        history: has the broker keep what is published for uploads, and what it keeps delivered to
            those who come late or were away; the same one for those who publish and who listen.
        outbox: how much waits, and for how long, while the broker cannot be reached. Progress is
            coalesced meanwhile. With None, or with ``strict``, a message that cannot be sent fails.
        coalesce: what is progress, of what is published: True for the actions of upload apps,
            False for nothing, or rules.

    Raises:
        fanwire.ConfigError: an option makes no sense. A URL that makes none is raised by
            ``start()`` and by publishing.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        manager: ConnectionManager | None = None,
        strict: bool = False,
        connect_timeout_seconds: float = 2.0,
        publish_timeout_seconds: float = 2.0,
        max_message_bytes: int = 1_048_576,
        max_pending_messages: int = 10_000,
        max_pending_bytes: int = 16_777_216,
        channel_prefix: str | None = None,
        ordering: Literal["session", "concurrent"] = "session",
        subscribe_timeout_seconds: float = 2.0,
        on_state_change: Callable[[str, str, str | None], object] | None = None,
        history: History | None = None,
        outbox: Outbox | None = ...,
        coalesce: bool | Iterable[CoalesceRule] = True,
    ) -> None: ...
    @property
    def url(self) -> str:
        """The broker's URL, its secrets masked."""
    @property
    def running(self) -> bool:
        """Whether the listener runs: subscribed, or trying to be."""
    async def start(self) -> None:
        """Start to listen. A second call does nothing.

        When it returns the listener is subscribed, or the broker could not be reached: then the
        listener keeps trying (with ``strict=True`` that is raised instead).

        Raises:
            fanwire.ConfigError: the URL makes no sense.
            fanwire.BrokerError: wrong password, no permission, or not a broker.
        """
    async def stop(self, drain_seconds: float = 1.0) -> None:
        """Stop listening and publishing. A second call does nothing.

        The application's connections stay open: ``ConnectionManager.disconnect_all`` closes them.

        Args:
            drain_seconds: how long what waits to be published may take, whatever the broker does;
                the rest fails.

        Raises:
            fanwire.ConfigError: ``drain_seconds`` is negative, or no number.
        """
    @overload
    async def publish_progress(
        self,
        upload_id: str,
        message: Any,
        *,
        receipt: Literal[False] = False,
        idempotency_key: str | None = None,
        version: int | None = None,
    ) -> None: ...
    @overload
    async def publish_progress(
        self,
        upload_id: str,
        message: Any,
        *,
        receipt: Literal[True],
        idempotency_key: str | None = None,
        version: int | None = None,
    ) -> Receipt: ...
    @overload
    async def publish_progress(
        self,
        upload_id: str,
        message: Any,
        *,
        receipt: bool,
        idempotency_key: str | None = None,
        version: int | None = None,
    ) -> Receipt | None:
        """Publish to everybody who watches an upload, on any instance.

        Messages of one publisher are sent in the order in which they were published, those of
        ``publish_nowait`` included.

        Args:
            upload_id: any str; the channel is ``upload:{upload_id}``.
            message: anything with ``model_dump_json()``, or dict, list, str, int, float, bool or
                None with dataclasses, ``msgspec.Struct``, datetime, UUID, Enum, Decimal and the
                like inside; or ``bytes`` that are JSON already. It is encoded at the first step.
                With a history it must be a JSON object without a member ``_fanwire``.
            receipt: return a ``fanwire.Receipt`` instead of None.
            idempotency_key: of the messages of an upload with the same key, as far as its history
                reaches back, only the first is published. Needs a history.
            version: from 0 to 2**53 - 1; not published unless newer than the newest of the upload.
                Needs a history.

        Raises:
            TypeError, ValueError: the message cannot be encoded, or is larger than
                ``max_message_bytes``; the text says where in it. Or it cannot be recorded.
            fanwire.PublishError: the broker did not take it, or it was stale; only with
                ``strict=True``.
        """
    async def publish_to_user(self, user_id: str, message: Any) -> None:
        """Publish to every connection of a user, on any instance, as ``publish_progress``."""
    def publish_nowait(
        self,
        upload_id: str,
        message: Any,
        *,
        idempotency_key: str | None = None,
        version: int | None = None,
    ) -> bool:
        """Queue a message for an upload; for hot loops and for code without an event loop.

        Returns:
            False when too much waits already: the message is not queued, and counted in
            ``stats()["publish_refused"]``.

        Raises:
            TypeError, ValueError: as ``publish_progress``.
        """
    def publish_to_user_nowait(self, user_id: str, message: Any) -> bool:
        """As ``publish_nowait``, for a user."""
    def flush(self, timeout_seconds: float = 2.0) -> bool:
        """Wait until everything published so far has gone out or failed. It blocks its thread.

        Args:
            timeout_seconds: how long to wait; 0 only looks.

        Returns:
            Whether the broker has taken it all: False when the time is up, as it is for what waits
            out an outage, or when some failed meanwhile.

        Raises:
            ValueError: ``timeout_seconds`` is negative, or no number.
            RuntimeError: an event loop runs in this thread, which would stand still: there, await
                ``publish_progress``.
        """
    def track(
        self,
        upload_id: str,
        total: float | None = None,
        *,
        user_id: str | None = None,
        min_interval: float = 0.1,
        stage: str = "queued",
        version: int | None = None,
        to_message: Callable[[TrackerEvent], Any] | None = None,
        describe: Callable[[BaseException], str] | None = None,
        exit_timeout_seconds: float = 2.0,
        retrying: type[BaseException]
        | tuple[type[BaseException], ...]
        | Callable[[BaseException], object]
        | None = None,
    ) -> Tracker:
        """Return a context manager that tells an upload's watchers how a job gets on.

        Args:
            upload_id: any str.
            total: how much there is to do, in any unit; None or 0 where that is not known.
            user_id: publish all messages to this user as well. A connection of that user that
                watches the upload too gets them twice.
            min_interval: seconds between two messages, but for the first one, a new stage's and the
                last one.
            stage: the name of the first stage.
            version: that of the first message; each has one more than the one before. So messages
                of an attempt that was given up are stale as soon as the next attempt, with higher
                ones, has begun. From 0 to 2**53 - 1. Needs a history.
            to_message: makes the message of a ``fanwire.TrackerEvent``; None publishes nothing.
                Default: ``upload_progress``, and ``upload_completed`` or ``upload_failed``.
            describe: says of an exception what the watchers may read, of which 2,000 characters
                are sent; ``str`` shows all that it says. Default: the name of its class, which
                gives nothing away, or "cancelled" or "interrupted".
            exit_timeout_seconds: how long leaving the block waits for the broker to take the last
                message. It is sent later where that is not enough. Blocking jobs of a broker that
                is away share this time, until it has taken anything.
            retrying: of which exceptions the job is tried again: their types, or a callable that is
                given the exception and says so. Nothing final is published of these, but progress:
                the stage "queued", and that the job will be tried again.

        Raises:
            TypeError, ValueError: an argument makes no sense.
        """
    def health(self) -> dict[str, Any]:
        """Return how the listener is, as ``RedisPubSub.health``."""
    def stats(self) -> dict[str, Any]:
        """Return counters, gauges and histograms by name: of this publisher and of its manager.

        Those of its sessions stand under "topics".
        """
    async def subscribe_topic(self, session_id: str, topic: str, handler: TopicHandler) -> None:
        """Subscribe a session to a topic, as ``RedisPubSub.subscribe_topic``."""
    async def unsubscribe_topic(self, session_id: str, topic: str) -> None:
        """End a session's subscription to a topic: its handler is not called again."""
    async def unsubscribe_all(self, session_id: str) -> None:
        """End all subscriptions of a session: none of its handlers is called again."""
    async def broadcast(
        self, topic: str, message: Any, *, except_session_id: str | None = None
    ) -> None:
        """Broadcast to every session that listens to a topic, as ``RedisPubSub.broadcast``."""

@disjoint_base
class BrokerPubSub:
    """What :class:`RedisPubSub` and :class:`PostgresPubSub` have in common."""

    @property
    def url(self) -> str:
        """The broker's URL, its secrets masked."""
    @property
    def channel_prefix(self) -> str:
        """What a channel's name has before the topic."""
    @property
    def running(self) -> bool:
        """Whether the listener runs: subscribed, or trying to be."""
    async def start(self) -> None:
        """Start to listen. A second call does nothing.

        When it returns everything wanted is subscribed, or the broker could not be reached: then
        the listener keeps trying (with ``strict=True`` that is raised instead).

        Raises:
            fanwire.ConfigError: the URL makes no sense.
            fanwire.BrokerError: wrong password, no permission, or not a broker.
        """
    async def stop(self, drain_seconds: float = 1.0) -> None:
        """Stop listening and publishing. Subscriptions stay, for the next ``start()``.

        Args:
            drain_seconds: how long what waits to be published may take, whatever the broker does;
                the rest fails.

        Raises:
            fanwire.ConfigError: ``drain_seconds`` is negative, or no number.
        """
    async def subscribe_topic(self, session_id: str, topic: str, handler: TopicHandler) -> None:
        """Subscribe a session to a topic. Of two handlers for the same pair the later one wins.

        When it returns the broker has confirmed the subscription: what is broadcast from then on
        arrives. Where the broker cannot be reached it returns after ``subscribe_timeout_seconds``,
        and the topic is subscribed as soon as the broker is back.

        Args:
            session_id: any str.
            topic: any str.
            handler: runs on this event loop, in a copy of this context, with a message of its own.

        Raises:
            TypeError: the handler is not callable.
            fanwire.BrokerError: the broker does not permit the subscription.
        """
    async def unsubscribe_topic(self, session_id: str, topic: str) -> None:
        """End a session's subscription to a topic: its handler is not called again.

        A subscription that there is not is no error. A handler that runs already runs on.
        """
    async def unsubscribe_all(self, session_id: str) -> None:
        """End all subscriptions of a session: none of its handlers is called again."""
    async def broadcast(
        self, topic: str, message: Any, *, except_session_id: str | None = None
    ) -> None:
        """Broadcast to every session that listens to a topic, on any instance, this one included.

        Args:
            topic: any str.
            message: dict, list, str, int, float, bool or None, with dataclasses, pydantic models,
                datetime, UUID, Enum, Decimal and the like inside.
            except_session_id: a session that is not to get it.

        Raises:
            TypeError, ValueError: the message cannot be encoded, or is larger than
                ``max_message_bytes``; the text says where in it.
            fanwire.PublishError: the broker did not take it; only with ``strict=True``.
        """
    def health(self) -> dict[str, Any]:
        """Return how the listener is.

        ``state`` is "connecting", "live", "degraded" (it was live and is trying to be again) or
        "stopped". Beside it ``in_state_seconds``, ``last_heard_seconds`` (since the broker's last
        sign of life, or None), ``error`` (the last trouble, or None), ``history_error`` (why the
        history cannot be read; None if it can), ``url``, ``reconnects``, ``publish_outages``,
        ``wanted_topics`` and ``confirmed_topics``.

        Raises:
            fanwire.ConfigError: the URL makes no sense.
        """
    def stats(self) -> dict[str, Any]:
        """Return counters, gauges and histograms by name."""

class RedisPubSub(BrokerPubSub):
    """A pub/sub backend over Redis or Valkey, for PyView and any code with topics and sessions.

    The broker carries ``{channel_prefix}{topic}`` with ``{"topic": ..., "message": ...}``, so that
    instances which run the Python code of PyView's guide understand it, and are understood. There
    is one subscription for each topic, however many sessions listen to it.

    Args:
        url: ``redis://``, ``rediss://``, ``unix:///path`` or ``memory://``.
        channel_prefix: what a channel's name has before the topic.
        ordering: "session": a session's handlers run one at a time, in the order of publication.
            "concurrent": a Task for each message.
        strict: raise trouble with the broker instead of logging it once per outage.
        connect_timeout_seconds: for connecting and authenticating together.
        publish_timeout_seconds: for the broker's answer to a broadcast.
        subscribe_timeout_seconds: how long ``subscribe_topic`` waits for the broker.
        max_message_bytes: a larger payload is refused with ValueError.
        max_queued_messages: how many messages may wait for a session whose handler does not
            return; past that its oldest ones are dropped and counted.
        max_queued_bytes: the same in bytes.
        on_drop: called on the event loop with a session id, a count of messages, and a reason.
        on_state_change: called on the event loop that called ``start()`` with the old state, the
            new one and what is wrong, or None; for the states see ``health()``.

    Raises:
        fanwire.ConfigError: an option makes no sense. A URL that makes none is raised by
            ``start()``, ``subscribe_topic()`` and ``broadcast()``.
    """

    def __init__(
        self,
        url: str = "redis://localhost:6379",
        channel_prefix: str = "pyview:",
        *,
        ordering: Literal["session", "concurrent"] = "session",
        strict: bool = False,
        connect_timeout_seconds: float = 2.0,
        publish_timeout_seconds: float = 2.0,
        subscribe_timeout_seconds: float = 2.0,
        max_message_bytes: int = 1_048_576,
        max_queued_messages: int = 1024,
        max_queued_bytes: int = 4_194_304,
        on_drop: Callable[[str, int, str], object] | None = None,
        on_state_change: Callable[[str, str, str | None], object] | None = None,
    ) -> None: ...

class PostgresPubSub(BrokerPubSub):
    """A pub/sub backend over PostgreSQL, for PyView and any code with topics and sessions.

    A message is notified (``pg_notify``) on ``{channel_prefix}{topic}`` as its JSON, so that
    instances which run the Python code of PyView's guide understand it, and are understood. Longer
    messages and topics than PostgreSQL takes are carried too, for those who run this.

    Args:
        dsn: ``postgresql://[user[:password]@][host][:port][/database][?parameters]``; what it does
            not say is taken from the environment, as libpq does. Or ``memory://``.
        channel_prefix: what a channel's name has before the topic.
        ordering: "session": a session's handlers run one at a time, in the order of publication.
            "concurrent": a Task for each message.
        strict: raise trouble with the broker instead of logging it once per outage.
        connect_timeout_seconds: for connecting and authenticating together.
        publish_timeout_seconds: for the broker's answer to a broadcast.
        subscribe_timeout_seconds: how long ``subscribe_topic`` waits for the broker.
        max_message_bytes: a larger payload is refused with ValueError.
        max_queued_messages: how many messages may wait for a session whose handler does not
            return; past that its oldest ones are dropped and counted.
        max_queued_bytes: the same in bytes.
        on_drop: called on the event loop with a session id, a count of messages, and a reason.
        on_state_change: called on the event loop that called ``start()`` with the old state, the
            new one and what is wrong, or None; for the states see ``health()``.

    Raises:
        fanwire.ConfigError: an option makes no sense. A URL that makes none is raised by
            ``start()``, ``subscribe_topic()`` and ``broadcast()``.
    """

    def __init__(
        self,
        dsn: str,
        channel_prefix: str = "pyview_",
        *,
        ordering: Literal["session", "concurrent"] = "session",
        strict: bool = False,
        connect_timeout_seconds: float = 2.0,
        publish_timeout_seconds: float = 2.0,
        subscribe_timeout_seconds: float = 2.0,
        max_message_bytes: int = 1_048_576,
        max_queued_messages: int = 1024,
        max_queued_bytes: int = 4_194_304,
        on_drop: Callable[[str, int, str], object] | None = None,
        on_state_change: Callable[[str, str, str | None], object] | None = None,
    ) -> None: ...

@disjoint_base
class MemoryPubSub:
    """A pub/sub backend inside this process, for one instance and for tests.

    Each object is on its own: what is broadcast by one is not heard by another.

    Args:
        json: False: handlers get the very object that was broadcast, all of them the same. True:
            they get what a broker would make of it, to find early what does not travel.
        ordering, max_message_bytes, max_queued_messages, max_queued_bytes, on_drop: as for
            ``RedisPubSub``; without ``json`` nothing is measured in bytes.

    Raises:
        fanwire.ConfigError: an option makes no sense.
    """

    def __init__(
        self,
        *,
        json: bool = False,
        ordering: Literal["session", "concurrent"] = "session",
        max_message_bytes: int = 1_048_576,
        max_queued_messages: int = 1024,
        max_queued_bytes: int = 4_194_304,
        on_drop: Callable[[str, int, str], object] | None = None,
    ) -> None: ...
    async def start(self) -> None:
        """Do nothing: there is nobody to connect to."""
    async def stop(self, drain_seconds: float = 1.0) -> None:
        """Do nothing: what is broadcast is with its sessions already. Subscriptions stay.

        Args:
            drain_seconds: as for ``RedisPubSub.stop``.
        """
    async def subscribe_topic(self, session_id: str, topic: str, handler: TopicHandler) -> None:
        """Subscribe a session to a topic, as ``RedisPubSub.subscribe_topic``."""
    async def unsubscribe_topic(self, session_id: str, topic: str) -> None:
        """End a session's subscription to a topic: its handler is not called again."""
    async def unsubscribe_all(self, session_id: str) -> None:
        """End all subscriptions of a session: none of its handlers is called again."""
    async def broadcast(
        self, topic: str, message: Any, *, except_session_id: str | None = None
    ) -> None:
        """Broadcast to every session that listens to a topic.

        Args:
            topic: any str.
            message: any object; with ``json=True`` as for ``RedisPubSub.broadcast``.
            except_session_id: a session that is not to get it.

        Raises:
            TypeError, ValueError: with ``json=True``, as ``RedisPubSub.broadcast``.
        """
    def stats(self) -> dict[str, Any]:
        """Return counters, gauges and histograms by name."""

def init_manager(**options: Any) -> ConnectionManager:
    """Make the process-wide manager and return it. One made before is replaced, not closed.

    Args:
        options: as for ``ConnectionManager``.
    """

def get_manager() -> ConnectionManager:
    """Return the process-wide manager.

    Raises:
        RuntimeError: ``init_manager()`` has not been called.
    """

def init_publisher(url: str | None = None, **options: Any) -> UploadProgressPublisher:
    """Make the process-wide publisher and return it. One made before is replaced, not stopped.

    Args:
        url: as for ``UploadProgressPublisher``.
        options: as for ``UploadProgressPublisher``.
    """

def get_publisher() -> UploadProgressPublisher:
    """Return the process-wide publisher.

    Raises:
        RuntimeError: ``init_publisher()`` has not been called.
    """

def migrate(dsn: str, *, timeout_seconds: float = 30.0) -> tuple[str, int | None, int]:
    """Make fanwire's tables and functions in a database, or bring them up to date.

    Returns:
        The schema they are in, the version that was there before or None, and the version now.
    """

def schema_sql() -> str:
    """The SQL that makes fanwire's tables and functions."""
