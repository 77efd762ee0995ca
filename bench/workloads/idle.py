"""Nothing happens: what a listener costs that waits. No figure above has this subtracted."""

import asyncio
from collections.abc import Mapping

from connections import CountingConnection, Tally
from contract import Row, Session
from meter import Meter, settle
from payloads import upload_ids
from receiving import connect_watchers, start_listening

NAME = "idle"
TITLE = "listener with nothing to do, 1,000 people connected"
ROWS = (Row("cpu_ms", "CPU per second", "ms"),)


async def run(session: Session) -> Mapping[str, float]:
    watchers = [CountingConnection(Tally(0)) for _ in range(1_000)]
    await connect_watchers(session, upload_ids("watched", 1_000), watchers)
    await start_listening(session)
    settle()
    with Meter() as meter:
        await asyncio.sleep(session.size(2, 1))
    return {"cpu_ms": meter.cpu_seconds / meter.wall_seconds * 1e3}
