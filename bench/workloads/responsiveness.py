"""What is left of the event loop for the app itself while 50,000 messages a second arrive."""

import asyncio
from collections.abc import Mapping

from contract import Row, Session
from firehose import Firehose
from meter import Meter, settle
from responding import LagProbe, own_cores, percentile

NAME = "responsiveness"
TITLE = "event-loop lag while 50,000 messages a second arrive"
ROWS = (
    Row("idle_p99_ms", "with no messages: p99", "ms"),
    Row("p50_ms_2", "2 % watched: p50", "ms"),
    Row("p99_ms_2", "2 % watched: p99", "ms", limit=2.0),
    Row("max_ms_2", "2 % watched: longest", "ms"),
    Row("rate_2", "2 % watched: rate reached", "1/s", better="higher"),
    Row("p50_ms_100", "100 % watched: p50", "ms"),
    Row("p99_ms_100", "100 % watched: p99", "ms"),
    Row("max_ms_100", "100 % watched: longest", "ms"),
    Row("rate_100", "100 % watched: rate reached", "1/s", better="higher"),
)
RATE = 50_000.0
UNTIL_KNOWN_SECONDS = 1.0


async def run(session: Session) -> Mapping[str, float]:
    hose = Firehose(session, every=50)
    await hose.open()
    await hose.burst(Meter(), 5_000)
    settle()
    async with own_cores(session.load):
        return await _measure(session, hose)


async def _measure(session: Session, hose: Firehose) -> Mapping[str, float]:
    async with LagProbe() as idle:
        await asyncio.sleep(session.size(2, 1) * UNTIL_KNOWN_SECONDS / 2)
    figures = {"idle_p99_ms": percentile(idle.lags_ms, 0.99)}
    # A contender that cannot take 50,000 a second is not kept busy for minutes: a second is enough.
    count = (
        int(RATE) * (session.size(2, 1) if session.divisor < 4 else 1) // min(session.divisor, 2)
    )
    for share, every in ((2, 50), (100, 1)):
        hose.every = every
        hose.seconds = 0.0
        probe = LagProbe()
        await hose.burst(Meter(), count, RATE, probe)
        figures |= {
            f"p50_ms_{share}": percentile(probe.lags_ms, 0.5),
            f"p99_ms_{share}": percentile(probe.lags_ms, 0.99),
            f"max_ms_{share}": max(probe.lags_ms),
            f"rate_{share}": count / hose.seconds,
        }
    return figures
