"""`await publish_progress(...)` one after another, a pydantic model each."""

from collections.abc import Mapping

from contract import Row, Session
from publishing import models, one_by_one

NAME = "publish_serial"
TITLE = "publish one after another"
ROWS = (
    Row("each_us", "time per publish", "µs", target=1.0),
    Row("cpu_us", "CPU per publish", "µs"),
)


async def run(session: Session) -> Mapping[str, float]:
    count = session.size(4_000, 2_000)
    meter = await one_by_one(session, models(), count)
    return {
        "each_us": meter.wall_seconds / count * 1e6,
        "cpu_us": meter.cpu_seconds / count * 1e6,
    }
