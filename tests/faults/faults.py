"""The faults that there are, and which of them a run has."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

INSTANCES = ("first", "second")
WRITERS_DOOR = "writers"
PUBLISHING_SECONDS = 2.0


class FaultKind(StrEnum):
    # Between fanwire and the broker
    RESET = "cut (RST)"
    FIN = "cut (FIN)"
    TRUNCATE = "truncated"
    STALL_BOTH = "stalled"
    STALL_TO_BROKER = "stalled to the broker"
    STALL_FROM_BROKER = "stalled from the broker"
    DELAY = "delayed"
    THROTTLE = "throttled"
    REFUSE = "refused"
    # Of the broker
    KILL_LISTENERS = "CLIENT KILL TYPE pubsub"
    KILL_OTHERS = "CLIENT KILL TYPE normal"
    OUTPUT_BUFFER = "output buffer limit"
    PAUSE = "SIGSTOP"
    SCRIPT_FLUSH = "SCRIPT FLUSH"
    SCRIPT_FLUSHES = "SCRIPT FLUSH again and again"
    RESTART = "restart"
    # What it has is lost
    FLUSH_ALL = "FLUSHALL"
    FLUSH_AWAY = "FLUSHALL, listeners away"
    DELETE_AWAY = "DEL of histories, listeners away"
    DELETE_LOGS_AWAY = "DEL of logs, listeners away"
    # It takes no writes
    OUT_OF_MEMORY = "maxmemory reached"
    READ_ONLY = "made a replica"
    NO_REPLICAS = "replicas missing"
    # What the user of the app may do
    NO_CHANNELS = "ACL: no channels"
    NO_SCRIPTS = "ACL: no EVALSHA"
    NO_LISTENING = "ACL: no PSUBSCRIBE"
    NO_USER = "ACL: the user is off"
    # Of an instance
    BLOCK = "event loop blocked"

    @property
    def loses_history(self) -> bool:
        """Of all uploads, or of some."""
        return self in _LOSING

    @property
    def listeners_are_away(self) -> bool:
        """While the history is lost: they have to find out when they come back."""
        return self in _AWAY

    @property
    def is_of_permissions(self) -> bool:
        return self in _PERMISSIONS


_AWAY = {FaultKind.FLUSH_AWAY, FaultKind.DELETE_AWAY, FaultKind.DELETE_LOGS_AWAY}
_LOSING = {FaultKind.FLUSH_ALL, FaultKind.RESTART, *_AWAY}
_PERMISSIONS = {
    FaultKind.NO_CHANNELS,
    FaultKind.NO_SCRIPTS,
    FaultKind.NO_LISTENING,
    FaultKind.NO_USER,
}


class _Odds(NamedTuple):
    """How often it is drawn, and for how long it lasts at least and at most."""

    weight: int
    shortest: float
    longest: float


_Odd = Mapping[FaultKind, _Odds]

_NETWORK: _Odd = {
    FaultKind.RESET: _Odds(4, 0, 0),
    FaultKind.FIN: _Odds(3, 0, 0),
    FaultKind.TRUNCATE: _Odds(4, 0, 0),
    FaultKind.STALL_BOTH: _Odds(3, 0.1, 2.5),
    FaultKind.STALL_TO_BROKER: _Odds(2, 0.1, 2.5),
    FaultKind.STALL_FROM_BROKER: _Odds(2, 0.1, 2.5),
    FaultKind.DELAY: _Odds(2, 0.1, 1.0),
    FaultKind.REFUSE: _Odds(2, 0.1, 0.8),
}
_BROKER: _Odd = {
    FaultKind.KILL_LISTENERS: _Odds(6, 0, 0),
    FaultKind.KILL_OTHERS: _Odds(3, 0, 0),
    FaultKind.OUTPUT_BUFFER: _Odds(3, 0.3, 0.6),
    FaultKind.PAUSE: _Odds(3, 0.5, 1.3),
    FaultKind.SCRIPT_FLUSH: _Odds(3, 0, 0),
    FaultKind.FLUSH_ALL: _Odds(2, 0, 0),
    FaultKind.RESTART: _Odds(2, 0.0, 0.5),
}
_FURTHER_NETWORK: _Odd = {FaultKind.THROTTLE: _Odds(1, 0.3, 2.0)}
_FURTHER_BROKER: _Odd = {
    FaultKind.SCRIPT_FLUSHES: _Odds(2, 0.1, 0.6),
    FaultKind.FLUSH_AWAY: _Odds(2, 0.1, 0.6),
    FaultKind.DELETE_AWAY: _Odds(2, 0.1, 0.6),
    FaultKind.DELETE_LOGS_AWAY: _Odds(2, 0.1, 0.6),
    FaultKind.OUT_OF_MEMORY: _Odds(2, 0.1, 1.0),
    FaultKind.READ_ONLY: _Odds(2, 0.1, 1.0),
    FaultKind.NO_REPLICAS: _Odds(1, 0.1, 1.0),
    FaultKind.NO_CHANNELS: _Odds(2, 0.1, 0.8),
    FaultKind.NO_SCRIPTS: _Odds(2, 0.1, 0.8),
    FaultKind.NO_LISTENING: _Odds(2, 0.1, 0.8),
    FaultKind.NO_USER: _Odds(2, 0.1, 0.8),
}
_FURTHER_INSTANCE: _Odd = {FaultKind.BLOCK: _Odds(1, 0.2, 1.5)}


@dataclass(frozen=True)
class Fault:
    """Args:
    door: whose connections, or which instance; None for a fault of the broker.
    every: all of them, not only one.
    chance: the seed of what is decided when it happens.
    """

    at_seconds: float
    kind: FaultKind
    lasts_seconds: float
    door: str | None
    every: bool
    chance: int


def drawn(chance: random.Random) -> tuple[Fault, ...]:
    """Those that seeds have had from the beginning."""
    doors = (*INSTANCES, WRITERS_DOOR)
    faults = [_fault(chance, _NETWORK, doors) for _ in range(chance.randint(2, 6))]
    faults += [_fault(chance, _BROKER, None) for _ in range(chance.choice((0, 1, 2, 3)))]
    return tuple(sorted(faults, key=lambda fault: fault.at_seconds))


def drawn_further(chance: random.Random) -> tuple[Fault, ...]:
    """Those that came later, from a chance of their own, so that the others stay what they were."""
    doors = (*INSTANCES, WRITERS_DOOR)
    faults = [_fault(chance, _FURTHER_NETWORK, doors) for _ in range(chance.choice((0, 0, 1)))]
    faults += [_fault(chance, _FURTHER_BROKER, None) for _ in range(chance.choice((0, 1, 1, 2)))]
    faults += drawn_for_instances(chance, chance.choice((0, 0, 1)))
    return tuple(faults)


def drawn_for_instances(chance: random.Random, count: int) -> list[Fault]:
    """Those that need no broker."""
    return [_fault(chance, _FURTHER_INSTANCE, INSTANCES) for _ in range(count)]


def _fault(chance: random.Random, odds: _Odd, doors: tuple[str, ...] | None) -> Fault:
    kind = chance.choices(list(odds), [each.weight for each in odds.values()])[0]
    _, shortest, longest = odds[kind]
    return Fault(
        at_seconds=chance.uniform(0.05, PUBLISHING_SECONDS),
        kind=kind,
        # Short ones are more frequent.
        lasts_seconds=shortest + (longest - shortest) * chance.random() ** 2,
        door=chance.choice(doors) if doors else None,
        every=chance.random() < 0.5,
        chance=chance.randrange(1 << 30),
    )
