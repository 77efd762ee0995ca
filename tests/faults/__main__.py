# ruff: noqa: T201 (a command line prints)
"""The long form of the fault suite: ``python -m tests.faults --help``."""

import argparse
import asyncio
import logging
import signal
import sys
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from pathlib import Path

from tests.faults.plan import Plan
from tests.faults.run import Outcome, run
from tests.faults.tally import Tally
from tests.faults.world import World

RUNS = 200
DIRECTORY = Path("target/faults")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="of the first run")
    parser.add_argument("--seed", type=int, nargs="+", help="run these again, and no others")
    parser.add_argument(
        "--without-history",
        action="store_true",
        help="what pub/sub alone loses: shows that the suite can fail",
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="the same load over memory://, with the faults that it can have",
    )
    parser.add_argument(
        "--first-kinds-only",
        action="store_true",
        help="what seeds meant before there were as many kinds of faults",
    )
    parser.add_argument(
        "--directory", type=Path, default=DIRECTORY, help=f"for reports of failures: {DIRECTORY}"
    )
    return parser.parse_args()


def _plan(seed: int, options: argparse.Namespace) -> Plan:
    if options.memory:
        return Plan.drawn_for_memory(seed)
    return Plan.drawn(seed, further=not options.first_kinds_only)


async def outcomes(
    plans: Iterable[Plan], *, recorded: bool, in_memory: bool
) -> AsyncGenerator[Outcome, None]:
    """One run after the other, in one world as long as the history has the same size."""
    left = list(plans)
    while left:
        size = left[0].history_size if recorded else 0
        async with World.created(size, in_memory=in_memory) as world:
            while left and size == (left[0].history_size if recorded else 0):
                plan = left.pop(0)
                try:
                    outcome = await run(world, plan)
                except Exception as error:
                    error.add_note(f"in the run of seed {plan.seed}")
                    raise
                yield outcome
                if world.is_broken:
                    break


async def _main(options: argparse.Namespace) -> int:
    seeds = options.seed or range(options.first, options.first + options.runs)
    options.directory.mkdir(parents=True, exist_ok=True)
    # What the publishers have to say of every outage.
    logging.basicConfig(filename=options.directory / "log.txt", format="%(asctime)s %(message)s")
    tally = Tally()
    began = time.monotonic()
    plans = [_plan(seed, options) for seed in seeds]
    recorded = not options.without_history
    async with aclosing(outcomes(plans, recorded=recorded, in_memory=options.memory)) as running:
        async for outcome in running:
            tally.add(outcome)
            print(_line(tally.runs, len(seeds), outcome), flush=True)
            if outcome.failed:
                _keep(outcome, options)
    print(f"\n{tally.runs} runs in {time.monotonic() - began:.0f} s\n\n{tally.table()}")
    if tally.failed_seeds:
        again = " ".join(str(seed) for seed in tally.failed_seeds)
        print(f"\nfailed; reports are in {options.directory}; to replay:", file=sys.stderr)
        print(f"python -m tests.faults --seed {again}", file=sys.stderr)
    return 1 if tally.failed_seeds else 0


def _line(number: int, total: int, outcome: Outcome) -> str:
    faults = ", ".join(f"{n} {kind}" for kind, n in sorted(outcome.injected.items()) if n)
    verdict = outcome.verdict
    word = "FAILED" if outcome.failed else "ok"
    return (
        f"{number:4}/{total} seed {outcome.plan.seed}: {word} in {outcome.seconds:.1f} s; "
        f"{outcome.ledger.accepted} accepted, {verdict.delivered} delivered, "
        f"{verdict.resyncs} resyncs, {verdict.lost} lost; {faults or 'no faults'}"
    )


def _keep(outcome: Outcome, options: argparse.Namespace) -> None:
    report = outcome.report()
    kept = options.directory / f"seed-{outcome.plan.seed}.txt"
    kept.write_text(report + "\n")
    with (options.directory / "failed-seeds.txt").open("a") as seeds:
        seeds.write(f"python -m tests.faults --seed {outcome.plan.seed}\n")
    shown = report.splitlines()
    print("\n".join(shown[:120]))
    if len(shown) > 120:
        print(f"… {len(shown) - 120} more lines in {kept}")


def _end(number: int, frame: object) -> None:
    """As Ctrl-C does: what was started is ended, too."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(asyncio.run(_main(_options())))
