"""What a history costs the listener: the same messages with it and without it, in turns."""

from collections import defaultdict
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
from recovering import Numbered, beside

NAME = "recovery_listen"
TITLE = "recovery: a listener with a history, beside one without"
ROWS = (
    Row("plain_ratio", "unwatched: CPU per message, with / without", "times", limit=1.1),
    Row("recorded_ratio", "unwatched and recorded: with / without", "times", limit=1.1),
    Row("watched_ratio", "watched and recorded: with / without", "times"),
    Row("plain_us_without", "unwatched, without: CPU per message", "µs"),
    Row("plain_us_with", "unwatched, with", "µs"),
    Row("recorded_us_without", "unwatched and recorded, without", "µs"),
    Row("recorded_us_with", "unwatched and recorded, with", "µs"),
    Row("watched_us_without", "watched and recorded, without", "µs"),
    Row("watched_us_with", "watched and recorded, with", "µs"),
)
PEOPLE = 1_000
UNWATCHED = 12_500
WATCHED = 10_000
KINDS = ("plain", "recorded", "watched")

Costs = dict[tuple[str, bool], list[float]]


async def run(session: Session) -> Mapping[str, float]:
    costs: Costs = defaultdict(list)
    for number in range(session.size(4, 2)):
        # In turns, and each is the first as often as the other.
        for history in (False, True) if number % 2 else (True, False):
            async with beside(session, history=history) as side:
                await _listen(side, costs, history=history)
    middle = {each: median(figures) for each, figures in costs.items()}
    figures = {f"{kind}_ratio": middle[kind, True] / middle[kind, False] for kind in KINDS}
    for (kind, history), figure in middle.items():
        figures[f"{kind}_us_{'with' if history else 'without'}"] = figure
    return figures


async def _listen(session: Session, costs: Costs, *, history: bool) -> None:
    uploads, tally, end = upload_ids("watched", PEOPLE), Tally(0), Tally(1)
    await connect_watchers(session, uploads, [CountingConnection(tally) for _ in uploads])
    await start_listening(session)
    # One watched message ends each burst: the broker keeps the order, so all before it was read.
    await session.contender.manager.connect("end", CountingConnection(end))
    settle()
    elsewhere = [f"upload:{name}" for name in upload_ids("elsewhere", 5_000)]
    for kind, wire in (("plain", None), ("recorded", Numbered())):
        session.load.wire = wire
        await session.load.prepare(elsewhere, UNWATCHED, last="user:end")
        bursts = range(session.size(16, 10))
        measured = [await _burst(session, end, UNWATCHED + 1, watched=1) for _ in bursts]
        costs[kind, history] += measured[1:]  # the first one warms up
    session.load.wire = Numbered()
    measured = []
    for _ in range(3):
        await session.load.prepare([f"upload:{name}" for name in uploads], WATCHED)
        measured.append(await _burst(session, tally, WATCHED, watched=WATCHED))
    costs["watched", history] += measured[1:]
    session.load.wire = None


async def _burst(session: Session, tally: Tally, count: int, *, watched: int) -> float:
    """CPU per message, in microseconds."""
    tally.restart(watched)
    with Meter() as meter:
        burst = await session.load.go()
        missing = await tally.wait(DELIVERY_SECONDS)
    check_burst(session, burst, published=count, watched=watched)
    check_deliveries(session, missing, watched)
    return meter.cpu_seconds / count * 1e6
