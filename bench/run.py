"""The benchmark: fanwire beside the pure-Python reference, on one Redis, in one run.

python bench/run.py [--rounds 5] [--only NAME] [--contender NAME] [--quick] [--check]
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import machine
import plugins
import report
from contract import ContenderModule, WorkloadModule
from redis_server import RedisServer

HERE = Path(__file__).parent
RESULTS = HERE / "results"
# No round begins after this, so that a slow machine gives fewer rounds instead of a longer run.
FULL_BUDGET_SECONDS = 420.0
QUICK_BUDGET_SECONDS = 75.0
WORKER_SECONDS = 120.0


def main() -> int:
    # Ends as Ctrl-C does: through the `finally` of every process that was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = parse_arguments()
    contenders = {name: plugins.contender(name) for name in arguments.contender}
    workloads = {name: plugins.workload(name) for name in arguments.only}
    packages = dict.fromkeys(name for module in contenders.values() for name in module.PACKAGES)
    with (
        tempfile.TemporaryDirectory(prefix="fanwire-bench-") as folder,
        RedisServer() as redis,
        load_generator(Path(folder) / "load.sock", redis.port) as load_path,
    ):
        about = machine.describe(packages, redis.version())
        started = time.monotonic()
        results, rounds = measure_all(arguments, contenders, workloads, redis.url, load_path)
    kind = "quick rounds" if arguments.quick else "rounds"
    about["figures"] = f"median (lowest to highest) of {rounds} {kind}"
    about["run time"] = f"{time.monotonic() - started:.0f} s"
    missed = publish_report(about, results, contenders, workloads)
    return 1 if arguments.check and missed else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="fanwire beside the pure-Python reference")
    parser.add_argument("--rounds", type=int, help="how often each is measured (5; quick: 2)")
    parser.add_argument(
        "--only", action="append", choices=plugins.workload_names(), help="a workload; repeatable"
    )
    parser.add_argument(
        "--contender", action="append", choices=plugins.contender_names(), help="repeatable"
    )
    parser.add_argument("--quick", action="store_true", help="smaller workloads, under 90 seconds")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    arguments.only = arguments.only or plugins.workload_names()
    arguments.contender = arguments.contender or plugins.contender_names()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


@contextmanager
def load_generator(path: Path, redis_port: int) -> Iterator[Path]:
    command = [sys.executable, str(HERE / "load_generator.py"), str(path), str(redis_port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError("the load generator did not start")
        yield path
    finally:
        process.kill()
        process.wait()


def measure_all(
    arguments: argparse.Namespace,
    contenders: Mapping[str, ContenderModule],
    workloads: Mapping[str, WorkloadModule],
    url: str,
    load_path: Path,
) -> tuple[report.Results, int]:
    """Rounds outermost, contenders innermost: both sides of a ratio are measured side by side."""
    budget = QUICK_BUDGET_SECONDS if arguments.quick else FULL_BUDGET_SECONDS
    started = time.monotonic()
    results = report.Results()
    longest = 0.0
    for number in range(arguments.rounds):
        round_started = time.monotonic()
        if round_started - started + longest > budget:
            results.remarks.append(
                f"only {number} of {arguments.rounds} rounds fit into {budget:g} s"
            )
            return results, number
        for workload_name in workloads:
            for contender_name, contender in contenders.items():
                if workload_name in contender.CANNOT:
                    continue
                answer = run_worker(contender_name, workload_name, url, load_path, arguments.quick)
                results.add(contender_name, workload_name, answer["figures"])
                results.remarks.extend(
                    f"{workload_name}, {contender_name}, round {number + 1}: {remark}"
                    for remark in answer["remarks"]
                )
            print(f"round {number + 1} of {arguments.rounds}: {workload_name}", file=sys.stderr)
        longest = max(longest, time.monotonic() - round_started)
    return results, arguments.rounds


def run_worker(
    contender: str, workload: str, url: str, load_path: Path, quick: bool
) -> dict[str, dict[str, float]]:
    command = [sys.executable, str(HERE / "worker.py"), contender, workload, url, str(load_path)]
    # `run` kills the process by its id when the time is over.
    done = subprocess.run(
        [*command, "quick" if quick else "full"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=WORKER_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{contender} failed at {workload} with status {done.returncode}")
    answer: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def publish_report(
    about: Mapping[str, str],
    results: report.Results,
    contenders: Mapping[str, ContenderModule],
    workloads: Mapping[str, WorkloadModule],
) -> int:
    """Prints the tables and writes them to results/. Returns how many targets were missed."""
    rows = {name: (module.TITLE, module.ROWS) for name, module in workloads.items()}
    text, markdown, missed = [], ["# Benchmark of fanwire", ""], 0
    for key, value in about.items():
        text.append(f"{key:>13}: {value}")
        markdown.append(f"- {key}: {value}")
    markdown.append("")
    others = [name for name in contenders if name != report.SUBJECT] or [report.BASELINE]
    for other in others:
        module = contenders.get(other)
        table = report.lines(results, rows, other, module.CANNOT if module else {})
        if other != report.BASELINE:
            table = [report.without_target(line) for line in table]
        missed += sum(line.met is False for line in table)
        title = f"fanwire beside {module.TITLE if module else other}"
        text += ["", report.as_text(title, report.header(other), table)]
        markdown += [report.as_markdown(title, report.header(other), table), ""]
    for remark in results.remarks:
        text.append(f"! {remark}")
        markdown.append(f"- **{remark}**")
    print("\n".join(text))
    RESULTS.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    (RESULTS / f"{stamp}.md").write_text("\n".join(markdown) + "\n")
    (RESULTS / f"{stamp}.json").write_text(
        json.dumps(
            {"about": about, "figures": results.figures, "remarks": results.remarks}, indent=1
        )
    )
    print(f"\nwritten to {RESULTS / stamp}.md and .json", file=sys.stderr)
    return missed + len(results.remarks)


if __name__ == "__main__":
    sys.exit(main())
