"""Topics on PostgreSQL, beside asyncpg's listeners in the shape of PyView's guide.

What is received is notified by a procedure on the server, so the load costs this process nothing:
each message in a transaction of its own, as a publisher that awaits each sends it, or fifty in
one, as they come from fanwire. What is published is counted by a plain socket in another process.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from commands import body_of
from connections import Tally
from contract import Publishing, Row, Session
from meter import Meter, settle
from postgres_server import PostgresServer
from receiving import DELIVERY_SECONDS, check_deliveries

NAME = "postgres"
TITLE = "PostgreSQL: topics, beside asyncpg's listeners"
ROWS = (
    Row("receive_us", "a message in each transaction: CPU per message", "µs", target=3.0),
    Row("receive_50_us", "fifty in each transaction: CPU per message", "µs", target=3.0),
    Row("receive_per_second", "fifty in each: messages a second", "1/s", "higher"),
    Row("publish_per_second", "publish 50 at a time: publishes a second", "1/s", "higher", 5.0),
    Row("publish_cpu_us", "publish 50 at a time: CPU per publish", "µs"),
    Row("publish_serial_us", "publish one after another: time of each", "µs"),
)
PREFIX = "pyview_"
TOPICS = 100
EACH = 50  # messages a handler gets in a burst: no queue comes near its limit
TASKS = 50
HERE = Path(__file__).parent.parent
PROCEDURE = """
CREATE PROCEDURE burst(count int, bodies text[], each int) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 0 .. count - 1 LOOP
        PERFORM pg_notify('pyview_t' || i % 100, bodies[1 + i % 101] || repeat(' ', i / 100 % 50));
        IF i % each = each - 1 THEN COMMIT; END IF;
    END LOOP;
    COMMIT;
END $$
"""


class Visitor:
    """A session whose handler does nothing: what is measured is the way to it."""

    __slots__ = ("_tally",)

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    async def handle(self, topic: str, message: Any) -> None:  # noqa: ARG002 - takes it and lets it go
        tally = self._tally
        tally.left -= 1
        if not tally.left:
            tally.complete()


async def run(session: Session) -> Mapping[str, float]:
    build = session.contender.postgres
    assert build is not None
    with PostgresServer() as server:
        topics = build(server.dsn)
        await topics.start()
        measuring = Measuring(session, topics, server)
        figures = await measuring.receive() | await measuring.publish()
        await topics.stop()
    return figures


@dataclass(frozen=True)
class Measuring:
    session: Session
    topics: Publishing
    server: PostgresServer

    async def receive(self) -> dict[str, float]:
        tally = Tally(0)
        for number in range(TOPICS):
            await self.topics.subscribe_topic(f"s{number}", f"t{number}", Visitor(tally).handle)
        loading = await asyncpg.connect(self.server.dsn)
        await loading.execute(PROCEDURE)
        bodies = [body_of("upload:u", percent).decode() for percent in range(101)]
        figures = {}
        for title, each in (("receive_us", 1), ("receive_50_us", 50)):
            meter = Meter()
            bursts = self.session.size(8, 4)
            for number in range(bursts + 1):
                if number == 1:  # the first one warmed up
                    settle()
                tally.restart(TOPICS * EACH)
                with meter if number else Meter():
                    await loading.execute("CALL burst($1, $2, $3)", TOPICS * EACH, bodies, each)
                    missing = await tally.wait(DELIVERY_SECONDS)
                check_deliveries(self.session, missing, TOPICS * EACH)
            count = bursts * TOPICS * EACH
            figures[title] = meter.cpu_seconds / count * 1e6
        await loading.close()
        return figures | {"receive_per_second": count / meter.wall_seconds}

    async def publish(self) -> dict[str, float]:
        """To topics that nobody here listens to, and somebody elsewhere."""
        message = json.loads(body_of("upload:u", 42))
        await self._side_by_side(message, 1_000)
        settle()
        serial, count = Meter(), self.session.size(1_000, 500)
        with serial:
            for number in range(count):
                await self.topics.broadcast("elsewhere", message | {"number": number})
        at_once, many = Meter(), self.session.size(20_000, 5_000)
        command = [str(HERE / "postgres_drain.py"), str(self.server.port), str(many)]
        with subprocess.Popen(  # noqa: ASYNC220 - before the clock runs
            [sys.executable, *command, f"{PREFIX}elsewhere"], stdout=subprocess.PIPE, text=True
        ) as drain:
            assert drain.stdout is not None
            await asyncio.to_thread(drain.stdout.readline)
            with at_once:
                await self._side_by_side(message, many)
            reached = int(await asyncio.to_thread(drain.stdout.readline))
        if reached != many:
            self.session.remarks.append(f"{reached} of {many} messages reached PostgreSQL")
        return {
            "publish_per_second": many / at_once.wall_seconds,
            "publish_cpu_us": at_once.cpu_seconds / many * 1e6,
            "publish_serial_us": serial.wall_seconds / count * 1e6,
        }

    async def _side_by_side(self, message: dict[str, Any], count: int) -> None:
        """So many tasks, each publishing one message after another."""
        turn = iter(range(count))

        async def task() -> None:
            for number in turn:
                await self.topics.broadcast("elsewhere", message | {"number": number})

        await asyncio.gather(*[task() for _ in range(TASKS)])
