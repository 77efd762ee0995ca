"""What recovery and outages need to be told, and what a publisher tells of a message."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from fanwire.coalesce import CoalesceRule
from fanwire.errors import ConfigError

__all__ = ["History", "Outbox", "Receipt"]

_FINAL = CoalesceRule("/action", ("upload_completed", "upload_failed"))
_LARGEST_SIZE = 2**32 - 1
_LARGEST_MEMORY = 2**63 - 1


@dataclass(frozen=True)
class History:
    """How much of every upload the broker keeps, for those who come late or were away.

    The same one belongs on the publishers that publish and on those that listen.

    Args:
        size: messages of an upload; its newest progress or final message is kept besides.
        ttl: for how long after the newest message of the upload, in seconds.
        final: the messages that end an upload, of which nothing before them matters.

    Raises:
        fanwire.ConfigError: ``size`` or ``ttl`` makes no sense. A pointer that is none is found by
            the publisher.
    """

    size: int = 256
    ttl: float = 3600.0
    final: CoalesceRule = _FINAL

    def __post_init__(self) -> None:
        _check_int("History.size", self.size, 1, _LARGEST_SIZE)
        _check_seconds("History.ttl", self.ttl)
        final: object = self.final
        if not isinstance(final, CoalesceRule):
            raise ConfigError(f"History.final must be a fanwire.CoalesceRule, not {final!r}")


@dataclass(frozen=True)
class Outbox:
    """How much a publisher lets wait, and for how long, while the broker cannot be reached.

    What is more goes on the account of the oldest progress; where there is none, what comes is
    refused.

    Args:
        messages: messages of all uploads together.
        bytes: their payloads.
        seconds: what has waited for longer is not published any more.

    Raises:
        fanwire.ConfigError: one of them makes no sense.
    """

    messages: int = 10_000
    bytes: int = 16_777_216
    seconds: float = 60.0

    def __post_init__(self) -> None:
        _check_int("Outbox.messages", self.messages, 1, _LARGEST_MEMORY)
        _check_int("Outbox.bytes", self.bytes, 1, _LARGEST_MEMORY)
        _check_seconds("Outbox.seconds", self.seconds)


@dataclass(frozen=True)
class Receipt:
    """What became of a message that was published with ``receipt=True``.

    Args:
        status: "published"; "queued" until the broker can be reached; "coalesced", because newer
            progress took its place while both waited; "duplicate" of a message with the same
            idempotency key; "stale", because the upload has a message with this version or a newer
            one; or "failed".
        receivers: the listeners that the broker handed it to, on all instances, if that is known.
        epoch: the history it stands in; None without one, and while it is not in it.
        offset: where it stands there; of a duplicate, where the first one stands.
    """

    status: Literal["published", "queued", "coalesced", "duplicate", "stale", "failed"]
    receivers: int | None = None
    epoch: str | None = None
    offset: int | None = None

    @property
    def queued(self) -> bool:
        """Whether it waits for the broker."""
        return self.status == "queued"

    @property
    def position(self) -> tuple[str, int] | None:
        """Epoch and offset, as ``subscribe_upload(since=…)`` takes them."""
        if self.epoch is None or self.offset is None:
            return None
        return (self.epoch, self.offset)


def _check_int(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"{name} must be an int of at least {least}, not {value!r}")


def _check_seconds(name: str, value: object) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not isfinite(value)
        or value <= 0
    ):
        raise ConfigError(f"{name} must be a positive number of seconds, not {value!r}")
