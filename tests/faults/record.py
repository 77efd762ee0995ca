"""What is recorded of a run: what was published, and what each watcher saw of each upload."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Self


class Kind(StrEnum):
    """What a message is to recovery, by its ``action``."""

    PROGRESS = "upload_progress"
    """A newer one may overwrite it. A milestone."""
    NOTE = "upload_note"
    """Everything else: never to be missing."""
    COMPLETED = "upload_completed"
    """The last message of an upload."""
    FAILED = "upload_failed"
    """So is this one."""

    @property
    def is_final(self) -> bool:
        return self in (Kind.COMPLETED, Kind.FAILED)

    @property
    def is_milestone(self) -> bool:
        return self is not Kind.NOTE


RESYNC = "resync"


class Position(NamedTuple):
    """Where a message stands within its upload."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch[:6]}:{self.offset}"


@dataclass(slots=True)
class Published:
    """A message as its writer knows it.

    Args:
        uid: which no other message has.
        number: the writer's count of its messages for this upload, from 1.
        accepted: whether fanwire has taken the duty to deliver it.
        forbidden: it was refused, so nobody may ever see it.
    """

    uid: str
    upload: str
    writer: str
    number: int
    kind: Kind
    at: float = 0.0
    accepted: bool = False
    forbidden: bool = False
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The watcher subscribed, on a new connection."""

    at: float
    where: str
    since: Position | None


@dataclass(frozen=True, slots=True)
class Resynced:
    """The watcher was told to forget what it knows of the upload."""

    at: float


@dataclass(frozen=True, slots=True)
class Got:
    """A message came."""

    at: float
    uid: str
    position: Position | None

    @classmethod
    def of(cls, at: float, message: Mapping[str, Any]) -> Self:
        reserved = message.get("_fanwire")
        position = Position(reserved["epoch"], reserved["offset"]) if reserved else None
        return cls(at, message["uid"], position)


Event = Opened | Resynced | Got


@dataclass(frozen=True, slots=True)
class View:
    """What one watcher saw of one upload, over all its connections."""

    watcher: str
    upload: str
    events: list[Event]

    def __str__(self) -> str:
        return f"{self.watcher} of {self.upload}"


@dataclass
class Ledger:
    """All that was published in a run.

    Args:
        recorded: whether publishers and listeners had a history.
        history_was_lost: the broker was made to forget all it had.
        excused: how many messages of a writer its publisher has counted as failed, dropped or
            expired without saying which.
        complaints: what a publisher said of a message and should not have.
    """

    recorded: bool = True
    history_was_lost: bool = False
    excused: dict[str, int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    messages: dict[str, Published] = field(default_factory=dict)
    """By uid."""
    by_writer: defaultdict[tuple[str, str], list[Published]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """By upload and writer, in the order in which they were published."""
    writers: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By upload."""

    def publish(self, upload: str, writer: str, kind: Kind, at: float = 0.0) -> Published:
        """Notes a message that is about to be published."""
        earlier = self.by_writer[upload, writer]
        if not earlier:
            self.writers[upload].append(writer)
        number = len(earlier) + 1
        message = Published(f"{upload}/{writer}/{number}", upload, writer, number, kind, at)
        earlier.append(message)
        self.messages[message.uid] = message
        return message

    def lose_history(self) -> None:
        self.history_was_lost = True

    @property
    def accepted(self) -> int:
        return sum(message.accepted for message in self.messages.values())
