# ruff: noqa: T201 (a table is what it is for)
"""Soaks the app and says whether it held. ``python -m tests.soak --help`` lists the options."""

import argparse
import asyncio
import random
import sys
import time
from contextlib import ExitStack

from tests.redis_server import RedisServer
from tests.soak import verdict
from tests.soak.faults import Faults
from tests.soak.plan import Plan
from tests.soak.samples import Sampler
from tests.soak.server import Server
from tests.soak.uploads import Uploads
from tests.soak.verdict import Check
from tests.soak.watchers import Crowd

# Besides the ttl, until Redis has found all that expired.
EXPIRY_SECONDS = 10.0
# Until the last uploads have ended and everybody has left, besides the watchers' own grace.
LEAVING_SECONDS = 30.0


class Soak:
    """One run from start to end."""

    def __init__(self, plan: Plan, redis: RedisServer, server: Server) -> None:
        self._plan = plan
        self._redis = redis
        self._server = server
        self._uploads = Uploads(plan)
        self._crowd = Crowd(plan, self._uploads)
        self._faults = Faults(redis, plan, self._uploads)
        self._sampler = Sampler(plan, server, redis, self._faults)
        self._figures: dict[str, int] = {}

    async def run(self) -> list[Check]:
        await self._server.state()  # it serves
        async with asyncio.TaskGroup() as tasks:
            port = self._server.port
            tasks.create_task(self._uploads.run(port))
            crowd = tasks.create_task(self._crowd.run(port))
            disturbing = [tasks.create_task(self._sampler.run())]
            if self._plan.faults:
                disturbing.append(tasks.create_task(self._faults.run()))
            await asyncio.sleep(self._plan.seconds)
            for task in disturbing:
                task.cancel()
            self._uploads.closing = True
            await asyncio.wait_for(crowd, self._plan.grace_seconds + LEAVING_SECONDS)
        return await self._judge()

    async def _judge(self) -> list[Check]:
        self._figures = await self._server.until_figures(**dict.fromkeys(verdict.LEFT, 0))
        last = await self._sampler.take(self._plan.seconds)
        print(last)
        keys = await self._keys_left()
        history = self._plan.history
        status = await self._server.stop()
        return [
            *verdict.of_samples(self._sampler.samples, self._plan.seconds),
            *verdict.of_watchers(self._crowd.tally, history=history),
            *verdict.of_the_end(
                self._figures,
                last.resources.client_descriptors,
                keys,
                ttl_seconds=self._plan.history_ttl_seconds,
            ),
            verdict.of_figures(self._figures, history=history),
            *verdict.of_the_process(status, self._server.log),
        ]

    async def _keys_left(self) -> int:
        end = time.monotonic() + (self._plan.history_ttl_seconds or 0.0) + EXPIRY_SECONDS
        keys = int(self._redis.client.dbsize())
        while keys and time.monotonic() < end:
            await asyncio.sleep(0.1)
            keys = int(self._redis.client.dbsize())
        return keys

    def print_counts(self) -> None:
        def line(title: str, counts: dict[str, int]) -> None:
            shown = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
            print(f"{title:<10} {shown or 'none'}")

        print()
        line("faults", dict(self._faults.counts))
        line("publishes", dict(self._uploads.outcomes))
        line("watchers", dict(self._crowd.tally.counts))
        line("app", self._figures)
        print()


def parse_plan() -> tuple[Plan, bool]:
    parser = argparse.ArgumentParser("python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default 600)")
    parser.add_argument("--no-history", action="store_true", help="without recovery")
    parser.add_argument("--no-faults", action="store_true", help="leave Redis alone")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--watchers", type=int, default=Plan.watchers)
    parser.add_argument("--rate", type=float, default=Plan.messages_per_second)
    parser.add_argument("--show-log", action="store_true", help="print the server's log in the end")
    given = parser.parse_args()
    plan = Plan(
        seconds=given.seconds,
        seed=given.seed,
        history=not given.no_history,
        faults=not given.no_faults,
        watchers=given.watchers,
        messages_per_second=given.rate,
    )
    return plan, given.show_log


def main() -> int:
    plan, show_log = parse_plan()
    print(
        f"{plan.seconds:.0f} s, {plan.watchers} watchers, {plan.uploads} uploads, "
        f"{plan.messages_per_second:.0f} messages a second, "
        f"{'history' if plan.history else 'no history'}, seed {plan.seed}"
    )
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        server = stack.enter_context(Server(redis.url, plan.history_ttl_seconds))
        soak = Soak(plan, redis, server)
        checks = asyncio.run(soak.run())
        soak.print_counts()
        print(*checks, sep="\n")
        broken = any(check.judged and not check.holds for check in checks)
        if show_log or broken:
            print(f"\nThe server's log:\n{server.log}", file=sys.stderr)
        return int(broken)


if __name__ == "__main__":
    sys.exit(main())
