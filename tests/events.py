"""Reading what an ``EventPublisher`` publishes, as its dashboard would."""

import itertools
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import psycopg
from psycopg import sql

import fanwire
from tests.deadlines import DEADLINE_SECONDS, until_blocking
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer
from tests.servers import AnyServer

_marks = itertools.count()


class RedisReader:
    """Payloads on some channels of Redis, in order."""

    def __init__(self, server: RedisServer, channels: list[str]) -> None:
        self._pubsub = server.tap(*channels)

    def next(self) -> tuple[str, bytes] | None:
        message: dict[str, Any] | None = self._pubsub.get_message(timeout=DEADLINE_SECONDS)
        return None if message is None else (message["channel"].decode(), message["data"])

    def close(self) -> None:
        self._pubsub.close()


class PostgresReader:
    """The same on PostgreSQL, for messages that fit into a notification."""

    def __init__(self, server: PostgresServer, channels: list[str]) -> None:
        self._heard: deque[tuple[str, bytes]] = deque()
        self._connection = psycopg.connect(server.url, autocommit=True)
        for channel in channels:
            self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

    def next(self) -> tuple[str, bytes] | None:
        if not self._heard:
            # As many as have come together; white space tells equal ones apart.
            self._heard.extend(
                (heard.channel, heard.payload.rstrip().encode())
                for heard in self._connection.notifies(timeout=DEADLINE_SECONDS, stop_after=1)
            )
        return self._heard.popleft() if self._heard else None

    def close(self) -> None:
        self._connection.close()


class Tap:
    """Subscribes to the three channels of a namespace."""

    def __init__(self, server: AnyServer, namespace: str = "codeworm") -> None:
        self._server = server
        self._mark = f"{namespace}:events"
        channels = [f"{namespace}:{name}" for name in ("logs", "events", "stats")]
        self._reader = (
            RedisReader(server, channels)
            if isinstance(server, RedisServer)
            else PostgresReader(server, channels)
        )

    def payloads(self) -> list[tuple[str, bytes]]:
        """Channels (without the namespace) and payloads since the last call, in order.

        To be called when the broker has taken everything that is to be seen.
        """
        mark = f"mark {next(_marks)}"
        self._server.publish(self._mark, mark)
        found: list[tuple[str, bytes]] = []
        end = time.monotonic() + DEADLINE_SECONDS
        while True:
            message = self._reader.next()
            if message is None:
                assert time.monotonic() < end, f"the mark has not come, but {found}"
                continue
            channel, payload = message
            if payload == mark.encode():
                return found
            found.append((channel.rpartition(":")[2], payload))

    def messages(self) -> list[tuple[str, Any]]:
        """As ``payloads``, decoded."""
        return [(channel, orjson.loads(payload)) for channel, payload in self.payloads()]

    def logs(self) -> list[Any]:
        return [message for channel, message in self.messages() if channel == "logs"]

    def close(self) -> None:
        self._reader.close()


class Outage:
    """A broker that lets everybody in but the publisher, so that others see what happens meanwhile.

    The server needs ``acl_user``: it is the publisher's user.
    """

    def __init__(self, server: RedisServer) -> None:
        self._client = server.client
        assert server.acl_user is not None
        self._user = server.acl_user

    def begin(self) -> None:
        self._client.acl_setuser(self._user, enabled=False)
        self.cut()

    def end(self) -> None:
        self._client.acl_setuser(self._user, enabled=True)

    def cut(self) -> None:
        """Breaks the publisher's connections."""
        self._client.execute_command(  # type: ignore[no-untyped-call]
            "CLIENT", "KILL", "USER", self._user
        )


@contextmanager
def outage(server: RedisServer) -> Iterator[None]:
    """An ``Outage`` that ends with the block."""
    trouble = Outage(server)
    trouble.begin()
    try:
        yield
    finally:
        trouble.end()


def flushed(publisher: fanwire.EventPublisher) -> None:
    """Everything published so far has gone out, and none of it was lost."""
    assert publisher.flush(timeout_seconds=DEADLINE_SECONDS), publisher.stats()


def settled(publisher: fanwire.EventPublisher) -> dict[str, Any]:
    """Nothing waits any longer, whatever became of it."""
    until_blocking(lambda: publisher.stats()["pending_messages"] == 0, "nothing waits")
    return publisher.stats()
