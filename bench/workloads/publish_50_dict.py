"""Fifty tasks publish at a time, each one message after another; a plain dict each."""

from collections.abc import Mapping

from contract import Row, Session
from publishing import models, side_by_side

NAME = "publish_50_dict"
TITLE = "publish 50 at a time, plain dicts"
ROWS = (
    Row("per_second", "publishes a second", "1/s", better="higher"),
    Row("cpu_us", "CPU per publish", "µs"),
)


async def run(session: Session) -> Mapping[str, float]:
    messages = [(name, model.model_dump()) for name, model in models()]
    count = session.size(20_000, 10_000)
    meter = await side_by_side(session, messages, count, tasks=50)
    return {
        "per_second": count / meter.wall_seconds,
        "cpu_us": meter.cpu_seconds / count * 1e6,
    }
