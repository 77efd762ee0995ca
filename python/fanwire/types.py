"""The shapes that fanwire needs of an application's objects."""

from typing import Any, Protocol

__all__ = ["Connection"]


class Connection(Protocol):
    """A connection to a browser: two coroutines, and hashable. Nothing else of it is touched.

    FastAPI's and Starlette's ``WebSocket`` is one. Two objects that are equal and have the same
    hash are the same connection, as they would be in a set.
    """

    async def send_text(self, data: str, /) -> Any:
        """Send one message. If it raises, the connection is disconnected."""

    async def close(self, code: int = ..., reason: str | None = ...) -> Any:
        """Close the connection with a WebSocket close code."""
