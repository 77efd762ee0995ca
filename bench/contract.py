"""What a contender and a workload are, and what passes between them.

A contender is an entry in `catalogue.py` and a file in `contenders/` with `build(url)`.
A workload is a file in `workloads/` with NAME, TITLE, ROWS and `run(session)`, or one of several
objects with these in a file's WORKLOADS.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from commands import Wire
from load_client import LoadClient
from rows import Row

__all__ = [
    "Another",
    "Contender",
    "ContenderModule",
    "Events",
    "Manager",
    "Publisher",
    "Publishing",
    "Row",
    "Session",
    "TopicHandler",
    "Topics",
    "Workload",
]

TopicHandler = Callable[[str, Any], Coroutine[Any, Any, None]]


class Manager(Protocol):
    def connect(self, user_id: str, websocket: Any) -> Awaitable[None]: ...
    def disconnect(self, user_id: str, websocket: Any) -> Awaitable[None]: ...
    def subscribe_upload(self, user_id: str, upload_id: str) -> Awaitable[None]: ...
    def unsubscribe_upload(self, user_id: str, upload_id: str) -> Awaitable[None]: ...


class Publisher(Protocol):
    def start(self) -> Awaitable[None]: ...
    def stop(self) -> Awaitable[None]: ...
    def publish_progress(self, upload_id: str, message: Any) -> Awaitable[None]: ...


class Topics(Protocol):
    """A backend for PyView's topics, on Redis."""

    def start(self) -> Awaitable[None]: ...
    def subscribe_topic(
        self, session_id: str, topic: str, handler: TopicHandler
    ) -> Awaitable[None]: ...
    def unsubscribe_all(self, session_id: str) -> Awaitable[None]: ...


class Publishing(Topics, Protocol):
    """A backend for PyView's topics that publishes too."""

    def broadcast(self, topic: str, message: Any) -> Awaitable[None]: ...
    def stop(self) -> Awaitable[None]: ...


class Events(Protocol):
    """Publishes a daemon's log lines, without an event loop."""

    def publish_log(self, event_dict: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class Another(Protocol):
    def __call__(self, url: str, *, history: bool) -> "Contender": ...


@dataclass(frozen=True)
class Contender:
    """One side, built and not started. Workloads call its parts directly: no adapter in between."""

    manager: Manager
    publisher: Publisher
    # How its own publishers would write a message; None: text on the channel, as the reference.
    wire: Wire | None = None
    # Whether it gets every message, or Redis keeps from it what nobody here watches.
    hears_all: bool = True
    # Makes its backend for topics, with the prefix that PyView's guide has.
    topics: Callable[[], Topics] | None = None
    # The same on the PostgreSQL of that address.
    postgres: Callable[[str], Publishing] | None = None
    # Makes its publisher of log lines, for the broker of that URL.
    events: Callable[[str], Events] | None = None
    # Makes another of its kind, which keeps a history or does not.
    another: Another | None = None


class ContenderModule(Protocol):
    def build(self, url: str) -> Contender: ...


@dataclass(frozen=True)
class Session:
    """What a workload works with: one contender, the load generator, and how much to do."""

    contender: Contender
    load: LoadClient
    quick: bool
    divisor: int
    redis_port: int
    remarks: list[str]

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def messages(self, count: int) -> int:
        """How many of so many messages this contender is given."""
        return count // self.divisor


class Workload(Protocol):
    NAME: str
    TITLE: str
    ROWS: tuple[Row, ...]

    def run(self, session: Session) -> Awaitable[Mapping[str, float]]: ...
