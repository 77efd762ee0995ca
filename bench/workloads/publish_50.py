"""Fifty tasks publish at a time, each one message after another; a pydantic model each."""

from collections.abc import Mapping

from contract import Row, Session
from publishing import models, side_by_side

NAME = "publish_50"
TITLE = "publish 50 at a time"
ROWS = (
    Row("per_second", "publishes a second", "1/s", better="higher", target=8.0),
    Row("cpu_us", "CPU per publish", "µs"),
)


async def run(session: Session) -> Mapping[str, float]:
    count = session.size(20_000, 10_000)
    meter = await side_by_side(session, models(), count, tasks=50)
    return {
        "per_second": count / meter.wall_seconds,
        "cpu_us": meter.cpu_seconds / count * 1e6,
    }
