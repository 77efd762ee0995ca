"""What a workload measures, and what is to be reached."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Row:
    """One figure of a workload, and what fanwire must reach.

    `target` is the ratio to the reference, `limit` a bound for fanwire's own figure.
    """

    key: str
    title: str
    unit: str
    better: Literal["lower", "higher"] = "lower"
    target: float | None = None
    limit: float | None = None
    beside: str | None = None  # whom the target is beside, if not the reference
