"""The current state for somebody who comes late: what Redis is asked, and how long it takes."""

import asyncio
import hashlib
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Self

from connections import CountingConnection, Tally
from contract import Row, Session
from meter import settle
from payloads import progress, upload_ids
from receiving import DELIVERY_SECONDS, check_deliveries, start_listening
from recovering import beside, manager_of, record
from responding import percentile

NAME = "recovery_snapshot"
TITLE = "recovery: the current state on subscribe"
ROWS = (
    Row("round_trips", "round trips of a fresh subscribe", "times", limit=2.0),
    Row("commands", "commands of a fresh subscribe", "times"),
    Row("first_us", "subscribe to first message: p50", "µs"),
    Row("first_p99_us", "subscribe to first message: p99", "µs"),
    Row("ping_us", "bare round trip: PING", "µs"),
    Row("script_us", "bare round trip: the script that reads", "µs"),
    Row("in_round_trips", "subscribe to first message / the script's round trip", "times"),
    Row("together_round_trips", "1,000 subscribes at once: round trips", "times"),
    Row("together_ms", "1,000 subscribes at once: until the last first message", "ms"),
)
MESSAGES = 20
TOGETHER = 1_000
READ = Path(__file__).parents[2] / "src" / "broker" / "redis" / "read.lua"
# What that script calls. Redis counts it too, but nobody waits for an answer.
WITHIN_SCRIPTS = ("hmget", "xrange")
QUESTIONS = ("info",)


async def run(session: Session) -> Mapping[str, float]:
    await session.load.clear()
    async with beside(session, history=True) as side:
        count = session.size(400, 200)
        warm, counted, timed = (upload_ids(kind, count) for kind in ("warm", "counted", "timed"))
        together = upload_ids("together", TOGETHER)
        await record(
            side,
            [
                (name, progress(name, number))
                for number in range(MESSAGES)
                for name in (*warm, *counted, *timed, *together)
            ],
        )
        await start_listening(side)
        for upload_id in warm:
            await _first_us(side, upload_id)
        settle()
        figures = await _counted(side, counted)
        figures |= await _timed(side, timed)
        figures |= await _together(side, together)
    await session.load.clear()
    return figures


async def _counted(session: Session, uploads: list[str]) -> dict[str, float]:
    """One after another, each waited for: Redis reads as often as there are round trips."""
    calls, reads = await session.load.all_calls(), await session.load.reads()
    for upload_id in uploads:
        await _first_us(session, upload_id)
    reads = await session.load.reads() - reads - 1  # that question was read too
    sent = {
        command: number - calls.get(command, 0)
        for command, number in (await session.load.all_calls()).items()
        if command not in (*WITHIN_SCRIPTS, *QUESTIONS)
    }
    return {
        "round_trips": reads / len(uploads),
        "commands": sum(sent.values()) / len(uploads),
    }


async def _timed(session: Session, uploads: list[str]) -> dict[str, float]:
    script = READ.read_bytes()
    name = hashlib.sha1(script).hexdigest().encode()
    first, ping, read = [], [], []
    with Bare(session.redis_port) as redis:
        redis.ask_us(b"SCRIPT", b"LOAD", script)
        for upload_id in uploads:
            keys = [f"fanwire:{{{upload_id}}}:{kind}".encode() for kind in ("meta", "log")]
            first.append(await _first_us(session, upload_id))
            ping.append(redis.ask_us(b"PING"))
            read.append(redis.ask_us(b"EVALSHA", name, b"2", *keys))
    return {
        "first_us": median(first),
        "first_p99_us": percentile(first, 0.99),
        "ping_us": median(ping),
        "script_us": median(read),
        "in_round_trips": median(first) / median(read),
    }


async def _together(session: Session, uploads: list[str]) -> dict[str, float]:
    tally = Tally(len(uploads))
    for upload_id in uploads:
        await session.contender.manager.connect(f"user-{upload_id}", CountingConnection(tally))
    reads = await session.load.reads()
    began = time.monotonic_ns()
    for upload_id in uploads:
        await session.contender.manager.subscribe_upload(f"user-{upload_id}", upload_id)
    check_deliveries(session, await tally.wait(DELIVERY_SECONDS), len(uploads))
    return {
        "together_round_trips": await session.load.reads() - reads - 1,
        "together_ms": (tally.last_ns - began) / 1e6,
    }


async def _first_us(session: Session, upload_id: str) -> float:
    """From subscribing to the first message, for somebody who has just connected."""
    user_id, connection = f"user-{upload_id}", ExpectantConnection()
    await session.contender.manager.connect(user_id, connection)
    began = time.monotonic_ns()
    await manager_of(session).subscribe_upload(user_id, upload_id, connection=connection)
    at_ns = await asyncio.wait_for(connection.arrived, DELIVERY_SECONDS)
    return (at_ns - began) / 1e3


class ExpectantConnection:
    """Says when its first message came."""

    __slots__ = ("__weakref__", "arrived")

    def __init__(self) -> None:
        self.arrived: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def send_text(self, data: str) -> None:  # noqa: ARG002 - takes it and lets it go
        if not self.arrived.done():
            self.arrived.set_result(time.monotonic_ns())

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        """Nothing to close."""


class Bare:
    """A command at a time on a socket of its own: what no client can be faster than."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask_us(self, *parts: bytes) -> float:
        command = b"*%d\r\n" % len(parts)
        command += b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        began = time.monotonic_ns()
        self._socket.sendall(command)
        answer = self._socket.recv(1 << 16)
        took = time.monotonic_ns() - began
        if not answer or answer.startswith(b"-"):
            raise ConnectionError(f"Redis answered {answer.decode()}")
        return took / 1e3
