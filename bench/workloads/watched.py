"""Messages over a thousand uploads, each with one person and one local connection watching."""

from collections.abc import Mapping

from contract import Row, Session
from firehose import measure

NAME = "watched"
TITLE = "firehose, 100 % watched: 1,000 uploads with one local connection each"
ROWS = (
    Row("cpu_us", "CPU per message", "µs", target=8.0),
    Row("per_second", "messages a second", "1/s", better="higher"),
    Row("redis_busy", "Redis busy meanwhile", "%", better="higher"),
    Row("paced_cpu_us", "CPU per message at 10,000/s", "µs"),
)


async def run(session: Session) -> Mapping[str, float]:
    # 20 messages a connection wait at most: no queue comes near its limit.
    return await measure(
        session,
        every=1,
        bursts=session.size(6, 2),
        burst_messages=20_000,
        paced_messages=session.size(10_000, 5_000),
    )
