"""From the figures of all rounds to a table, as text for a terminal and as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from contract import Row

SUBJECT = "fanwire"
BASELINE = "reference"


@dataclass
class Results:
    """Every figure of every round: `figures[contender][workload][row key]`."""

    figures: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, contender: str, workload: str, figures: Mapping[str, float]) -> None:
        rows = self.figures.setdefault(contender, {}).setdefault(workload, {})
        for key, figure in figures.items():
            rows.setdefault(key, []).append(figure)

    def of(self, contender: str, workload: str, key: str) -> list[float]:
        return self.figures.get(contender, {}).get(workload, {}).get(key, [])


@dataclass(frozen=True)
class Line:
    """One row of the report: both sides and, where both have a figure, their ratio."""

    workload: str
    row: Row
    subject: list[float]
    other: list[float]
    cannot: str | None

    @property
    def ratio(self) -> float | None:
        """How many times better fanwire is, from the medians of both sides."""
        if not self.subject or not self.other:
            return None
        return self._better(median(self.subject), median(self.other))

    @property
    def met(self) -> bool | None:
        if self.row.target is None or self.ratio is None:
            return None
        return self.ratio >= self.row.target

    def cells(self) -> list[str]:
        target = "" if self.row.target is None else f"≥ {self.row.target:g}"
        verdict = {None: "", True: "met", False: "MISSED"}[self.met]
        other = self.cannot or _spread(self.other)
        return [
            f"  {self.row.title}",
            self.row.unit,
            _spread(self.subject),
            other,
            self._ratios(),
            target,
            verdict,
        ]

    def _ratios(self) -> str:
        if self.ratio is None:
            return ""
        rounds = [self._better(*pair) for pair in zip(self.subject, self.other, strict=False)]
        return f"{_number(self.ratio)} ({_number(min(rounds))} to {_number(max(rounds))})"

    def _better(self, subject: float, other: float) -> float:
        if self.row.better == "higher":
            subject, other = other, subject
        return other / subject if subject else float("inf")


def lines(
    results: Results,
    rows: Mapping[str, tuple[str, Sequence[Row]]],
    other: str,
    cannot: Mapping[str, str],
) -> list[Line]:
    return [
        Line(
            workload=title,
            row=row,
            subject=results.of(SUBJECT, name, row.key),
            other=results.of(other, name, row.key),
            cannot=cannot.get(name),
        )
        for name, (title, its_rows) in rows.items()
        for row in its_rows
        if results.of(SUBJECT, name, row.key) or results.of(other, name, row.key)
    ]


def without_target(line: Line) -> Line:
    """Targets are against the reference alone; beside the others stands the plain ratio."""
    return replace(line, row=replace(line.row, target=None))


def header(other: str) -> list[str]:
    return ["figure", "unit", SUBJECT, other, "ratio (of rounds)", "target", ""]


def as_text(title: str, head: list[str], table: Sequence[Line]) -> str:
    body = [line.cells() for line in table]
    widths = [max(len(row[column]) for row in [head, *body]) for column in range(len(head))]
    shown = [title, "", _padded(head, widths), _padded(["-" * width for width in widths], widths)]
    workload = ""
    for line, cells in zip(table, body, strict=True):
        if line.workload != workload:
            workload = line.workload
            shown.append(workload)
        shown.append(_padded(cells, widths))
    return "\n".join(shown)


def as_markdown(title: str, head: list[str], table: Sequence[Line]) -> str:
    rows = [head, ["---"] * len(head)]
    workload = ""
    for line in table:
        if line.workload != workload:
            workload = line.workload
            rows.append([f"**{workload}**", *[""] * (len(head) - 1)])
        rows.append(line.cells())
    return "\n".join([f"## {title}", "", *("| " + " | ".join(row) + " |" for row in rows)])


def _padded(cells: list[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _spread(figures: list[float]) -> str:
    if not figures:
        return ""
    return f"{_number(median(figures))} ({_number(min(figures))} to {_number(max(figures))})"


def _number(figure: float) -> str:
    if figure >= 1_000:
        return f"{figure:,.0f}"
    return f"{figure:.3g}" if figure < 100 else f"{figure:.0f}"
