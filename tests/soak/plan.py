"""What a soak is made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Sizes and times; a run with the same seed makes the same choices, at other moments."""

    seconds: float
    seed: int
    history: bool = True
    faults: bool = True
    watchers: int = 40
    uploads: int = 12
    publishers: int = 2
    # Of all uploads together, a second.
    messages_per_second: float = 100.0
    # How long Redis keeps an upload after its newest message. Longer than anybody stays away.
    ttl_seconds: float = 30.0

    @property
    def history_ttl_seconds(self) -> float | None:
        return self.ttl_seconds if self.history else None

    @property
    def fault_every_seconds(self) -> float:
        """A short soak is disturbed and looked at more often, or it would say nothing."""
        return min(15.0, max(6.0, self.seconds / 10))

    @property
    def sample_every_seconds(self) -> float:
        return min(2.0, self.seconds / 120)

    @property
    def grace_seconds(self) -> float:
        """How long after its publication a final message may arrive, faults included."""
        return 15.0 if self.history else 3.0

    @property
    def upload_beat_seconds(self) -> float:
        return self.uploads / self.messages_per_second
