"""Runs a program of ``tests/programs`` in an interpreter of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_SECONDS = 50


def environment() -> dict[str, str]:
    """That of the tests, less what would choose a broker; warnings are shown."""
    kept = {k: v for k, v in os.environ.items() if k not in ("FANWIRE_URL", "REDIS_URL")}
    # From 3.12 on Python warns of every fork of a process with threads, which the core has.
    warnings = "default,ignore:This process:DeprecationWarning"
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1", "PYTHONWARNINGS": warnings}


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"tests.programs.{name}", *arguments]


# Runs a script as it stands. In its debug mode asyncio says on stderr which steps took a tenth of a
# second, and that is up to the machine.
_RUNNER = """
import asyncio, runpy, sys
slowly = asyncio.BaseEventLoop.__init__
def begin(self):
    slowly(self)
    self.slow_callback_duration = float("inf")
asyncio.BaseEventLoop.__init__ = begin
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def strictly(script: Path) -> list[str]:
    """The command that runs a script in Python's development mode, with warnings as errors."""
    return [sys.executable, "-W", "error", "-X", "dev", "-c", _RUNNER, str(script)]


def run_program(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs ``tests/programs/{name}.py`` to its end, however that comes."""
    return subprocess.run(  # noqa: PLW1510 (the status is what a test looks at)
        command(name, *arguments),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env=environment(),
        cwd=ROOT,
    )


def output_of(name: str, *arguments: str) -> list[str]:
    """The lines that the program prints; it has to end with status 0 and no word of trouble."""
    done = run_program(name, *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.splitlines()
