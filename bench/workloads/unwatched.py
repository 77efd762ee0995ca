"""Messages for uploads that nobody here watches, while a thousand people watch others."""

from collections.abc import Mapping

from connections import CountingConnection, Tally
from contract import Row, Session
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

NAME = "unwatched"
TITLE = "firehose, 0 % watched: a message that nobody here watches"
ROWS = (
    Row("cpu_us", "CPU per message", "µs", target=25.0),
    Row("per_second", "messages a second", "1/s", better="higher", target=0.95, beside="drain"),
    Row("redis_busy", "Redis busy meanwhile", "%", better="higher"),
    Row("paced_cpu_us", "CPU per message at 10,000/s", "µs"),
)
PACE = 10_000.0
BURST = 50_000


async def run(session: Session) -> Mapping[str, float]:
    watchers = [CountingConnection(Tally(0)) for _ in range(1_000)]
    await connect_watchers(session, upload_ids("watched", 1_000), watchers)
    await start_listening(session)
    # One watched message ends each burst: the broker keeps the order, so all before it was read.
    end = Tally(1)
    await session.contender.manager.connect("end", CountingConnection(end))

    count, bursts = session.messages(BURST), session.size(4, 1)
    await _burst(session, Meter(), end, count // 10)
    settle()
    meter = Meter()
    redis_seconds = seconds = 0.0
    for _ in range(bursts):
        burst = await _burst(session, meter, end, count)
        redis_seconds += burst.redis_seconds
        seconds += (max(end.last_ns, burst.ended_ns) - burst.started_ns) / 1e9
    paced, paced_count = Meter(), session.messages(session.size(5_000, 2_500))
    await _burst(session, paced, end, paced_count, PACE)
    return {
        "cpu_us": meter.cpu_seconds / (bursts * count) * 1e6,
        "per_second": bursts * count / seconds,
        "redis_busy": redis_seconds / seconds * 100,
        "paced_cpu_us": paced.cpu_seconds / paced_count * 1e6,
    }


async def _burst(
    session: Session, meter: Meter, end: Tally, count: int, rate: float | None = None
) -> Burst:
    end.restart()
    await session.load.prepare(
        [f"upload:{name}" for name in upload_ids("elsewhere", 5_000)], count, last="user:end"
    )
    with meter:
        burst = await session.load.go(rate)
        missing = await end.wait(DELIVERY_SECONDS)
    check_burst(session, burst, published=count + 1, watched=1)
    check_deliveries(session, missing, 1)
    return burst
