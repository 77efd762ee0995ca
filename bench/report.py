"""From the figures of all rounds to tables, as text for a terminal and as Markdown."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from catalogue import BASELINE, SUBJECT
from rows import Row

# A workload with more figures than this is shown with a line for each figure instead, and so is one
# that a single contender was measured at.
COLUMNS = 9
VERDICTS = {None: "", True: "met", False: "MISSED"}


@dataclass
class Report:
    """All there is to say about a run; what is in the JSON is this."""

    about: dict[str, str]
    command: str
    full: bool  # every contender and workload, in full size
    contenders: dict[str, str]  # name -> title
    notes: dict[str, str]
    workloads: dict[str, tuple[str, list[Row]]]
    cannot: dict[str, dict[str, str]]  # contender -> workload -> why
    # Every figure of every round: figures[contender][workload][row key].
    figures: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, contender: str, workload: str, figures: Mapping[str, float]) -> None:
        rows = self.figures.setdefault(contender, {}).setdefault(workload, {})
        for key, figure in figures.items():
            rows.setdefault(key, []).append(figure)

    def of(self, contender: str, workload: str, key: str) -> list[float]:
        return self.figures.get(contender, {}).get(workload, {}).get(key, [])

    def median(self, contender: str, workload: str, key: str) -> float | None:
        figures = self.of(contender, workload, key)
        return median(figures) if figures else None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> "Report":
        content: dict[str, Any] = json.loads(path.read_text())
        content["workloads"] = {
            name: (title, [Row(**row) for row in rows])
            for name, (title, rows) in content["workloads"].items()
        }
        return cls(**content)


@dataclass(frozen=True)
class Target:
    """One thing to reach: a ratio to the reference, or a bound for fanwire's own figure."""

    title: str
    row: Row
    subject: list[float]
    other: list[float]

    @property
    def ratio(self) -> float | None:
        if not self.subject or not self.other:
            return None
        return times_better(self.row, median(self.subject), median(self.other))

    @property
    def met(self) -> bool | None:
        if self.row.limit is not None:
            if not self.subject:
                return None
            figure = median(self.subject)
            lower = self.row.better == "lower"
            return figure <= self.row.limit if lower else figure >= self.row.limit
        return None if self.ratio is None else self.ratio >= (self.row.target or 0)

    def cells(self) -> list[str]:
        if self.row.limit is not None:
            sign = "≤" if self.row.better == "lower" else "≥"
            wanted = f"{sign} {number(self.row.limit)} {self.row.unit}"
        else:
            wanted = f"≥ {number(self.row.target or 0)} times"
            wanted += " what Redis can" if self.row.beside else ""
        return [
            self.title,
            self.row.title,
            self.row.unit,
            spread(self.subject),
            f"{spread(self.other)}{', Redis alone' if self.row.beside else ''}",
            self._ratios(),
            wanted,
            VERDICTS[self.met],
        ]

    def _ratios(self) -> str:
        if self.ratio is None or self.row.unit in ("%", "times"):
            return ""
        pairs = zip(self.subject, self.other, strict=False)
        rounds = [times_better(self.row, *pair) for pair in pairs]
        return f"{number(self.ratio)} ({number(min(rounds))} to {number(max(rounds))})"


TARGETS_HEAD = [
    "workload",
    "figure",
    "unit",
    SUBJECT,
    BASELINE,
    "ratio (of rounds)",
    "to reach",
    "",
]


def targets(report: Report) -> list[Target]:
    return [
        Target(
            title,
            row,
            report.of(SUBJECT, name, row.key),
            report.of(row.beside or BASELINE, name, row.key),
        )
        for name, (title, rows) in report.workloads.items()
        for row in rows
        if (row.target is not None or row.limit is not None)
        and report.of(SUBJECT, name, row.key)
        and (row.beside is None or row.beside in report.figures)
    ]


def table(report: Report, workload: str) -> list[list[str]]:
    """Head and lines of a workload: each cell a median, and how many times better that is."""
    _, rows = report.workloads[workload]
    shown = [
        row for row in rows if any(report.of(name, workload, row.key) for name in report.figures)
    ]
    measured = [name for name in report.contenders if workload in report.figures.get(name, {})]
    if not measured:
        return []
    if len(shown) > COLUMNS or len(measured) == 1:
        head = ["", *(report.contenders[name] for name in measured)]
        return [head] + [
            [_heading(row), *(_cell(report, name, workload, row) for name in measured)]
            for row in shown
        ]
    return [["", *map(_heading, shown)]] + [
        [report.contenders[name], *(_cell(report, name, workload, row) for row in shown)]
        for name in measured
    ]


def reasons(report: Report, workload: str) -> list[str]:
    """Who is not measured at a workload, and why; those with the same reason together."""
    grouped: dict[str, list[str]] = {}
    for name, title in report.contenders.items():
        reason = report.cannot.get(name, {}).get(workload)
        if reason is not None and name != "drain":
            grouped.setdefault(reason, []).append(title)
    return [f"{', '.join(titles)}: {reason}" for reason, titles in grouped.items()]


def times_better(row: Row, subject: float, other: float) -> float:
    if row.better == "higher":
        subject, other = other, subject
    if subject == other:
        return 1.0
    return other / subject if subject else float("inf")


def as_text(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in ruled
    )


def as_markdown(lines: list[list[str]]) -> str:
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in ruled)


def spread(figures: list[float]) -> str:
    if not figures:
        return ""
    return f"{number(median(figures))} ({number(min(figures))} to {number(max(figures))})"


def number(figure: float) -> str:
    if figure == float("inf"):
        return "never"
    if figure >= 1_000:
        return f"{figure:,.0f}"
    return f"{figure:.3g}" if figure < 100 else f"{figure:.0f}"


def _heading(row: Row) -> str:
    return f"{row.title}, {row.unit}"


def _cell(report: Report, contender: str, workload: str, row: Row) -> str:
    figure = report.median(contender, workload, row.key)
    if figure is None:
        return ""
    base = report.median(BASELINE, workload, row.key)
    if base is None or contender == BASELINE or row.unit in ("%", "times"):
        return number(figure)
    ratio = times_better(row, figure, base)
    return number(figure) if ratio == float("inf") else f"{number(figure)} ({number(ratio)} x)"
