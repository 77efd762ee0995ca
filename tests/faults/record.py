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
        again: who published it, too, if somebody did.
        stale_to: the uid of the message that has its version already.
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
    again: str | None = None
    stale_to: str | None = None


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
    """What one watcher saw of one upload, over all its connections.

    Args:
        steady: it was the only connection of its user, read all the time, and did not leave.
    """

    watcher: str
    upload: str
    events: list[Event]
    steady: bool = False

    def __str__(self) -> str:
        return f"{self.watcher} of {self.upload}"


@dataclass(frozen=True, slots=True)
class Loss:
    """Histories were lost.

    Args:
        at: just before.
        uploads: whose.
        away: the instances whose listeners were not connected then.
    """

    at: float
    uploads: frozenset[str]
    away: frozenset[str]

    def was_told(self, view: View) -> bool:
        """Whether that watcher was told, or had nothing to forget."""
        if view.upload not in self.uploads:
            return True
        before = [event for event in view.events if event.at < self.at]
        after = view.events[len(before) :]
        had_something = bool(before) and isinstance(before[-1], Got)
        return not had_something or any(isinstance(event, Resynced) for event in after)


@dataclass
class Ledger:
    """All that was published in a run.

    Args:
        recorded: whether publishers and listeners had a history.
        losses: what the broker was made to forget.
        lost_logs: by upload, where its log ended when that alone was lost.
        unreadable: from when to when the app's user was not let read histories.
        uses_up_offsets: whether the broker was made to refuse messages that it had numbered.
        excused: how many messages of a writer its publisher has counted as failed, dropped or
            expired without saying which.
        complaints: what a publisher said of a message and should not have.
        resyncs_have_reasons: whether a resync of a steady watcher needs one: histories are long,
            and nobody was refused to read them.
    """

    recorded: bool = True
    losses: list[Loss] = field(default_factory=list)
    lost_logs: defaultdict[str, list[Position]] = field(default_factory=lambda: defaultdict(list))
    uses_up_offsets: bool = False
    unreadable: list[tuple[float, float]] = field(default_factory=list)
    excused: dict[str, int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    resyncs_have_reasons: bool = False
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

    def has_lost(self, upload: str, after: float = 0.0) -> bool:
        """Whether the history of the upload was lost at some time."""
        return any(upload in loss.uploads and loss.at >= after for loss in self.losses)

    @property
    def accepted(self) -> int:
        return sum(message.accepted for message in self.messages.values())
