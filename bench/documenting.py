"""The part of docs/benchmarks.md that is made of figures; what people wrote around it stays."""

from collections.abc import Mapping
from pathlib import Path

import report as reporting
from report import Report

BEGIN = "<!-- figures: written by bench/plot.py, do not edit -->"
END = "<!-- end of figures -->"


def write(report: Report, path: Path, plots: Mapping[str, str]) -> None:
    """Replaces what is between the marks. `plots`: workload to the file with its plot."""
    before, mark, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise SystemExit(f"{path} has no marks for the figures")
    path.write_text(f"{before}{BEGIN}\n\n{_figures(report, plots)}\n\n{END}{after}")


def _figures(report: Report, plots: Mapping[str, str]) -> str:
    goals = reporting.targets(report)
    parts = [
        "## The run",
        f"`{report.command}`",
        "\n".join(f"- {key}: {value}" for key, value in report.about.items()),
        "## Reached, and not",
        "fanwire beside the pure-Python reference: medians, with the lowest and the highest round.",
        reporting.as_markdown([reporting.TARGETS_HEAD, *(goal.cells() for goal in goals)]),
        "## The workloads",
        "Medians; in brackets how many times better than the reference that is.",
    ]
    for name, (title, _) in report.workloads.items():
        lines = reporting.table(report, name)
        if not lines:
            continue
        parts.append(f"### {title[0].upper()}{title[1:]}")
        if name in plots:
            parts.append(f"![{title}]({plots[name]})")
        parts.append(reporting.as_markdown(lines))
        reasons = reporting.reasons(report, name)
        if reasons:
            parts.append("\n".join(f"- {reason}" for reason in reasons))
    parts += ["## What each contender does", "\n".join(_notes(report))]
    if report.remarks:
        parts += ["## What the run remarked", "\n".join(f"- {line}" for line in report.remarks)]
    return "\n\n".join(parts)


def _notes(report: Report) -> list[str]:
    return [f"- **{report.contenders[name]}**: {note}" for name, note in report.notes.items()]
