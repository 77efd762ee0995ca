"""Where the time goes: `perf` over the measured stretches of a workload, as a table.

python bench/profiling.py [--contender fanwire] WORKLOAD ...      (needs Linux's perf)

`perf record` samples what the process does between the Meter's readings, all threads, user and
kernel; the set-up is not in it.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

import environments
import plugins
import report as reporting
from catalogue import ENTRIES, SUBJECT
from redis_server import RedisServer
from run import HERE, environment_with_fanwire, load_generator

SAMPLES_A_SECOND = 5_000
HEADINGS = {"comm": "thread", "dso": "in", "symbol": "function"}
NAMES = {
    "python": "event loop",
    "[kernel.kallsyms]": "kernel",
    "_core.abi3.so": "fanwire",
    "libpython3.11.so.1.0": "CPython",
    "libc.so.6": "libc",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="where the time goes, by perf")
    parser.add_argument("workload", nargs="+", choices=plugins.workload_names())
    parser.add_argument("--contender", default=SUBJECT, choices=plugins.contender_names())
    arguments = parser.parse_args()
    environments.prepare([ENTRIES[arguments.contender].group, ENTRIES[SUBJECT].group])
    with tempfile.TemporaryDirectory(prefix="fanwire-bench-") as folder:
        environment = environment_with_fanwire(Path(folder))
        with (
            RedisServer() as redis,
            load_generator(Path(folder) / "load.sock", redis.port) as load_path,
        ):
            for workload in arguments.workload:
                place = (redis.url, str(load_path), "full")
                command = (arguments.contender, workload, *place)
                record(Path(folder), environment, command)
                print(f"\n### {plugins.workload(workload).TITLE}: {arguments.contender}\n")
                print(reporting.as_markdown(table(Path(folder), "comm,dso", lines=12)))
                print()
                print(reporting.as_markdown(table(Path(folder), "comm,symbol", lines=10)))


def record(folder: Path, environment: dict[str, str], command: tuple[str, ...]) -> None:
    pipes = [folder / "control", folder / "heard"]
    for pipe in pipes:
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
    both = ",".join(map(str, pipes))
    python = environments.python_of(ENTRIES[command[0]].group)
    subprocess.run(
        [
            *("perf", "record", "--quiet", "--delay=-1", f"--control=fifo:{both}"),
            *(f"--freq={SAMPLES_A_SECOND}", f"--output={folder / 'perf.data'}", "--"),
            *(str(python), str(HERE / "worker.py"), *command),
        ],
        env={**environment, "FANWIRE_BENCH_PROFILER": both},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def table(folder: Path, sort: str, lines: int) -> list[list[str]]:
    fields = sort.split(",")
    done = subprocess.run(
        [
            *("perf", "report", "--stdio", "--input", str(folder / "perf.data")),
            *("--no-children", f"--sort={sort}", "--field-separator=|", "--percent-limit=1"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    found = []
    for line in done.stdout.splitlines():
        share, *cells = (cell.strip() for cell in line.split("|")[: len(fields) + 1])
        if share.endswith("%"):
            found.append(
                [
                    share,
                    *(
                        NAMES.get(cell, cell.removeprefix("[.] ").removeprefix("[k] "))
                        for cell in cells
                    ),
                ]
            )
    return [["share", *(HEADINGS[field] for field in fields)], *found[:lines]]


if __name__ == "__main__":
    main()
