"""The benchmark: fanwire beside the pure-Python reference and its peers, on one Redis, in one run.

python bench/run.py [--rounds 5] [--only NAME] [--contender NAME] [--quick] [--check]
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import environments
import machine
import plugins
import report as reporting
from catalogue import ENTRIES, SUBJECT, reason_against
from redis_server import RedisServer

HERE = Path(__file__).parent
RESULTS = HERE / "results"
# No round begins that would end after this: a slow machine gives fewer rounds, not a longer run.
FULL_BUDGET_SECONDS = 1_600.0
QUICK_BUDGET_SECONDS = 220.0
WORKER_SECONDS = 120.0
QUIET_LOAD = 1.5
QUICK_CONTENDERS = ("fanwire", "reference", "reference_listen")


def main() -> int:
    # Ends as Ctrl-C does: through the `finally` of every process that was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = parse_arguments()
    environments.prepare(ENTRIES[name].group for name in [*arguments.contender, SUBJECT])
    with tempfile.TemporaryDirectory(prefix="fanwire-bench-") as folder:
        environment = environment_with_fanwire(Path(folder))
        with (
            RedisServer() as redis,
            load_generator(Path(folder) / "load.sock", redis.port) as load_path,
        ):
            run = Run(arguments, environment, redis.url, load_path)
            run.report.about |= machine.describe(redis.version())
            run.report.about["fanwire"] = machine.fanwire_version(environment)[0]
            entries = [ENTRIES[name] for name in arguments.contender]
            run.report.about |= machine.versions(entries, environment)
            if os.getloadavg()[0] > QUIET_LOAD:
                run.report.remarks.append("the machine was not quiet when the run began")
            run.measure_all()
    missed = publish(run.report)
    return 1 if arguments.check and missed else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="fanwire beside the reference and its peers")
    parser.add_argument("--rounds", type=int, help="at most so many of each (5; quick: 2)")
    parser.add_argument(
        "--only",
        action="append",
        choices=[*plugins.workload_names(), *plugins.GROUPS],
        help="a workload, or a group of them; repeatable",
    )
    parser.add_argument(
        "--contender", action="append", choices=plugins.contender_names(), help="repeatable"
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller workloads, no peers; under four minutes"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    arguments = parser.parse_args()
    arguments.full = not (arguments.quick or arguments.only or arguments.contender)
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    arguments.only = plugins.of_groups(arguments.only or plugins.workload_names())
    everybody = list(QUICK_CONTENDERS) if arguments.quick else plugins.contender_names()
    arguments.contender = arguments.contender or everybody
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


def environment_with_fanwire(folder: Path) -> dict[str, str]:
    """Copies the installed fanwire aside, so that a build meanwhile changes nothing."""
    spec = find_spec("fanwire")
    if spec is None or spec.origin is None:
        raise SystemExit("fanwire is not installed: pip install . (or make bench)")
    shutil.copytree(Path(spec.origin).parent, folder / "packages" / "fanwire")
    environment = {**os.environ, "PYTHONPATH": str(folder / "packages")}
    _, profile = machine.fanwire_version(environment)
    if profile != "release":
        raise SystemExit(f"fanwire is a {profile} build: measure a release build")
    return environment


@contextmanager
def load_generator(path: Path, redis_port: int) -> Iterator[Path]:
    python = environments.python_of("reference")
    command = [str(python), str(HERE / "load_generator.py"), str(path), str(redis_port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError("the load generator did not start")
        yield path
    finally:
        process.kill()
        process.wait()


class Run:
    def __init__(
        self,
        arguments: argparse.Namespace,
        environment: Mapping[str, str],
        url: str,
        load_path: Path,
    ) -> None:
        self._arguments = arguments
        self._environment = environment
        self._place = (url, str(load_path), "quick" if arguments.quick else "full")
        modules = {name: plugins.workload(name) for name in arguments.only}
        contenders = [ENTRIES[name] for name in arguments.contender]
        self.report = reporting.Report(
            about={},
            command=f"python bench/run.py {' '.join(sys.argv[1:])}".strip(),
            full=arguments.full,
            contenders={entry.name: entry.title for entry in contenders},
            notes={entry.name: entry.notes for entry in contenders if entry.notes},
            workloads={name: (module.TITLE, list(module.ROWS)) for name, module in modules.items()},
            cannot={
                entry.name: {
                    name: reason for name in modules if (reason := reason_against(entry, name))
                }
                for entry in contenders
            },
        )

    def measure_all(self) -> None:
        """Rounds outermost, contenders innermost: both sides of a ratio are measured in turns."""
        rounds = self._arguments.rounds
        budget = QUICK_BUDGET_SECONDS if self._arguments.quick else FULL_BUDGET_SECONDS
        started, longest, done = time.monotonic(), 0.0, 0
        for number in range(rounds):
            round_started = time.monotonic()
            if number and round_started - started + longest > budget:
                self.report.remarks.append(
                    f"only {number} of {rounds} rounds fit into {budget:g} s"
                )
                break
            self._round(number)
            # Rounds get shorter, as the peers have had theirs.
            longest, done = time.monotonic() - round_started, number + 1
        kind = "quick rounds" if self._arguments.quick else "rounds"
        peers = min(done, 3)
        self.report.about["figures"] = f"medians of {done} {kind} (other contenders: {peers})"
        self.report.about["run time"] = f"{time.monotonic() - started:.0f} s"
        self.report.about["load after"] = f"{os.getloadavg()[0]:.2f} (1 minute)"

    def _round(self, number: int) -> None:
        for workload in self.report.workloads:
            began = time.monotonic()
            for contender in self.report.contenders:
                entry = ENTRIES[contender]
                if number >= entry.rounds or reason_against(entry, workload):
                    continue
                self._worker(contender, workload, f"{workload}, {contender}, round {number + 1}")
            took = time.monotonic() - began
            print(f"round {number + 1}: {workload} ({took:.0f} s)", file=sys.stderr, flush=True)

    def _worker(self, contender: str, workload: str, what: str) -> None:
        python = environments.python_of(ENTRIES[contender].group)
        command = [str(python), str(HERE / "worker.py"), contender, workload, *self._place]
        try:
            # `run` kills the process by its id when the time is over.
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                text=True,
                timeout=WORKER_SECONDS,
                check=False,
                env=self._environment,
            )
        except subprocess.TimeoutExpired:
            self.report.remarks.append(f"{what}: not done within {WORKER_SECONDS:g} s")
            return
        if done.returncode != 0 or not done.stdout.strip():
            self.report.remarks.append(f"{what}: failed with status {done.returncode}")
            return
        answer = json.loads(done.stdout.splitlines()[-1])
        self.report.add(contender, workload, answer["figures"])
        self.report.remarks.extend(f"{what}: {remark}" for remark in answer["remarks"])


def publish(report: reporting.Report) -> int:
    """Prints the tables and writes them to results/. Returns how much is not as it should be."""
    goals = reporting.targets(report)
    lines = [reporting.TARGETS_HEAD, *(goal.cells() for goal in goals)]
    text = [f"{key:>13}: {value}" for key, value in report.about.items()]
    markdown = ["# Benchmark of fanwire", "", f"- command: `{report.command}`"]
    markdown += [f"- {key}: {value}" for key, value in report.about.items()]
    text += ["", "To reach", "", reporting.as_text(lines)]
    markdown += ["", "## To reach", "", reporting.as_markdown(lines)]
    for name, (title, _) in report.workloads.items():
        lines = reporting.table(report, name)
        if not lines:
            continue
        text += ["", title, "", reporting.as_text(lines)]
        markdown += ["", f"## {title}", "", reporting.as_markdown(lines), ""]
        markdown += [f"- {reason}" for reason in reporting.reasons(report, name)]
    text += ["", *(f"! {remark}" for remark in report.remarks)]
    markdown += ["", *(f"- **{remark}**" for remark in report.remarks)]
    print("\n".join(text))
    RESULTS.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    (RESULTS / f"{stamp}.md").write_text("\n".join(markdown) + "\n")
    report.write(RESULTS / f"{stamp}.json")
    print(f"\nwritten to {RESULTS / stamp}.md and .json", file=sys.stderr)
    return sum(goal.met is False for goal in goals) + len(report.remarks)


if __name__ == "__main__":
    sys.exit(main())
