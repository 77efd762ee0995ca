"""10,000 connections that missed something: Redis was restarted, or they were away themselves."""

import asyncio
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from connections import CountingConnection, Tally
from contract import Row, Session
from meter import settle
from payloads import progress, upload_ids
from receiving import DELIVERY_SECONDS, check_deliveries
from recovering import Position, beside, manager_of, record
from redis_server import RedisServer
from responding import LagProbe, own_cores, percentile

NAME = "recovery_resume"
TITLE = "recovery: 10,000 connections with an upload each; lag of the event loop while they resume"
LAG_MS = 20.0
ROWS = (
    Row("restart_p99_ms", "Redis was restarted, two messages missed: p99", "ms", limit=LAG_MS),
    Row("restart_max_ms", "Redis was restarted: longest", "ms"),
    Row("restart_all_ms", "Redis was restarted: until the last has its own", "ms"),
    Row("return_p99_ms", "all come back with `since`, two missed: p99", "ms", limit=LAG_MS),
    Row("return_max_ms", "all come back: longest", "ms"),
    Row("return_all_ms", "all come back: until the last has its own", "ms"),
    Row("first_p99_ms", "all come for the first time: p99", "ms"),
    Row("first_max_ms", "all come for the first time: longest", "ms"),
    Row("first_all_ms", "all come for the first time: until the last has its own", "ms"),
    Row("idle_p99_ms", "with nothing to do: p99", "ms"),
)
PEOPLE = 10_000
MISSED = 2
LIVE_SECONDS = 20.0
LOOK_SECONDS = 0.002
AFTER_SECONDS = 0.005  # stamps that waited behind the last delivery are read
NOT_SINCE: Mapping[str, Position] = {}


async def run(session: Session) -> Mapping[str, float]:
    uploads = upload_ids("resumed", PEOPLE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with own_cores(session.load) as theirs:
            with RedisServer(folder, cores=theirs) as redis:
                seen = await _publish(session, redis, uploads, 1)
                async with beside(session, history=True, url=redis.url) as side:
                    figures, tally = await _all_come(side, "first", uploads, NOT_SINCE)
                    logging.getLogger("fanwire").setLevel(logging.CRITICAL)  # it would tell of that
                    redis.stop()
                    # Published past the listener, so that all of it is missed.
                    with RedisServer(folder, cores=theirs) as other:
                        await _publish(session, other, uploads, MISSED)
                    figures |= await _restart(side, redis, tally)
                async with beside(session, history=True, url=redis.url) as side:
                    returned, _ = await _all_come(side, "return", uploads, seen)
                    figures |= returned
    return figures


async def _publish(
    session: Session, redis: RedisServer, uploads: list[str], count: int
) -> dict[str, Position]:
    async with beside(session, history=True, url=redis.url) as side:
        messages = ((name, progress(name, n)) for n in range(count) for name in uploads)
        return await record(side, messages)


async def _all_come(
    session: Session, kind: str, uploads: list[str], since: Mapping[str, Position]
) -> tuple[dict[str, float], Tally]:
    """Everybody connects and subscribes, each in a turn of its own, as handlers do."""
    tally = Tally(PEOPLE * (MISSED if since else 1))
    await session.contender.publisher.start()
    await _until_live(session)
    settle()
    figures = {}
    async with LagProbe() as probe:
        await asyncio.sleep(session.size(2, 1) / 4)
        figures["idle_p99_ms"] = percentile(probe.lags_ms, 0.99)
        lags = Lags(probe)
        for number, upload_id in enumerate(uploads):
            user_id, connection = f"user-{number:08d}", CountingConnection(tally)
            await session.contender.manager.connect(user_id, connection)
            await manager_of(session).subscribe_upload(
                user_id, upload_id, connection=connection, since=since.get(upload_id)
            )
            await asyncio.sleep(0)
        figures |= await lags.until(session, kind, tally)
    return figures, tally


async def _restart(session: Session, redis: RedisServer, tally: Tally) -> dict[str, float]:
    """Redis comes back, and the listener finds out what each connection has missed."""
    tally.restart(PEOPLE * MISSED)
    settle()
    async with LagProbe() as probe:
        await asyncio.to_thread(redis.start)  # it has read its file by then
        await _until_live(session)
        return await Lags(probe).until(session, "restart", tally)


async def _until_live(session: Session) -> None:
    publisher: Any = session.contender.publisher
    async with asyncio.timeout(LIVE_SECONDS):
        while publisher.health()["state"] != "live":  # noqa: ASYNC110 - of many kinds of trouble
            await asyncio.sleep(LOOK_SECONDS)


class Lags:
    """From when it is made until the last has its messages: time, and lags of the event loop."""

    def __init__(self, probe: LagProbe) -> None:
        self._probe = probe
        self._began = len(probe.lags_ms)
        self._began_ns = time.monotonic_ns()

    async def until(self, session: Session, kind: str, tally: Tally) -> dict[str, float]:
        missing = await tally.wait(DELIVERY_SECONDS)
        await asyncio.sleep(AFTER_SECONDS)
        check_deliveries(session, missing, tally.expected)
        lags = self._probe.lags_ms[self._began :]
        return {
            f"{kind}_p99_ms": percentile(lags, 0.99),
            f"{kind}_max_ms": max(lags),
            f"{kind}_all_ms": (tally.last_ns - self._began_ns) / 1e6,
        }
