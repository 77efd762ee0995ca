"""What all runs together came to."""

from collections import Counter

from tests.faults.faults import FaultKind
from tests.faults.run import Outcome
from tests.faults.verdict import Excuse


class Tally:
    def __init__(self) -> None:
        self.runs = 0
        self.seconds = 0.0
        self.failed_seeds: list[int] = []
        self._injected: Counter[FaultKind] = Counter()
        self._published: Counter[str] = Counter()
        self._delivered: Counter[str] = Counter()
        self._effects: Counter[str] = Counter()
        self._excused: Counter[Excuse] = Counter()
        self._seen: Counter[str] = Counter()

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.seconds += outcome.seconds
        if outcome.failed:
            self.failed_seeds.append(outcome.plan.seed)
        self._injected += outcome.injected
        self._published += outcome.published
        self._delivered += outcome.delivered
        self._effects += outcome.effects
        self._excused += outcome.verdict.excused
        verdict = outcome.verdict
        self._seen += Counter(
            accepted=outcome.ledger.accepted,
            delivered=verdict.delivered,
            overwritten=verdict.overwritten,
            resyncs=verdict.resyncs,
            lost=verdict.lost,
            violations=len(verdict.violations),
            given_up=outcome.given_up,
            twice=sum(message.again is not None for message in outcome.ledger.messages.values()),
        )

    @property
    def lost(self) -> int:
        return self._seen["lost"]

    def table(self) -> str:
        """For people and for Markdown alike."""
        seen, published, delivered = self._seen, self._published, self._delivered
        rows: list[tuple[str, int | str]] = [
            ("runs", self.runs),
            ("**faults injected**", self._injected.total()),
            *((f"- {kind}", self._injected[kind]) for kind in FaultKind),
            ("**what shows that they did something**", ""),
            *((f"- {what}", self._effects[what]) for what in sorted(self._effects)),
            ("**messages published**", seen["accepted"]),
            ("- by two workers each", seen["twice"]),
            ("- waited in an outbox", published["publish_queued"]),
            ("- refused as stale", published["publish_stale"]),
            ("- refused as duplicates", published["publish_duplicates"]),
            ("**delivered to watchers**", seen["delivered"]),
            ("- recovered from history", delivered["recovered"]),
            ("- snapshots", delivered["snapshots"]),
            ("- gaps found", delivered["gaps"]),
            ("- duplicates suppressed", delivered["duplicates"]),
            ("**coalesced**", delivered["coalesced"] + published["publish_coalesced"]),
            ("- progress that watchers did not get", seen["overwritten"]),
            ("**resyncs**", seen["resyncs"]),
            ("**slow connections given up**", delivered["overflowed"]),
            ("**given up and counted**", seen["given_up"]),
            ("**excused**", self._excused.total()),
            *((f"- {excuse}", self._excused[excuse]) for excuse in Excuse),
            ("**rules broken**", seen["violations"]),
            ("**lost silently**", seen["lost"]),
            ("runs that failed", len(self.failed_seeds)),
        ]
        shown = [
            (name, f"{value:,}") if isinstance(value, int) else (name, value)
            for name, value in rows
        ]
        left = max(len(name) for name, _ in shown)
        right = max(len(value) for _, value in shown)
        lines = [f"| {'':{left}} | {'':{right}} |", f"| {'-' * left} | {'-' * (right - 1)}: |"]
        lines += [f"| {name:{left}} | {value:>{right}} |" for name, value in shown]
        return "\n".join(lines)
