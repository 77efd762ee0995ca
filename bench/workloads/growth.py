"""Cost per message as subscriptions grow from a hundred to a million; the connections stay 100."""

import gc
import resource
from collections.abc import Mapping
from pathlib import Path

from connections import CountingConnection, Tally
from contract import Row, Session
from load_client import Burst
from meter import Meter, settle
from payloads import upload_ids
from receiving import DELIVERY_SECONDS, check_burst, check_deliveries, start_listening

NAME = "growth"
TITLE = "cost as subscriptions grow from 10² to 10⁶ (100 connections)"
SIZES = {"1e2": 100, "1e3": 1_000, "1e4": 10_000, "1e5": 100_000, "1e6": 1_000_000}
KINDS = {
    "unwatched": "CPU per unwatched message",
    "watched": "CPU per watched message",
    "fanout": "CPU per delivery of one message to 100",
}
ROWS = (
    *(
        Row(f"{kind}_us_{size}", f"{title}, {count:,} subscriptions", "µs")
        for kind, title in KINDS.items()
        for size, count in SIZES.items()
    ),
    *(
        Row(f"{kind}_growth", f"{title}: dearest / with 100", "times", limit=1.5)
        for kind, title in KINDS.items()
    ),
    Row("million_mb", "memory of a million subscriptions (RSS)", "MB", limit=150.0),
)
PEOPLE = 100
BURST = 20_000


async def run(session: Session) -> Mapping[str, float]:
    manager = session.contender.manager
    tally, end = Tally(0), Tally(1)
    for person in range(PEOPLE):
        await manager.connect(f"person-{person}", CountingConnection(tally))
        await manager.subscribe_upload(f"person-{person}", "for-all")
    await manager.connect("end", CountingConnection(end))
    await start_listening(session)
    figures: dict[str, float] = {}
    settle()
    before, there = _resident_bytes(), 0
    for size, count in SIZES.items():
        if session.quick and count > 100_000:
            break
        for number in range(there, count):
            await manager.subscribe_upload(f"person-{number % PEOPLE}", _upload(number))
        there = count
        gc.collect()
        gc.freeze()
        figures |= await _measure(session, tally, end, size, count)
    if not session.quick:
        figures["million_mb"] = (_resident_bytes() - before) / 1e6
    for kind in KINDS:
        costs = [figure for key, figure in figures.items() if key.startswith(f"{kind}_us_")]
        figures[f"{kind}_growth"] = max(costs) / costs[0]
    return figures


async def _measure(
    session: Session, tally: Tally, end: Tally, size: str, count: int
) -> dict[str, float]:
    elsewhere = [f"upload:{name}" for name in upload_ids("elsewhere", 5_000)]
    # Spread over all that is watched: with a million, most of the maps is cold in each burst.
    watched = [
        f"upload:{_upload(number * max(count // BURST, 1) % count)}" for number in range(BURST)
    ]
    unwatched_us = watched_us = 0.0
    for repeat in range(2):  # the first one warms up
        unwatched, here = Meter(), Meter()
        burst = await _burst(session, unwatched, end, 1, elsewhere, BURST, last="user:end")
        check_burst(session, burst, published=BURST + 1, watched=1)
        burst = await _burst(session, here, tally, BURST, watched, BURST)
        check_burst(session, burst, published=BURST, watched=BURST)
        if repeat:
            unwatched_us = unwatched.cpu_seconds / BURST * 1e6
            watched_us = here.cpu_seconds / BURST * 1e6
    fanout, messages = Meter(), 200
    await _burst(session, fanout, tally, messages * PEOPLE, ["upload:for-all"], messages)
    return {
        f"unwatched_us_{size}": unwatched_us,
        f"watched_us_{size}": watched_us,
        f"fanout_us_{size}": fanout.cpu_seconds / (messages * PEOPLE) * 1e6,
    }


async def _burst(
    session: Session,
    meter: Meter,
    tally: Tally,
    expected: int,
    channels: list[str],
    count: int,
    last: str | None = None,
) -> Burst:
    tally.restart(expected)
    await session.load.prepare(channels, count, last)
    with meter:
        burst = await session.load.go()
        missing = await tally.wait(DELIVERY_SECONDS)
    check_deliveries(session, missing, expected)
    return burst


def _upload(number: int) -> str:
    return f"growing0-0000-4000-8000-{number:012d}"


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
