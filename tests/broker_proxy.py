"""A proxy before a server that understands what is pushed to listeners, and keeps some back.

It makes a listener deaf while the server goes on answering, loses single messages, and holds up the
answers to everybody who does not listen. Who listens is known by what it says: with Redis the name
of its connection, with PostgreSQL the statement LISTEN.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.histories import seen
from tests.postgres_server import DATABASE, OWNER, PostgresServer
from tests.redis_server import RedisServer
from tests.servers import AnyServer

CHUNK_BYTES = 64 << 10
MESSAGES = {b"message": 3, b"pmessage": 4}


@dataclass(frozen=True)
class Push:
    """A message on its way to a listener."""

    channel: bytes
    payload: bytes

    @property
    def seen(self) -> int | str:
        """Its offset, if it is recorded."""
        return seen(self.payload.decode())


def read_answer(data: bytes, at: int = 0) -> tuple[Any, int] | None:
    """One value of the RESP protocol and where it ends; None if it is not complete."""
    end = data.find(b"\r\n", at)
    if end < 0:
        return None
    kind, rest, end = data[at : at + 1], data[at + 1 : end], end + 2
    if kind == b"$" and int(rest) >= 0:
        after = end + int(rest) + 2
        return (data[end : after - 2], after) if len(data) >= after else None
    if kind not in b"*>" or int(rest) < 0:
        return rest, end
    values = []
    for _ in range(int(rest)):
        value = read_answer(data, end)
        if value is None:
            return None
        values.append(value[0])
        end = value[1]
    return values, end


class Resp:
    """What passes between Redis and its clients."""

    def __init__(self, server: RedisServer) -> None:
        self.port = server.port

    def url(self, port: int) -> str:
        return f"redis://127.0.0.1:{port}"

    def is_of_listener(self, question: bytes) -> bool:
        return b"fanwire-listener" in question

    def read(self, data: bytes, at: int) -> tuple[Push | None, int] | None:
        """Where an answer ends, with the message to a listener that it may be."""
        answer = read_answer(data, at)
        if answer is None:
            return None
        value, end = answer
        if isinstance(value, list) and value and MESSAGES.get(value[0]) == len(value):
            return Push(value[-2], value[-1]), end
        return None, end


class Postgres:
    """What passes between PostgreSQL and its clients, in clear text."""

    def __init__(self, server: PostgresServer) -> None:
        self.port = server.port

    def url(self, port: int) -> str:
        return f"postgresql://{OWNER}@127.0.0.1:{port}/{DATABASE}?sslmode=disable"

    def is_of_listener(self, question: bytes) -> bool:
        return b"LISTEN" in question

    def read(self, data: bytes, at: int) -> tuple[Push | None, int] | None:
        """A type, a length, and for a notification: a process id, a channel and a payload."""
        if len(data) < at + 5:
            return None
        end = at + 1 + int.from_bytes(data[at + 1 : at + 5])
        if len(data) < end:
            return None
        if data[at : at + 1] != b"A":
            return None, end
        channel, payload = data[at + 9 : end - 1].split(b"\0")
        if framed := re.match(rb"~m(\d+):", payload):
            rest = payload[framed.end() :]
            channel, payload = rest[: int(framed[1])], rest[int(framed[1]) :]
        return Push(channel, payload), end


@dataclass(eq=False)
class _Passage:
    """A connection through the proxy."""

    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    is_listener: bool = False
    is_deaf: bool = False
    open: asyncio.Event = field(default_factory=asyncio.Event)


class BrokerProxy:
    """Listens on a port of its own.

    ``swallows`` says of every message to a listener whether it is lost, ``swallowed`` has those
    that were. ``alters`` gets what others than listeners ask, and gives what the server gets.
    """

    def __init__(self, server: AnyServer) -> None:
        self._language = Resp(server) if isinstance(server, RedisServer) else Postgres(server)
        self._passages: set[_Passage] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._answers = True
        self._connects = asyncio.Event()
        self._connects.set()
        self.port = 0
        self.listeners = 0
        self.swallows: Callable[[Push], bool] = lambda _: False
        self.swallowed: list[Push] = []
        self.alters: Callable[[bytes], bytes] = lambda asked: asked

    @property
    def url(self) -> str:
        return self._language.url(self.port)

    def deafen(self) -> None:
        """No message reaches those who listen now; everything else that they are told does."""
        for passage in self._passages:
            passage.is_deaf = passage.is_listener

    def hold_answers(self) -> None:
        """Who does not listen waits for answers from now on."""
        self._answers = False
        for passage in self._passages:
            passage.open.clear()

    def release_answers(self) -> None:
        self._answers = True
        for passage in self._passages:
            passage.open.set()

    def hold_connections(self) -> None:
        """Who connects waits for the broker from now on."""
        self._connects.clear()

    def release_connections(self) -> None:
        self._connects.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._connects.wait()
            broker = await asyncio.open_connection("127.0.0.1", self._language.port)
            try:
                await self._carry((reader, writer), broker)
            finally:
                broker[1].close()
        except (OSError, asyncio.CancelledError):
            pass  # the broker is down; or `close` does that, and waits for what follows
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _carry(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        broker: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        passage = _Passage((client[1], broker[1]))
        if self._answers:
            passage.open.set()
        self._passages.add(passage)
        ways = [
            asyncio.ensure_future(self._ask(passage, client[0])),
            asyncio.ensure_future(self._answer(passage, broker[0])),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._passages.discard(passage)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, passage: _Passage, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(CHUNK_BYTES):
                if not passage.is_listener and self._language.is_of_listener(chunk):
                    passage.is_listener = True
                    self.listeners += 1
                if not passage.is_listener:
                    chunk = self.alters(chunk)
                passage.writers[1].write(chunk)
                await passage.writers[1].drain()

    async def _answer(self, passage: _Passage, reader: asyncio.StreamReader) -> None:
        kept = b""
        with suppress(ConnectionError):
            while chunk := await reader.read(CHUNK_BYTES):
                if passage.is_listener:
                    chunk, kept = self._let_through(passage, kept + chunk)
                else:
                    await passage.open.wait()
                passage.writers[0].write(chunk)
                await passage.writers[0].drain()

    def _let_through(self, passage: _Passage, data: bytes) -> tuple[bytes, bytes]:
        """What the listener gets, and what is not complete yet."""
        through, at = b"", 0
        while (answer := self._language.read(data, at)) is not None:
            push, end = answer
            if push is not None and (passage.is_deaf or self.swallows(push)):
                self.swallowed.append(push)
            else:
                through += data[at:end]
            at = end
        return through, data[at:]


@asynccontextmanager
async def broker_proxy(server: AnyServer) -> AsyncIterator[BrokerProxy]:
    proxy = BrokerProxy(server)
    serving = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = serving.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        serving.close()
        await proxy.close()
        await serving.wait_closed()
