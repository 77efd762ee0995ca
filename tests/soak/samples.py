# ruff: noqa: T201 (a table is what it is for)
"""Looking at the app and at Redis every few seconds."""

import asyncio
import time
from dataclasses import dataclass

from tests.redis_server import RedisServer
from tests.soak.faults import Faults
from tests.soak.plan import Plan
from tests.soak.server import Resources, Server

# Rows of the table, however long the soak.
ROWS = 24
HEADING = (
    f"{'time':>6} {'RSS MiB':>8} {'fds':>5} {'clients':>8} {'threads':>8} {'lanes':>6} "
    f"{'queued':>7} {'waiting':>8} {'Redis MiB':>10} {'keys':>5}"
)


@dataclass(frozen=True)
class Sample:
    """One look. It is settled if no fault was under way or just over, and the listener listens."""

    at: float
    settled: bool
    resources: Resources
    figures: dict[str, int]
    redis_mib: float
    redis_keys: int

    def __str__(self) -> str:
        resources, figures = self.resources, self.figures
        return (
            f"{self.at:>5.0f}s {resources.rss_mib:>8.1f} {resources.own_descriptors:>5} "
            f"{resources.client_descriptors:>8} {resources.threads:>8} {figures['lanes']:>6} "
            f"{figures['queued_messages']:>7} {figures['pending_messages']:>8} "
            f"{self.redis_mib:>10.1f} {self.redis_keys:>5}{'' if self.settled else '  fault'}"
        )


class Sampler:
    """Takes samples, and prints some of them."""

    def __init__(self, plan: Plan, server: Server, redis: RedisServer, faults: Faults) -> None:
        self._plan = plan
        self._server = server
        self._redis = redis
        self._faults = faults
        self.samples: list[Sample] = []

    async def run(self) -> None:
        begun = time.monotonic()
        printed = 0
        print(HEADING, flush=True)
        while True:
            sample = await self.take(time.monotonic() - begun)
            self.samples.append(sample)
            if sample.at >= printed * self._plan.seconds / ROWS:
                printed += 1
                print(sample, flush=True)
            await asyncio.sleep(self._plan.sample_every_seconds)

    async def take(self, at: float) -> Sample:
        async with self._faults.lock:
            memory, keys = await asyncio.to_thread(self._ask_redis)
        state = await self._server.state()
        return Sample(
            at=at,
            settled=self._faults.settled and state["state"] == "live",
            resources=await self._server.resources(),
            figures=state["figures"],
            redis_mib=memory / 2**20,
            redis_keys=keys,
        )

    def _ask_redis(self) -> tuple[int, int]:
        client = self._redis.client
        return int(client.info("memory")["used_memory"]), int(client.dbsize())
