"""Process CPU time (user and system, all threads) and wall time of a stretch of code."""

import gc
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

# Set by profiling.py: two pipes, through which `perf record` is told what is worth a sample, and
# through which it says that it has heard.
PROFILER = os.environ.get("FANWIRE_BENCH_PROFILER")


def settle() -> None:
    """Called between set-up and measuring, by every workload.

    A full pass of the garbage collector over all that was imported takes milliseconds, once in a
    process: it would land on one figure by chance (it made `connect` of the reference look five
    times dearer). What is made from here on is collected as always.
    """
    gc.collect()
    gc.freeze()


class Meter:
    """Adds up over several `with` blocks, so that waiting between bursts can be left out."""

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self.wall_seconds = 0.0
        self._cpu = 0
        self._wall = 0

    def __iadd__(self, other: Self) -> Self:
        self.cpu_seconds += other.cpu_seconds
        self.wall_seconds += other.wall_seconds
        return self

    def __enter__(self) -> Self:
        if PROFILER:
            _tell_profiler(PROFILER, b"enable\n")
        self._wall = time.perf_counter_ns()
        self._cpu = time.process_time_ns()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.cpu_seconds += (time.process_time_ns() - self._cpu) / 1e9
        self.wall_seconds += (time.perf_counter_ns() - self._wall) / 1e9
        if PROFILER:
            _tell_profiler(PROFILER, b"disable\n")


def _tell_profiler(pipes: str, command: bytes) -> None:
    control, heard = (Path(pipe) for pipe in pipes.split(","))
    with control.open("wb") as commands:
        commands.write(command)
    with heard.open("rb") as answers:
        answers.readline()
