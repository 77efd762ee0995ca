"""What a run is to do. All of it is drawn from the seed; only the timing is left to chance."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, Self

from tests.faults import faults
from tests.faults.faults import INSTANCES, PUBLISHING_SECONDS, Fault
from tests.faults.record import Kind

UPLOADS = 8
WATCHERS = 40
# Runs that follow each other have the same size: for another one the instances are started anew.
HISTORY_SIZES = (256, 32)
RUNS_OF_A_SIZE = 25
# Bytes, so that a client which does not read has something to fall behind with.
PADDINGS = (0, 0, 0, 200, 2_000, 6_000)
# The most notes in a row: with those of a burst and of a second writer fewer than the smallest
# history keeps, so that it always has the whole current state.
NOTES_IN_A_ROW = 5
BURST_NOTES = 12
# By upload, who publishes it besides. Of each two one is strict, and tries again by itself.
AGAIN = {5: 3, 7: 0}


class Writing(Enum):
    """How a publisher is used."""

    PATIENT = "what cannot be sent waits in its outbox"
    STRICT = "it raises, and the app tries again with the same idempotency key"


@dataclass(frozen=True)
class Step:
    """A message, or several at once, and a pause before.

    Args:
        how: whether the writer waits, asks for a receipt, or does not wait.
        twice: it is published again, with the same idempotency key.
        stale: it has a version that is not newer, so it is refused.
    """

    kind: Kind
    pause_seconds: float
    padding: int = 0
    how: Literal["wait", "receipt", "nowait"] = "wait"
    twice: bool = False
    stale: bool = False


@dataclass(frozen=True)
class Upload:
    """Args:
    writer: who publishes most of it, an index into the plan's writers.
    second: who publishes notes besides, if anybody does, and how many.
    versioned: its progress carries a version.
    again: who publishes all of it, too, if anybody does, as when a worker is believed dead and its
        job given to another one. Then every message carries a key and a version.
    """

    writer: int
    steps: tuple[Step, ...]
    ending: Kind
    second: int | None
    second_notes: int
    versioned: bool
    again: int | None = None


class Manner(Enum):
    """How a watcher leaves."""

    POLITE = "with a closing handshake"
    RESET = "with RST"
    SILENT = "the connection stays open and nobody reads, as when a browser changes networks"


@dataclass(frozen=True)
class Departure:
    """A watcher leaves, and comes back after a pause.

    Args:
        where: the instance it comes back to.
        resumes: whether it says what it had; otherwise it begins anew.
        hesitates_seconds: between its signing in and its subscriptions.
    """

    at_seconds: float
    pause_seconds: float
    where: str
    manner: Manner
    resumes: bool
    hesitates_seconds: float


@dataclass(frozen=True)
class Watcher:
    """Args:
    user: an index; two tabs of one user have the same.
    uploads: indices.
    rests: from when on and for how long it does not read.
    """

    user: int
    uploads: tuple[int, ...]
    where: str
    joins_seconds: float
    departures: tuple[Departure, ...]
    rests: tuple[float, float] | None


@dataclass(frozen=True)
class Plan:
    seed: int
    history_size: int
    writers: tuple[Writing, ...]
    uploads: tuple[Upload, ...]
    watchers: tuple[Watcher, ...]
    faults: tuple[Fault, ...]

    @classmethod
    def drawn(cls, seed: int, *, further: bool = True) -> Self:
        """``further`` is False for what the seed meant before there were as many faults."""
        chance = random.Random(f"fanwire {seed}")
        writers = (Writing.PATIENT, Writing.PATIENT, Writing.PATIENT, Writing.STRICT)
        plan = cls(
            seed=seed,
            history_size=HISTORY_SIZES[seed // RUNS_OF_A_SIZE % len(HISTORY_SIZES)],
            writers=writers,
            uploads=tuple(_upload(chance, index, writers) for index in range(UPLOADS)),
            watchers=_watchers(chance),
            faults=faults.drawn(chance),
        )
        return plan._widened() if further else plan

    @classmethod
    def drawn_for_memory(cls, seed: int) -> Self:
        """The same load, for a broker without connections: instances alone have faults."""
        chance = random.Random(f"fanwire {seed} memory")
        blocks = faults.drawn_for_instances(chance, chance.randint(1, 3))
        return replace(cls.drawn(seed), faults=tuple(blocks))

    @property
    def refuses(self) -> bool:
        """Whether the broker takes things from the app's user that it may not do without."""
        return any(fault.kind.is_of_permissions for fault in self.faults)

    def _widened(self) -> Self:
        """What came later is drawn by another chance, so that all else stays what it was."""
        more = faults.drawn_further(random.Random(f"fanwire {self.seed} further"))
        together = sorted([*self.faults, *more], key=lambda fault: fault.at_seconds)
        uploads = [
            replace(upload, again=AGAIN.get(index)) for index, upload in enumerate(self.uploads)
        ]
        return replace(self, faults=tuple(together), uploads=tuple(uploads))


def _upload(chance: random.Random, index: int, writers: Sequence[Writing]) -> Upload:
    writer = index % len(writers)
    patient = writers[writer] is Writing.PATIENT
    steps: list[Step] = []
    count = chance.randint(30, 60)
    versioned = patient and index in (0, 2, 6)
    # In bursts, as uploads come: several at once, and then a pause.
    notes = 0
    for _ in range(count):
        at_once = chance.random() < 0.3
        pause = 0.0 if at_once else chance.uniform(0, 2 * PUBLISHING_SECONDS / count / 0.7)
        kind = Kind.NOTE if chance.random() < 0.3 and notes < NOTES_IN_A_ROW else Kind.PROGRESS
        notes = notes + 1 if kind is Kind.NOTE else 0
        stale = versioned and kind is Kind.PROGRESS and chance.random() < 0.15
        steps.append(
            Step(
                kind=kind,
                pause_seconds=pause,
                padding=chance.choice(PADDINGS),
                how=chance.choice(("wait", "wait", "receipt", "nowait")) if patient else "receipt",
                twice=kind is Kind.NOTE and chance.random() < 0.2,
                stale=stale,
            )
        )
    return Upload(
        writer=writer,
        steps=tuple(steps),
        ending=chance.choice((Kind.COMPLETED, Kind.COMPLETED, Kind.FAILED)),
        second=(writer + 1) % len(writers) if index in (1, 4) else None,
        second_notes=chance.randint(4, 8),
        versioned=versioned,
    )


def _watchers(chance: random.Random) -> tuple[Watcher, ...]:
    made = [_watcher(chance, index) for index in range(WATCHERS)]
    # Two tabs of one user on each instance: the second gets what its user watches unasked.
    for place, where in enumerate(INSTANCES):
        for tab in range(2):
            made[-1 - 2 * place - tab] = Watcher(
                user=WATCHERS + place,
                uploads=tuple(range(UPLOADS)),
                where=where,
                joins_seconds=tab * chance.uniform(0.0, PUBLISHING_SECONDS),
                departures=(),
                rests=None,
            )
    return tuple(made)


def _watcher(chance: random.Random, index: int) -> Watcher:
    where = INSTANCES[index % len(INSTANCES)]
    everything = tuple(range(UPLOADS))
    some = tuple(sorted(chance.sample(everything, chance.randint(2, 6))))
    departures: list[Departure] = []
    rests = None
    late = chance.random() < 0.15
    joins = chance.uniform(0.0, PUBLISHING_SECONDS) if late else 0.0
    # The first watcher stays, the second is slow, and a third of the others come and go.
    if index == 1 or (index > 1 and chance.random() < 0.05):
        rests = (chance.uniform(0.1, 0.8), chance.uniform(0.8, 2.2))
    elif index > 1 and chance.random() < 0.35:
        at, present = joins, where
        for _ in range(chance.randint(1, 3)):
            at += chance.uniform(0.2, 0.7 * PUBLISHING_SECONDS)
            present = chance.choice((present, present, *INSTANCES))
            departures.append(
                Departure(
                    at_seconds=at,
                    pause_seconds=chance.choice((0.0, chance.uniform(0.0, 0.8))),
                    where=present,
                    manner=chance.choice(list(Manner)),
                    resumes=chance.random() < 0.8,
                    hesitates_seconds=chance.choice((0.0, chance.uniform(0.0, 0.2))),
                )
            )
    uploads = everything if index < 4 or rests or chance.random() < 0.4 else some
    return Watcher(index, uploads, where, joins, tuple(departures), rests)
