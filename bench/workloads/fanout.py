"""One message at a time to 1, 100 and 10,000 connections, each of a person of its own."""

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
TITLE = "one message to 1, 100, 10,000 connections"
ROWS = (
    Row("cpu_us_1", "1: CPU per delivery", "µs"),
    Row("last_ms_1", "1: time until it is there", "ms"),
    Row("cpu_us_100", "100: CPU per delivery", "µs"),
    Row("last_ms_100", "100: time until the last has it", "ms"),
    Row("cpu_us_10000", "10,000: CPU per delivery", "µs", target=1.5),
    Row("last_ms_10000", "10,000: time until the last has it", "ms"),
)
WARM_UP = 3


async def run(session: Session) -> Mapping[str, float]:
    # What a contender that takes its time is given: fewer messages, as many connections.
    few = session.messages(session.size(60, 15)) if session.divisor > 1 else session.size(60, 15)
    plan = {1: session.size(200, 50), 100: session.size(200, 50), 10_000: max(few, 5)}
    tallies = {}
    for audience in plan:
        tallies[audience] = Tally(audience)
        connections = [CountingConnection(tallies[audience]) for _ in range(audience)]
        await connect_watchers(
            session, upload_ids(f"{audience}fans", 1), connections, str(audience)
        )
    await start_listening(session)
    settle()
    figures: dict[str, float] = {}
    for audience, messages in plan.items():
        figures |= await _one_by_one(session, tallies[audience], audience, messages)
    return figures


async def _one_by_one(
    session: Session, tally: Tally, audience: int, messages: int
) -> dict[str, float]:
    upload_id = upload_ids(f"{audience}fans", 1)[0]
    meter = Meter()
    times = []
    for number in range(WARM_UP + messages):
        tally.restart()
        await session.load.prepare([f"upload:{upload_id}"], 1)
        with meter if number >= WARM_UP else Meter():
            burst = await session.load.go()
            missing = await tally.wait(DELIVERY_SECONDS)
        check_burst(session, burst, published=1, watched=1)
        check_deliveries(session, missing, audience)
        if number >= WARM_UP:
            times.append((tally.last_ns - burst.started_ns) / 1e6)
    return {
        f"cpu_us_{audience}": meter.cpu_seconds / (messages * audience) * 1e6,
        f"last_ms_{audience}": median(times),
    }
