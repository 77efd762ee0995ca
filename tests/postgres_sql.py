"""What tests of the SQL functions share: calls as the core makes them, and an ear for the wire."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest
from psycopg import sql

from tests.conftest import Unique
from tests.deadlines import DEADLINE_SECONDS
from tests.postgres_server import OWNER, PostgresServer

Connection = psycopg.Connection[tuple[Any, ...]]
Connect = Callable[..., Connection]

SCHEMA = (Path(__file__).parent.parent / "src/broker/postgres/schema.sql").read_text()
LONGEST_PAYLOAD = 7999
HOUR_MS = 3_600_000
PUBLISHED, DUPLICATE, STALE, HAD_COME = range(4)
_CHUNK = re.compile(r"~c([0-9a-f]{16}),(0|[1-9]\d*),([1-9]\d*):(.*)", re.DOTALL)
_FRAME = re.compile(r"~m(0|[1-9]\d*):(.*)", re.DOTALL)


def install(connection: Connection) -> None:
    connection.execute(SCHEMA.encode())


def name_of(channel: str) -> str:
    """The notification channel of a channel."""
    if channel.startswith(("upload:", "user:")):
        return "fanwire"
    if 1 <= len(channel.encode()) <= 63 and not channel.startswith("fanwire_"):
        return channel
    return "fanwire_" + hashlib.sha256(channel.encode()).hexdigest()[:32]


def hash_of(upload: str) -> bytes:
    return hashlib.sha256(upload.encode()).digest()


@dataclass(frozen=True)
class Message:
    """One to be recorded."""

    upload: str
    head: str = '{"a":1,'
    milestone: bool = False
    number: int | None = None
    key: str | None = None
    version: int | None = None

    def at(self, epoch: str, offset: int) -> str:
        return f'{self.head}"_fanwire":{{"epoch":"{epoch}","offset":{offset}}}}}'


@dataclass(frozen=True)
class Answer:
    status: int
    epoch: str
    offset: int | None


def record(
    connection: Connection,
    *messages: Message,
    source: str | None = None,
    size: int = 256,
    ttl_ms: int = HOUR_MS,
) -> list[Answer]:
    """One call of ``fanwire_record``, as the core makes it."""
    columns: list[list[Any] | None] = [
        [f"upload:{message.upload}" for message in messages],
        [hash_of(message.upload) for message in messages],
        [message.head for message in messages],
        [message.milestone for message in messages],
        [message.number for message in messages],
        [message.key for message in messages],
        [message.version for message in messages],
    ]
    channels, uploads, heads, milestones, *marks = columns
    numbers, keys, versions = (
        column if column and any(mark is not None for mark in column) else None for column in marks
    )
    rows = connection.execute(
        "SELECT * FROM fanwire_record(%s::text[], %s::bytea[], %s::text[], %s::boolean[], %s::text,"
        " %s::bigint[], %s::text[], %s::bigint[], %s::integer, %s::bigint)",
        (channels, uploads, heads, milestones, source, numbers, keys, versions, size, ttl_ms),
    )
    return [Answer(*row) for row in rows]


@dataclass(frozen=True)
class Past:
    """What is kept of an upload."""

    epoch: str
    last: int
    milestone: int | None
    entries: tuple[tuple[int, str], ...]

    @property
    def offsets(self) -> list[int]:
        return [offset for offset, _ in self.entries]


Since = tuple[str, int] | None


def read(connection: Connection, *asks: tuple[str, Since]) -> list[Past | None]:
    """One call of ``fanwire_read``, as the core makes it."""
    rows = connection.execute(
        "SELECT * FROM fanwire_read(%s::bytea[], %s::text[], %s::bigint[])",
        (
            [hash_of(upload) for upload, _ in asks],
            [since and since[0] for _, since in asks],
            [since and since[1] for _, since in asks],
        ),
    ).fetchall()
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    return [_past([row[1:] for row in rows if row[0] == ask]) for ask in range(1, len(asks) + 1)]


def read_one(connection: Connection, upload: str, since: Since = None) -> Past:
    (past,) = read(connection, (upload, since))
    assert past is not None
    return past


def _past(rows: Sequence[tuple[Any, ...]]) -> Past | None:
    if not rows:
        return None
    ((epoch, last, milestone),) = {row[:3] for row in rows}
    if rows[0][3] is None:
        assert len(rows) == 1 and rows[0][4] is None
        return Past(epoch, last, milestone, ())
    entries = tuple((offset, payload) for *_, offset, payload in rows)
    assert list(entries) == sorted(entries)
    return Past(epoch, last, milestone, entries)


def works(connection: Connection, upload: str = "u") -> bool:
    (answer,) = record(connection, Message(upload, key=upload))
    past = read_one(connection, upload)
    return (past.epoch, past.last) == (answer.epoch, answer.offset)


def member(text: str) -> tuple[str, int]:
    """The position that a recorded message carries."""
    position = json.loads(text)["_fanwire"]
    return position["epoch"], position["offset"]


class Ear:
    """A connection that listens. It reads the wire as docs/postgresql-wire.md describes it."""

    def __init__(self, server: PostgresServer, *channels: str) -> None:
        self.server = server
        self._came: list[tuple[str, str]] = []
        self.connection = psycopg.connect(server.url, autocommit=True)
        for channel in channels:
            self.connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def raw(self, count: int) -> list[tuple[str, str]]:
        """So many notifications."""
        wanted = count - len(self._came)
        if wanted > 0:
            # It gives more than that if they came together.
            came = self.connection.notifies(timeout=DEADLINE_SECONDS, stop_after=wanted)
            self._came += [(notify.channel, notify.payload) for notify in came]
        heard, self._came = self._came[:count], self._came[count:]
        assert len(heard) == count, f"{len(heard)} of {count} notifications came"
        return heard

    def rest(self) -> list[tuple[str, str]]:
        """Every notification that was sent up to now."""
        self.connection.execute("LISTEN done")
        self.server.notify("done", "")
        heard: list[tuple[str, str]] = []
        while heard[-1:] != [("done", "")]:
            heard += self.raw(1)
        return heard[:-1]

    def messages(self) -> list[tuple[str, str]]:
        """Every message that was sent up to now, with its channel."""
        return list(messages_of(self.rest()))


def messages_of(heard: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The messages that notifications carry, with their channels."""
    parts: dict[str, list[str]] = {}
    for name, payload in heard:
        assert len(payload.encode()) <= LONGEST_PAYLOAD
        chunk = _CHUNK.fullmatch(payload)
        if chunk is None:
            yield _message_of(name, payload)
            continue
        id_, place, count, part = chunk.groups()
        got = parts.setdefault(id_, [])
        assert int(place) == len(got)
        got.append(part)
        if len(got) == int(count):
            yield _message_of(name, "".join(parts.pop(id_)))
    assert not parts


def _message_of(name: str, content: str) -> tuple[str, str]:
    frame = _FRAME.fullmatch(content)
    if frame is None:
        json.loads(content)
        return name, content
    rest = frame[2].encode()
    channel, body = rest[: int(frame[1])].decode(), rest[int(frame[1]) :].decode()
    json.loads(body)
    assert name_of(channel) == name
    return channel, body


@contextmanager
def connected(server: PostgresServer, *, autocommit: bool = True) -> Iterator[Connection]:
    with psycopg.connect(server.url, autocommit=autocommit) as connection:
        yield connection


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[Connection]:
    """A connection to the server that tests share, where everything is installed.

    Test modules take this fixture over: it is not in conftest.py.
    """
    with connected(postgres_server) as connection:
        install(connection)
        yield connection


@pytest.fixture
def ear(postgres_server: PostgresServer) -> Iterator[Ear]:
    """Listens where messages of uploads and users go."""
    with Ear(postgres_server, "fanwire") as ear:
        yield ear


@pytest.fixture
def connect(postgres_server: PostgresServer, unique: Unique) -> Iterator[Connect]:
    """Connects to a database of this test's own, in which there is nothing yet.

    Test modules take this fixture over, as ``database``.
    """
    name = unique("database")
    create = sql.SQL("CREATE DATABASE {} OWNER {}").format(
        sql.Identifier(name), sql.Identifier(OWNER)
    )
    postgres_server.client.execute(create)
    with ExitStack() as connections:

        def make(who: str = OWNER, *, autocommit: bool = True, search_path: str = "") -> Connection:
            url = postgres_server.url_of(who, name)
            connection = connections.enter_context(psycopg.connect(url, autocommit=autocommit))
            if search_path:
                connection.execute("SELECT set_config('search_path', %s, false)", (search_path,))
                if not autocommit:
                    connection.commit()
            return connection

        yield make
    postgres_server.client.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))
