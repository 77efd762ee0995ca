"""Judges what watchers saw against what was published.

Of every upload a watcher is owed what follows its first delivery, up to the final message. A
*stretch* is what it saw in one go: it begins with the first delivery on a connection that did not
resume, and anew with each ``resync``. Within a stretch nothing may be missing but progress that
newer progress has overwritten.

What docs/recovery.md says to be impossible is excused, and each excuse is counted.

Where nothing is recorded messages have no positions, and the rules about positions say nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import zip_longest

from tests.faults.record import (
    Got,
    Kind,
    Ledger,
    Opened,
    Position,
    Published,
    Resynced,
    View,
)

# Greater than that of any message.
NO_NUMBER = 1 << 30


class Rule(StrEnum):
    """What must hold. The value says what was seen instead."""

    ENDS_FINAL = "did not end with the final message"
    OFFSETS_INCREASE = "an offset did not increase"
    EPOCH_CHANGE_IS_TOLD = "the epoch changed without a resync"
    NOTHING_MISSING = "a message is missing"
    NOTHING_TWICE = "a message came twice"
    IN_ORDER = "messages came in another order than they were published"
    STARTS_AT_MILESTONE = "a stretch began in the middle of the current state"
    ONLY_PUBLISHED = "what came should never have come"
    NUMBERED_ONCE = "an epoch gave a message two offsets, or an offset two messages"
    RESYNC_HAS_REASON = "a resync came without a reason"

    @property
    def is_loss(self) -> bool:
        return self in (Rule.ENDS_FINAL, Rule.NOTHING_MISSING)


class Excuse(StrEnum):
    """What may be although a rule says otherwise, where docs/recovery.md says so."""

    GIVEN_UP = "missing: its publisher had counted it as failed"
    """Receipts; "While the broker is away"."""
    VERSIONS_ANEW = "missing: published before the history was lost, and stale after it"
    """ "Retries and versions": of two workers one that is behind publishes anew what was before the
    loss; the next message of the other one makes stale what is between."""
    HISTORY_LOST = "began in the middle: the history was lost then"
    """ "What happens when": ``FLUSHALL``. Of an epoch that has ended nobody can give the state."""
    LOG_LOST = "began in the middle: the log was lost"
    """ "What happens when": eviction. Without its log what is left of it is given."""
    UNREADABLE = "began in the middle: reading the history was refused"
    """ "What happens when": scripts refused. The listener goes on without."""
    NOTHING_KNOWN = "a resync where nothing was known yet"
    """The history cannot be asked for what follows nothing."""
    OFFSET_USED_UP = "no message at an offset: what had it was refused"
    """ "What happens when": permissions. A message that was numbered, and then not published."""
    VERSION_GIVEN_UP = "came though stale: what had its version was given up"
    """ "Retries and versions": those that are published are compared."""
    VERSION_LOST = "came though stale: its version was lost with the history"
    """ "Retries and versions": it is forgotten with the history."""


@dataclass(frozen=True, slots=True)
class Violation:
    rule: Rule
    view: View
    detail: str
    at: int
    """The event at which it showed."""

    def __str__(self) -> str:
        return f"{self.view}: {self.rule}: {self.detail}"


@dataclass
class Verdict:
    violations: list[Violation] = field(default_factory=list)
    delivered: int = 0
    overwritten: int = 0
    """Progress that a watcher did not get because it got newer progress."""
    resyncs: int = 0
    excused: Counter[Excuse] = field(default_factory=Counter)

    @property
    def lost(self) -> int:
        return sum(violation.rule.is_loss for violation in self.violations)


def judge(views: Iterable[View], ledger: Ledger) -> Verdict:
    views = list(views)
    known = _Known(views, ledger)
    verdict = Verdict()
    for view in views:
        _Reading(view, ledger, known, verdict).read()
    verdict.excused[Excuse.GIVEN_UP] += len(known.forgiven)
    return verdict


class _Known:
    """What all watchers together saw: which messages there were, and at which positions."""

    def __init__(self, views: Sequence[View], ledger: Ledger) -> None:
        self.at: dict[tuple[str, str, int], Published] = {}
        self.offsets: dict[tuple[str, str], int] = {}
        self.epochs: defaultdict[str, set[str]] = defaultdict(set)
        self.last_epoch: dict[str, str] = {}
        """That of the end of each upload."""
        self.seen: set[str] = set()
        self._excused = dict(ledger.excused)
        self.forgiven: set[str] = set()
        for message in ledger.messages.values():
            if message.position is not None:
                self._place(message, message.position.epoch, message.position.offset)
        for view in views:
            for event in view.events:
                if isinstance(event, Got) and (message_ := ledger.messages.get(event.uid)):
                    self.seen.add(event.uid)
                    if event.position is not None and message_.upload == view.upload:
                        self._place(message_, *event.position)

    def _place(self, message: Published, epoch: str, offset: int) -> None:
        self.epochs[message.upload].add(epoch)
        self.at.setdefault((message.upload, epoch, offset), message)
        self.offsets.setdefault((message.uid, epoch), offset)
        if message.kind.is_final:
            self.last_epoch[message.upload] = epoch

    def excuses(self, message: Published) -> bool:
        """Whether this one may be among those that its publisher admits to have given up."""
        if message.uid in self.seen:
            return False
        if message.uid not in self.forgiven:
            # Of two that publish the same, one may overtake what the other has given up.
            writers = [writer for writer in (message.writer, message.again) if writer]
            admits = next((writer for writer in writers if self._excused.get(writer)), None)
            if admits is None:
                return False
            self._excused[admits] -= 1
            self.forgiven.add(message.uid)
        return True

    def was_never_taken(self, uid: str | None) -> bool:
        """Whether nobody saw that message, and nobody was told its position."""
        return uid is not None and not any(placed == uid for placed, _ in self.offsets)

    def is_next_to(self, lost: Position, began: Position, upload: str) -> bool:
        """Whether this was the first message after a log that was lost."""
        epoch = lost.epoch
        between = range(lost.offset + 1, began.offset)
        return (
            epoch == began.epoch
            and lost.offset < began.offset
            and not any((upload, epoch, offset) in self.at for offset in between)
        )


class _Reading:
    """One view, read from its first event to its last."""

    def __init__(self, view: View, ledger: Ledger, known: _Known, verdict: Verdict) -> None:
        self._view = view
        self._ledger = ledger
        self._known = known
        self._verdict = verdict
        self._index = 0
        self._is_first_stretch = True
        # Offsets without a message, which have shown that one is missing; its number will, too.
        self._nameless = 0
        self._begin(0.0)

    def read(self) -> None:
        final: bool | None = None
        for index, event in enumerate(self._view.events):
            self._index = index
            match event:
                case Opened(since=None):
                    self._begin(event.at)
                    final = None
                case Opened():
                    pass  # it resumes: the stretch goes on
                case Resynced():
                    self._verdict.resyncs += 1
                    self._check_resync()
                    self._begin(event.at)
                    final = None
                case Got():
                    self._verdict.delivered += 1
                    message = self._ledger.messages.get(event.uid)
                    if message is None or message.upload != self._view.upload:
                        self._complain(Rule.ONLY_PUBLISHED, f"{event.uid} is not of this upload")
                        continue
                    self._follow(event, message)
                    final = message.kind.is_final
        if not final:
            ending = "nothing" if final is None else f"{self._last_uid}"
            self._complain(Rule.ENDS_FINAL, f"the last that it shows is {ending}")

    def _begin(self, at: float) -> None:
        """A new stretch: what came before counts no more."""
        self._began = at
        self._last: Got | None = None
        self._numbers: dict[str, int] = {}
        self._uids: set[str] = set()

    @property
    def _last_uid(self) -> str:
        return self._last.uid if self._last else "nothing"

    def _follow(self, event: Got, message: Published) -> None:
        if message.forbidden:
            if self._ledger.has_lost(message.upload):
                self._verdict.excused[Excuse.VERSION_LOST] += 1
            elif self._known.was_never_taken(message.stale_to):
                self._verdict.excused[Excuse.VERSION_GIVEN_UP] += 1
            else:
                self._complain(Rule.ONLY_PUBLISHED, f"{event.uid} was refused")
        if self._ledger.recorded and event.position is None:
            self._complain(Rule.ONLY_PUBLISHED, f"{event.uid} has no position")
        self._check_numbering(event, message)
        if self._last is not None and not self._is_same_epoch(event):
            self._complain(Rule.EPOCH_CHANGE_IS_TOLD, f"{self._last.position} -> {event.position}")
            self._begin(event.at)
        if event.uid in self._uids:
            self._complain(Rule.NOTHING_TWICE, event.uid)
            return
        if self._last is None:
            self._check_beginning(event, message)
        else:
            self._check_offset(self._last, event, message)
        self._check_number(event, message)
        self._uids.add(event.uid)
        self._last = event

    def _is_same_epoch(self, event: Got) -> bool:
        assert self._last is not None
        before, now = self._last.position, event.position
        return (before and before.epoch) == (now and now.epoch)

    def _check_numbering(self, event: Got, message: Published) -> None:
        if event.position is None:
            return
        epoch, offset = event.position
        known = self._known.offsets[message.uid, epoch]
        if known != offset:
            self._complain(Rule.NUMBERED_ONCE, f"{event.uid} is at {known} and at {offset}")
        there = self._known.at[message.upload, epoch, offset]
        if there is not message:
            text = f"{event.position} is {there.uid} and {event.uid}"
            self._complain(Rule.NUMBERED_ONCE, text)

    def _check_beginning(self, event: Got, message: Published) -> None:
        """A current state begins with a milestone; where there was none yet, with the first."""
        first, self._is_first_stretch = self._is_first_stretch, False
        if event.position is None:
            return
        if event.position.offset > 1 and not message.kind.is_milestone:
            self._check_middle(event, event.position, message)
        whole = first and event.position.offset == 1 and not self._ledger.has_lost(message.upload)
        if whole and len(self._known.epochs[self._view.upload]) == 1:
            # It saw the first message of all, so everything of every writer is owed.
            self._numbers = dict.fromkeys(self._ledger.writers[self._view.upload], 0)

    def _check_middle(self, event: Got, position: Position, message: Published) -> None:
        upload = message.upload
        over = position.epoch != self._known.last_epoch.get(upload, position.epoch)
        lost = self._ledger.lost_logs.get(upload, [])
        if over and self._ledger.has_lost(upload):
            self._verdict.excused[Excuse.HISTORY_LOST] += 1
        elif any(self._known.is_next_to(end, position, upload) for end in lost):
            self._verdict.excused[Excuse.LOG_LOST] += 1
        elif any(
            self._began <= end and begin <= event.at for begin, end in self._ledger.unreadable
        ):
            self._verdict.excused[Excuse.UNREADABLE] += 1
        else:
            self._complain(Rule.STARTS_AT_MILESTONE, f"with {message.uid} at {position}")

    def _check_resync(self) -> None:
        """One that never left and whose history is there has nothing to be told."""
        upload = self._view.upload
        is_lost = self._ledger.has_lost(upload) or upload in self._ledger.lost_logs
        if not self._view.steady or not self._ledger.resyncs_have_reasons or is_lost:
            return
        if self._last is None:
            self._verdict.excused[Excuse.NOTHING_KNOWN] += 1
        else:
            self._complain(Rule.RESYNC_HAS_REASON, f"after {self._last_uid}")

    def _check_offset(self, before: Got, event: Got, message: Published) -> None:
        if before.position is None or event.position is None:
            return
        epoch, offset = event.position
        if offset <= before.position.offset:
            self._complain(Rule.OFFSETS_INCREASE, f"{before.position} -> {event.position}")
            return
        self._nameless = 0
        for skipped in range(before.position.offset + 1, offset):
            # One that nobody saw can only have been progress, too.
            missing = self._known.at.get((message.upload, epoch, skipped))
            if message.kind is Kind.PROGRESS and (not missing or missing.kind is Kind.PROGRESS):
                self._verdict.overwritten += 1
                continue
            if not missing and self._ledger.uses_up_offsets:
                self._verdict.excused[Excuse.OFFSET_USED_UP] += 1
                continue
            self._nameless += not missing
            name = f"{missing.uid if missing else 'what nobody saw'} at {epoch[:6]}:{skipped}"
            self._complain(Rule.NOTHING_MISSING, f"{name}, before {event.uid}")

    def _check_number(self, event: Got, message: Published) -> None:
        """What its writer published between the last that came and this one."""
        before = self._numbers.get(message.writer)
        if before is not None and message.number < before:
            self._complain(Rule.IN_ORDER, f"{message.uid} after number {before} of its writer")
            return
        self._numbers[message.writer] = message.number
        ends = [(message.writer, before, message.number)]
        if message.kind.is_final:
            # It was published when all the others had been, so nothing else is to come.
            others = [writer for writer in self._numbers if writer != message.writer]
            ends += [(writer, self._numbers[writer], NO_NUMBER) for writer in others]
        for writer, first, last in ends:
            for missing in [] if first is None else self._owed(writer, first, last):
                if event.position and (missing.uid, event.position.epoch) in self._known.offsets:
                    continue  # its offset has said what is to be said
                if self._known.excuses(missing):
                    continue
                if missing.again and self._ledger.has_lost(missing.upload, after=missing.at):
                    self._verdict.excused[Excuse.VERSIONS_ANEW] += 1
                    continue
                if self._nameless:
                    self._nameless -= 1  # told as an offset that nobody saw
                else:
                    text = f"{missing.uid}, before {message.uid}"
                    self._complain(Rule.NOTHING_MISSING, text)

    def _owed(self, writer: str, after: int, before: int) -> Iterator[Published]:
        """Of the messages between two numbers those that no newer progress may have overwritten."""
        published = self._ledger.by_writer[self._view.upload, writer]
        alone = len(self._ledger.writers[self._view.upload]) == 1
        between = [message for message in published[after : before - 1] if message.accepted]
        followers = [*between[1:], *published[before - 1 : before]] if between else []
        for message, follower in zip_longest(between, followers):
            overwritten = follower is not None and follower.kind is Kind.PROGRESS
            # Where others write, too, theirs may have come between and overwritten it.
            if message.kind is not Kind.PROGRESS or (alone and not overwritten):
                yield message

    def _complain(self, rule: Rule, detail: str) -> None:
        self._verdict.violations.append(Violation(rule, self._view, detail, self._index))
