"""Messages for uploads that nobody here watches, while a thousand people watch others."""

from collections.abc import Mapping

from connections import CountingConnection, Tally
from contract import Row, Session
from meter import Meter, settle
from payloads import upload_ids
from receiving import (
    DELIVERY_SECONDS,
    check_burst,
    check_deliveries,
    connect_watchers,
    start_listening,
)

NAME = "unwatched"
TITLE = "message that nobody here watches"
ROWS = (
    Row("cpu_us", "CPU per message", "µs", target=25.0),
    Row("per_second", "messages a second", "1/s", better="higher"),
    Row("paced_cpu_us", "CPU per message at 10,000/s", "µs"),
)
PACE = 10_000.0


async def run(session: Session) -> Mapping[str, float]:
    watchers = [CountingConnection(Tally(0)) for _ in range(1_000)]
    await connect_watchers(session, upload_ids("watched", 1_000), watchers)
    await start_listening(session)
    # One watched message ends each burst: the broker keeps the order, so all before it was read.
    end = Tally(1)
    await session.contender.manager.connect("end", CountingConnection(end))

    await _burst(session, Meter(), end, 5_000)
    settle()
    burst = Meter()
    count, bursts = 50_000, session.size(4, 1)
    for _ in range(bursts):
        await _burst(session, burst, end, count)
    paced, paced_count = Meter(), session.size(5_000, 2_500)
    await _burst(session, paced, end, paced_count, PACE)
    return {
        "cpu_us": burst.cpu_seconds / (bursts * count) * 1e6,
        "per_second": bursts * count / burst.wall_seconds,
        "paced_cpu_us": paced.cpu_seconds / paced_count * 1e6,
    }


async def _burst(
    session: Session, meter: Meter, end: Tally, count: int, rate: float | None = None
) -> None:
    end.restart()
    await session.load.prepare(
        [f"upload:{name}" for name in upload_ids("elsewhere", 5_000)], count, last="user:end"
    )
    with meter:
        burst = await session.load.go(rate)
        missing = await end.wait(DELIVERY_SECONDS)
    check_burst(session, burst, count + 1)
    check_deliveries(session, missing, 1)
