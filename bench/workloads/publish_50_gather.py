"""Fifty publishes at a time with `asyncio.gather`, a pydantic model each."""

from collections.abc import Mapping

from contract import Row, Session
from publishing import models, together

NAME = "publish_50_gather"
TITLE = "publish 50 at a time, a new task for each (asyncio.gather)"
ROWS = (
    Row("per_second", "publishes a second", "1/s", better="higher"),
    Row("cpu_us", "CPU per publish", "µs"),
)


async def run(session: Session) -> Mapping[str, float]:
    count = session.size(20_000, 10_000)
    meter = await together(session, models(), count, at_once=50)
    return {
        "per_second": count / meter.wall_seconds,
        "cpu_us": meter.cpu_seconds / count * 1e6,
    }
