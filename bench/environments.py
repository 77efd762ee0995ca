"""A virtual environment for each group of contenders: their dependencies clash.

python bench/environments.py makes them all; a second run does nothing.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements"
# Inside .venv, so that they are ignored and cleaned with it.
ENVIRONMENTS = HERE.parent / ".venv" / "bench"
PLOTS = "plot"


def groups() -> list[str]:
    return sorted({path.stem for path in REQUIREMENTS.glob("*.txt")} - {"worker"})


def python_of(group: str) -> Path:
    return ENVIRONMENTS / group / "bin" / "python"


def prepare(wanted: Iterable[str]) -> None:
    """Makes what is missing or was made from other requirements."""
    for group in sorted(set(wanted)):
        folder = ENVIRONMENTS / group
        stamp = folder / "requirements.sha256"
        digest = _digest(group)
        if stamp.exists() and stamp.read_text() == digest:
            continue
        print(f"setting up {folder}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run(
            [
                *(str(python_of(group)), "-m", "pip", "install", "--quiet"),
                "--disable-pip-version-check",
                *("-r", str(REQUIREMENTS / f"{group}.txt")),
            ],
            check=True,
        )
        stamp.write_text(digest)


def _digest(group: str) -> str:
    read = (REQUIREMENTS / "worker.txt", REQUIREMENTS / f"{group}.txt")
    return hashlib.sha256(b"".join(path.read_bytes() for path in read)).hexdigest()


if __name__ == "__main__":
    prepare(groups())
