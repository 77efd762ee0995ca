"""One message at a time to ten thousand connections, each of a person of its own."""

from collections.abc import Mapping
from statistics import median

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

NAME = "fanout"
TITLE = "one message to 10,000 connections"
ROWS = (
    Row("cpu_us", "CPU per delivery", "µs", target=1.0),
    Row("last_ms", "time until the last has it", "ms"),
)
CONNECTIONS = 10_000
WARM_UP = 3


async def run(session: Session) -> Mapping[str, float]:
    uploads = upload_ids("watched", 1)
    tally = Tally(CONNECTIONS)
    connections = [CountingConnection(tally) for _ in range(CONNECTIONS)]
    await connect_watchers(session, uploads, connections)
    await start_listening(session)

    settle()
    messages = session.size(60, 15)
    meter = Meter()
    times = []
    for number in range(WARM_UP + messages):
        tally.restart()
        await session.load.prepare([f"upload:{uploads[0]}"], 1)
        with meter if number >= WARM_UP else Meter():
            burst = await session.load.go()
            missing = await tally.wait(DELIVERY_SECONDS)
        check_burst(session, burst, 1)
        check_deliveries(session, missing, CONNECTIONS)
        if number >= WARM_UP:
            times.append((tally.last_ns - burst.started_ns) / 1e6)
    return {
        "cpu_us": meter.cpu_seconds / (messages * CONNECTIONS) * 1e6,
        "last_ms": median(times),
    }
