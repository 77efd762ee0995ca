"""Messages over a thousand uploads, each with one person and one local connection watching."""

from collections.abc import Mapping

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

NAME = "watched"
TITLE = "message with one local connection, 1,000 uploads"
ROWS = (
    Row("cpu_us", "CPU per message", "µs", target=8.0),
    Row("per_second", "messages a second", "1/s", better="higher"),
    Row("paced_cpu_us", "CPU per message at 10,000/s", "µs"),
)
PACE = 10_000.0
UPLOADS = 1_000
# 20 messages a connection wait at most: no queue comes near its limit.
BURST = 20_000


async def run(session: Session) -> Mapping[str, float]:
    uploads = upload_ids("watched", UPLOADS)
    tally = Tally(BURST)
    await connect_watchers(session, uploads, [CountingConnection(tally) for _ in uploads])
    await start_listening(session)

    await _burst(session, Meter(), tally, uploads)
    settle()
    burst, bursts = Meter(), session.size(6, 2)
    for _ in range(bursts):
        await _burst(session, burst, tally, uploads)
    paced, paced_bursts = Meter(), session.size(1, 0)
    for _ in range(paced_bursts):
        await _burst(session, paced, tally, uploads, PACE)
    figures = {
        "cpu_us": burst.cpu_seconds / (bursts * BURST) * 1e6,
        "per_second": bursts * BURST / burst.wall_seconds,
    }
    if paced_bursts:
        figures["paced_cpu_us"] = paced.cpu_seconds / (paced_bursts * BURST) * 1e6
    return figures


async def _burst(
    session: Session, meter: Meter, tally: Tally, uploads: list[str], rate: float | None = None
) -> None:
    tally.restart()
    await session.load.prepare([f"upload:{name}" for name in uploads], BURST)
    with meter:
        burst = await session.load.go(rate)
        missing = await tally.wait(DELIVERY_SECONDS)
    check_burst(session, burst, BURST)
    check_deliveries(session, missing, BURST)
