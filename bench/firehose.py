"""What the workloads with a stream of messages have in common: uploads, some of them watched."""

from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field

from connections import CountingConnection, Tally
from contract import Session
from load_client import Burst
from meter import Meter, settle
from payloads import upload_ids
from receiving import (
    DELIVERY_SECONDS,
    check_burst,
    check_deliveries,
    connect_watchers,
    start_listening,
)

WATCHED = 1_000  # uploads, each with one person and one connection here
ELSEWHERE = 5_000
PACE = 10_000.0


@dataclass
class Firehose:
    """Messages of which each `every`-th is for an upload that somebody here watches."""

    session: Session
    every: int
    tally: Tally = field(default_factory=lambda: Tally(0))
    # Of all bursts: how long Redis was busy, and from the first publish to the last delivery.
    redis_seconds: float = 0.0
    seconds: float = 0.0

    async def open(self) -> None:
        uploads = upload_ids("watched", WATCHED)
        connections = [CountingConnection(self.tally) for _ in uploads]
        await connect_watchers(self.session, uploads, connections)
        await start_listening(self.session)

    async def burst(
        self,
        meter: Meter,
        count: int,
        rate: float | None = None,
        probe: AbstractAsyncContextManager[object] | None = None,
    ) -> Burst:
        """Publishes so many messages (a multiple of `every`) and waits until the last is here.

        The probe is open meanwhile, and not while the messages are prepared.
        """
        expected = count // self.every
        self.tally.restart(expected)
        await self.session.load.prepare(self._channels(count), count)
        async with probe or nullcontext():
            with meter:
                burst, missing = await self._publish(rate)
        check_burst(self.session, burst, published=count, watched=expected)
        check_deliveries(self.session, missing, expected)
        self.redis_seconds += burst.redis_seconds
        self.seconds += (max(self.tally.last_ns, burst.ended_ns) - burst.started_ns) / 1e9
        return burst

    async def _publish(self, rate: float | None) -> tuple[Burst, int]:
        burst = await self.session.load.go(rate)
        return burst, await self.tally.wait(DELIVERY_SECONDS)

    def _channels(self, count: int) -> list[str]:
        """The last one is watched: the broker keeps the order, so all before it were read."""
        watched, elsewhere = upload_ids("watched", WATCHED), upload_ids("elsewhere", ELSEWHERE)
        return [
            f"upload:{watched[number // self.every % WATCHED]}"
            if number % self.every == self.every - 1
            else f"upload:{elsewhere[number % ELSEWHERE]}"
            for number in range(count)
        ]


async def measure(
    session: Session, every: int, bursts: int, burst_messages: int, paced_messages: int
) -> dict[str, float]:
    """CPU and rate of bursts as fast as Redis takes them, and CPU at 10,000 messages a second."""
    hose = Firehose(session, every)
    await hose.open()
    count = session.messages(burst_messages)
    await hose.burst(Meter(), count // 10)
    settle()
    hose.redis_seconds = hose.seconds = 0.0
    meter = Meter()
    for _ in range(bursts):
        await hose.burst(meter, count)
    figures = {
        "cpu_us": meter.cpu_seconds / (bursts * count) * 1e6,
        "per_second": bursts * count / hose.seconds,
        "redis_busy": hose.redis_seconds / hose.seconds * 100,
    }
    paced_count = session.messages(paced_messages)
    if paced_count:
        paced = Meter()
        await hose.burst(paced, paced_count, PACE)
        figures["paced_cpu_us"] = paced.cpu_seconds / paced_count * 1e6
    return figures
