"""One message in fifty is for an upload with one person and one local connection watching."""

from collections.abc import Mapping

from contract import Row, Session
from firehose import measure

NAME = "watched_2"
TITLE = "firehose, 2 % watched: 1,000 uploads with one local connection each"
ROWS = (
    Row("cpu_us", "CPU per message", "µs", target=20.0),
    Row("per_second", "messages a second", "1/s", better="higher"),
    Row("redis_busy", "Redis busy meanwhile", "%", better="higher"),
    Row("paced_cpu_us", "CPU per message at 10,000/s", "µs"),
)


async def run(session: Session) -> Mapping[str, float]:
    return await measure(
        session,
        every=50,
        bursts=session.size(4, 1),
        burst_messages=50_000,
        paced_messages=session.size(10_000, 5_000),
    )
