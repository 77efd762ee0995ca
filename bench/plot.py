"""Plots and tables of a full run into docs/.

python bench/plot.py [RESULTS.json]     (default: the newest; one that is not full changes nothing)
"""

import os
import sys
from pathlib import Path

import environments
from report import Report

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"


def main() -> int:
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else newest()
    report = Report.read(results)
    if not report.full:
        print(f"{results.name} is not of a full run: docs are left as they are", file=sys.stderr)
        return 0
    environments.prepare([environments.PLOTS])
    python = environments.python_of(environments.PLOTS)
    if Path(sys.prefix) != python.parent.parent:
        os.execv(python, [str(python), __file__, str(results)])
    import documenting  # noqa: PLC0415 - these know matplotlib, which is in that environment alone
    import drawing  # noqa: PLC0415

    plots = drawing.draw_all(report, DOCS / "benchmarks")
    documenting.write(report, DOCS / "benchmarks.md", plots)
    return 0


def newest() -> Path:
    found = sorted((HERE / "results").glob("*.json"))
    if not found:
        raise SystemExit("no results: run bench/run.py first")
    return found[-1]


if __name__ == "__main__":
    sys.exit(main())
