"""`publish_nowait` in a hot loop, until Redis has the last; a pydantic model each."""

import asyncio
from collections.abc import Mapping
from itertools import cycle, islice
from typing import Any

from contract import Row, Session
from meter import Meter, settle
from publishing import models

NAME = "publish_nowait"
TITLE = "publish_nowait, until Redis has the last"
ROWS = (
    Row("per_second", "publishes a second", "1/s", better="higher"),
    Row("cpu_us", "CPU per publish", "µs"),
    Row("call_us", "time of a call", "µs"),
)
BATCH = 5_000  # half of what may wait by default


async def run(session: Session) -> Mapping[str, float]:
    publisher: Any = session.contender.publisher
    messages = models()
    await publisher.publish_progress(*messages[0])
    settle()
    batches = session.size(10, 4)
    before = await session.load.published()
    meter, calls = Meter(), Meter()
    for _ in range(batches):
        with meter:
            with calls:
                for upload_id, message in islice(cycle(messages), BATCH):
                    if not publisher.publish_nowait(upload_id, message):
                        session.remarks.append("a publish was refused")
            # Messages of a publisher are sent in order: when this one is out, all are.
            await publisher.publish_progress(*messages[0])
        await asyncio.sleep(0)
    expected = batches * (BATCH + 1)
    reached = await session.load.published() - before
    if reached != expected:
        session.remarks.append(f"{reached} of {expected} messages reached Redis")
    return {
        "per_second": expected / meter.wall_seconds,
        "cpu_us": meter.cpu_seconds / expected * 1e6,
        "call_us": calls.wall_seconds / (batches * BATCH) * 1e6,
    }
