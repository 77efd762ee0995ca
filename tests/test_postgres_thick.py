"""Notifications that come so thick that their socket is looked at from time to time."""

import asyncio
import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest

import fanwire
from tests.conftest import PostgresFactory
from tests.deadlines import DEADLINE_SECONDS, until
from tests.postgres_server import PostgresServer
from tests.pubsub import Recorder

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="/proc says which socket is watched"
)

# Each in a transaction of its own, as fast as the server can, until somebody has enough; at least
# as many as this.
AT_LEAST = 40_000
PREPARE = "CREATE SEQUENCE thick_number; CREATE TABLE thick_enough ()"
NOTIFY = f"""DO $$
DECLARE
  number bigint := 0;
BEGIN
  WHILE number < {AT_LEAST} OR NOT EXISTS (TABLE thick_enough) LOOP
    number := nextval('thick_number');
    PERFORM pg_notify('pyview_thick', number::text); COMMIT;
  END LOOP;
END $$""".encode()
ENOUGH = "INSERT INTO thick_enough DEFAULT VALUES"
LAST = "SELECT last_value FROM thick_number"


def watched() -> dict[int, str]:
    """The sockets of this process that some epoll watches: file descriptors, and what they are."""
    found: dict[int, str] = {}
    for info in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            for number in re.findall(r"tfd:\s*(\d+)", info.read_text()):
                target = str(Path(f"/proc/self/fd/{number}").readlink())
                if target.startswith("socket:"):
                    found[int(number)] = target
    return found


def is_apart(sockets: dict[int, str]) -> bool:
    """Whether one of these is open and not watched."""
    now = watched()
    for number, target in sockets.items():
        with contextlib.suppress(FileNotFoundError):
            if now.get(number) != target == str(Path(f"/proc/self/fd/{number}").readlink()):
                return True
    return False


class Crowd:
    """A subscriber, and a session of PostgreSQL's own that notifies it as fast as it can."""

    def __init__(self, server: PostgresServer, url: str) -> None:
        self._server = server
        self.pubsub = fanwire.PostgresPubSub(
            url,
            max_queued_messages=1_000_000,
            max_queued_bytes=1 << 30,
            subscribe_timeout_seconds=DEADLINE_SECONDS,
        )
        self._recorder = Recorder()
        self._sockets: dict[int, str] = {}
        self._client: psycopg.Connection[Any] | None = None

    async def __aenter__(self) -> Self:
        before = watched()
        await self.pubsub.start()
        await self.pubsub.subscribe_topic("session", "thick", self._recorder)
        self._sockets = {fd: what for fd, what in watched().items() if before.get(fd) != what}
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pubsub.stop()
        if self._client:
            self._client.cancel_safe()  # where a test failed; otherwise there is nothing to cancel

    @property
    def numbers(self) -> list[Any]:
        return [message for _, message in self._recorder.calls]

    def notify(self) -> "asyncio.Task[int]":
        """From 1 on. The last number, after `enough`."""
        url = self._server.url
        with psycopg.connect(url, autocommit=True) as client:
            client.execute(PREPARE)

        def run() -> int:
            with psycopg.connect(url, autocommit=True) as client:
                self._client = client
                client.execute(NOTIFY)
                row = client.execute(LAST).fetchone()
                assert row
                return int(row[0])

        return asyncio.create_task(asyncio.to_thread(run))

    async def enough(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._server.url) as client:
            await client.execute(ENOUGH)

    async def until_apart(self) -> None:
        await until(lambda: is_apart(self._sockets), "its socket is not watched")

    async def until_watched(self) -> None:
        await until(lambda: not is_apart(self._sockets), "its socket is watched again")


@pytest.mark.parametrize("way", ["tcp", "unix", "tls"])
async def test_all_come_in_order_and_others_are_asked_for_meanwhile(
    make_postgres: PostgresFactory, way: str
) -> None:
    server = make_postgres(tls=way == "tls")
    url = {"tcp": server.url, "unix": server.unix_url}.get(way) or server.tls_url
    async with Crowd(server, url) as crowd:
        notifying = crowd.notify()
        await crowd.until_apart()
        other = Recorder()
        await crowd.pubsub.subscribe_topic("other", "other", other)
        await crowd.until_apart()
        await crowd.pubsub.broadcast("other", "in between")
        await until(lambda: other.calls == [("other", "in between")])
        await crowd.enough()
        last = await notifying
        await until(lambda: len(crowd.numbers) >= last)
        assert last >= AT_LEAST
        assert crowd.numbers == list(range(1, last + 1))
        await crowd.until_watched()
        await crowd.pubsub.broadcast("thick", "last")
        await until(lambda: crowd.numbers[-1] == "last")


def stop(server: PostgresServer) -> None:
    server.stop()
    server.start()


def kill(server: PostgresServer) -> None:
    server.kill()
    server.start()


def terminate(server: PostgresServer) -> None:
    assert server.drop_clients()


def pause(server: PostgresServer) -> None:
    server.pause()
    server.resume()
    server.drop_clients()


@pytest.mark.parametrize("fault", [stop, kill, terminate, pause])
async def test_a_connection_that_breaks_is_noticed_and_replaced(
    own_postgres: PostgresServer, fault: Callable[[PostgresServer], None]
) -> None:
    async with Crowd(own_postgres, own_postgres.url) as crowd:
        notifying = crowd.notify()
        await crowd.until_apart()
        await asyncio.to_thread(fault, own_postgres)
        with pytest.raises(psycopg.OperationalError):
            await notifying
        await until(lambda: int(str(crowd.pubsub.stats()["reconnects"])) > 0)
        await until(lambda: crowd.pubsub.health()["state"] == "live")
        await crowd.pubsub.broadcast("thick", 0)
        await until(lambda: crowd.numbers[-1:] == [0])
        assert crowd.numbers[:-1] == sorted(set(crowd.numbers[:-1]))


async def test_it_may_be_stopped_in_the_middle(own_postgres: PostgresServer) -> None:
    async with Crowd(own_postgres, own_postgres.url) as crowd:
        notifying = crowd.notify()
        await crowd.until_apart()
        await crowd.pubsub.stop()
        assert crowd.numbers == list(range(1, len(crowd.numbers) + 1))
        own_postgres.drop_clients()
        with pytest.raises(psycopg.OperationalError):
            await notifying
