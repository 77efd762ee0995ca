"""What PostgreSQL notifies, as a program sees it that knows nothing of fanwire."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from tests.deadlines import DEADLINE_SECONDS
from tests.postgres_server import PostgresServer

SHARED = "fanwire"
END = "tap_end"


@dataclass
class Tap:
    """Listens to some channels. The server is told when all is to have come."""

    server: PostgresServer
    connection: psycopg.Connection[tuple[object, ...]]
    heard: list[tuple[str, str]] = field(default_factory=list)

    def notifications(self) -> list[tuple[str, str]]:
        """Channels and payloads so far, of everything that was committed before this call."""
        self.server.notify(END, "")
        for notification in self.connection.notifies(timeout=DEADLINE_SECONDS):
            if notification.channel == END:
                return self.heard
            self.heard.append((notification.channel, notification.payload))
        raise AssertionError(f"the end has not come, but {self.heard}")

    def payloads(self) -> list[str]:
        return [payload for _, payload in self.notifications()]


@contextmanager
def tap(server: PostgresServer, *channels: str) -> Iterator[Tap]:
    with psycopg.connect(server.url, autocommit=True) as connection:
        for channel in (*channels, END):
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        yield Tap(server, connection)
