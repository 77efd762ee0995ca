"""A daemon's log lines: `publish_log` in a loop, and while Redis stands still.

The time of a call is that of five thousand in a row, half of what may wait; lines a second are
counted until Redis has the last of each five thousand. The p99 is that of single calls, ten at a
time with a pause, as a program logs that also does something else.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from contract import Events, Row, Session
from meter import Meter, settle
from redis_server import RedisServer
from responding import percentile

NAME = "events"
TITLE = "publish_log from a daemon, a line of 220 bytes each"
ROWS = (
    Row("call_us", "time of a call", "µs", target=20.0),
    Row("per_second", "lines a second, until Redis has the last", "1/s", "higher", target=5.0),
    Row("cpu_us", "CPU per line", "µs"),
    Row("p99_us", "p99 of a call, now and then", "µs"),
    Row("p99_us_stopped", "p99 of a call while Redis stands still", "µs"),
    Row("stopped_ratio", "that p99, beside the one before", "times", limit=3.0),
    Row("longest_ms_stopped", "longest call while Redis stands still", "ms"),
)
BATCH, AT_ONCE = 5_000, 10
PAUSE_SECONDS = 0.001
# Whoever waits two seconds in a call is not asked much more often than this.
STOPPED_SECONDS = 5.0


def line(number: int) -> dict[str, Any]:
    return {
        "event": "file analysed",
        "level": "info",
        "timestamp": "2026-11-21T12:00:00.123456",
        "logger": "daemon.analysis",
        "repo": "fanwire",
        "path": f"src/package/module_{number % 977}.py",
        "lines": number % 4099,
        "duration_ms": number % 1000 / 8,
        "cached": number % 3 == 0,
        "error": None,
    }


async def run(session: Session) -> Mapping[str, float]:
    build = session.contender.events
    assert build is not None
    with RedisServer() as other:
        figures = await _in_a_row(session, build(_url(session.redis_port)))
        return figures | _now_and_then(session, build(other.url), other)


async def _in_a_row(session: Session, publisher: Events) -> dict[str, float]:
    publish, flush = publisher.publish_log, _flush_of(publisher)
    lines = [line(number) for number in range(BATCH)]
    for each in lines[:1000]:
        publish(each)
    flush()
    settle()
    before = await session.load.published()
    meter, calls = Meter(), Meter()
    batches = session.size(20, 6)
    for _ in range(batches):
        with meter:
            with calls:
                for each in lines:
                    publish(each)
            flush()
    reached = await session.load.published() - before
    if reached != batches * BATCH:
        session.remarks.append(f"{reached} of {batches * BATCH} lines reached Redis")
    publisher.close()
    return {
        "call_us": calls.wall_seconds / (batches * BATCH) * 1e6,
        "per_second": batches * BATCH / meter.wall_seconds,
        "cpu_us": meter.cpu_seconds / (batches * BATCH) * 1e6,
    }


def _now_and_then(session: Session, publisher: Events, server: RedisServer) -> dict[str, float]:
    _flush_of(publisher)()
    count = session.size(20_000, 6_000)
    _times(publisher, 1_000)
    running = _times(publisher, count)
    _flush_of(publisher)()
    server.pause()
    try:
        stopped = _times(publisher, count)
    finally:
        server.resume()
    publisher.close()
    p99, p99_stopped = percentile(running, 0.99), percentile(stopped, 0.99)
    return {
        "p99_us": p99,
        "p99_us_stopped": p99_stopped,
        "stopped_ratio": p99_stopped / p99,
        "longest_ms_stopped": max(stopped) / 1e3,
    }


def _times(publisher: Events, count: int) -> list[float]:
    """How long calls take, in microseconds."""
    publish, clock, times = publisher.publish_log, time.perf_counter_ns, list[float]()
    end = time.monotonic() + STOPPED_SECONDS
    for number in range(count):
        each = line(number)
        begun = clock()
        publish(each)
        times.append((clock() - begun) / 1e3)
        if number % AT_ONCE == 0:
            time.sleep(PAUSE_SECONDS)
        if time.monotonic() > end:
            break
    return times


def _flush_of(publisher: Any) -> Callable[[], object]:
    """Waits until Redis has it all. Who waits in each call has no need of it."""
    flush = getattr(publisher, "flush", None)
    return (lambda: None) if flush is None else lambda: flush(10.0)


def _url(port: int) -> str:
    return f"redis://127.0.0.1:{port}/0"
