"""The shapes that fanwire needs of an application's objects."""

from collections.abc import Awaitable
from typing import Any, Protocol, runtime_checkable

__all__ = ["Connection", "PubSubProvider", "TopicHandler"]


class TopicHandler(Protocol):
    """What is called with each message of a topic: ``async def handler(topic, message)``."""

    def __call__(self, topic: str, message: Any, /) -> Awaitable[object]:
        """Handle one message. What it raises is logged and counted, and disturbs nobody."""


class Connection(Protocol):
    """A connection to a browser: two coroutines, and hashable. Nothing else of it is touched.

    FastAPI's and Starlette's ``WebSocket`` is one. Two objects that are equal and have the same
    hash are the same connection, as they would be in a set.
    """

    async def send_text(self, data: str, /) -> Any:
        """Send one message. If it raises, the connection is disconnected."""

    async def close(self, code: int = ..., reason: str | None = ...) -> Any:
        """Close the connection with a WebSocket close code."""


@runtime_checkable
class PubSubProvider(Protocol):
    """What PyView asks of a pub/sub backend.

    ``RedisPubSub``, ``MemoryPubSub``, ``UploadProgressPublisher`` and
    ``fanwire.testing.RecordingPubSub`` are providers.
    """

    async def subscribe_topic(self, session_id: str, topic: str, handler: TopicHandler) -> None:
        """Subscribe a session to a topic."""

    async def unsubscribe_topic(self, session_id: str, topic: str) -> None:
        """End a session's subscription to a topic."""

    async def unsubscribe_all(self, session_id: str) -> None:
        """End all subscriptions of a session."""

    async def broadcast(self, topic: str, message: Any) -> None:
        """Broadcast a message to every session that listens to a topic."""

    async def start(self) -> None:
        """Connect, when the application starts."""

    async def stop(self) -> None:
        """Disconnect, when the application ends."""
