"""What a soak must show: nothing grows, nothing is left, and nothing is lost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from tests.soak.samples import Sample
from tests.soak.watchers import Tally

WARM_UP = 0.2
# The last quarter against the second one.
RSS_FACTOR = 1.10
RSS_MIB = 4.0
# Fewer say nothing.
ENOUGH = 5
SHOWN = 10
# What there is none of when everybody has left.
LEFT = ("lanes", "queued_messages", "pending_messages", "users", "watched_uploads")
# What never happens under a load like this one; and what a history and an outbox see to.
NEVER = ("panics", "overflowed", "timed_out", "not_json", "not_utf8")
NEVER_WITH_HISTORY = ("publish_failed", "publish_refused", "publish_expired", "publish_dropped")


@dataclass(frozen=True)
class Check:
    """One thing that must be so. ``judged`` is False where it is told and nothing more."""

    what: str
    holds: bool
    found: str
    judged: bool = True

    def __str__(self) -> str:
        mark = "ok" if self.holds else "BROKEN" if self.judged else "told"
        return f"{mark:<7} {self.what}: {self.found}"


def of_samples(samples: Sequence[Sample], seconds: float) -> list[Check]:
    """Memory of all samples; descriptors and threads of those that no fault disturbed."""
    second = [s.resources.rss_mib for s in samples if 0.25 <= s.at / seconds < 0.5]
    last = [s.resources.rss_mib for s in samples if s.at / seconds >= 0.75]
    settled = [s for s in samples if s.settled]
    warm_up = [s for s in settled if s.at < WARM_UP * seconds]
    after = [s for s in settled if s.at >= WARM_UP * seconds]
    if any(len(part) < ENOUGH for part in (second, last, warm_up, after)):
        return [Check("samples", False, "too few to say anything: let it run for longer")]
    limit = RSS_FACTOR * median(second) + RSS_MIB

    def not_more(what: str, measure: Callable[[Sample], int]) -> Check:
        before, then = max(map(measure, warm_up)), max(map(measure, after))
        return Check(what, then <= before, f"at most {then}, {before} while it warmed up")

    return [
        Check(
            "memory is flat",
            median(last) <= limit,
            f"{median(second):.1f} MiB in the second quarter, {median(last):.1f} in the last one, "
            f"where {limit:.1f} are allowed",
        ),
        not_more("descriptors, but for those of clients", lambda s: s.resources.own_descriptors),
        not_more("threads", lambda s: s.resources.threads),
    ]


def of_watchers(tally: Tally, *, history: bool) -> list[Check]:
    """Without history what is published during a fault is lost, as everybody knows."""
    finals = f"{tally.counts['finals']} came"
    if tally.missing:
        finals += f", {len(tally.missing)} did not: {'; '.join(tally.missing[:SHOWN])}"
    wrong = f"{len(tally.wrong)} wrong"
    if tally.wrong:
        wrong += f": {'; '.join(tally.wrong[:SHOWN])}"
    return [
        Check("final messages", not tally.missing, finals, judged=history),
        Check("some came", tally.counts["finals"] > 0, finals.partition(",")[0]),
        Check("order, duplicates and closed connections", not tally.wrong, wrong),
    ]


def of_the_end(
    figures: dict[str, int], client_descriptors: int, keys: int, *, ttl_seconds: float | None
) -> list[Check]:
    """Everybody has left, and what Redis keeps of the uploads has expired."""
    left = {name: figures[name] for name in LEFT if figures[name]}
    if client_descriptors:
        left["connections"] = client_descriptors
    kept = f"{keys} keys" + (f" after {ttl_seconds:.0f} s" if ttl_seconds is not None else "")
    return [
        Check("nothing is left of the clients", not left, str(left or "nothing")),
        Check("nothing is left in Redis", keys == 0, kept),
    ]


def of_figures(figures: dict[str, int], *, history: bool) -> Check:
    names = (*NEVER, *NEVER_WITH_HISTORY) if history else NEVER
    found = {name: figures[name] for name in names if figures.get(name)}
    return Check("nothing was given up", not found, str(found or "nothing"))


def of_the_process(status: int | None, log: str) -> list[Check]:
    """It ends by SIGTERM in time (uvicorn passes the signal on), and nothing went unforeseen."""
    ended = "not within its time" if status is None else f"status {status}"
    troubles = [line for line in log.splitlines() if "Traceback" in line or "panicked" in line]
    return [
        Check("the server ends when it is told to", status in (0, -15), ended),
        Check("its log", not troubles, f"{len(troubles)} tracebacks" if troubles else "clean"),
    ]
