"""A TCP proxy on loopback that does to connections what networks do to them.

Each *door* listens on a port of its own and leads to the same address. So those who connect can be
told apart, and each can be given faults of its own. A connection through a door is a *passage*.
"""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from enum import Enum
from typing import Self

CHUNK_BYTES = 16 << 10
# Small, so that what a stalled reader does not take piles up in redis-server and not in the kernel:
# how much a sender's socket holds depends on the size of segments, which is 64 KiB on loopback.
RECEIVE_BUFFER_BYTES = 16 << 10
SEGMENT_BYTES = 1400
LINGER_NOT = struct.pack("ii", 1, 0)


class Towards(Enum):
    """The two directions of a passage."""

    BROKER = "to the broker"
    CLIENT = "to the client"


BOTH = (Towards.BROKER, Towards.CLIENT)


class _Way:
    """One direction of a passage: reads here, writes there, one chunk after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.open = asyncio.Event()
        self.open.set()
        self.delay_seconds = 0.0
        self.bytes_per_second: float | None = None
        self.slowed_bytes = 0
        # Given the next chunk, says how many bytes of it still go through.
        self.truncate: Callable[[bytes], int] | None = None

    async def carry(self) -> bool:
        """Carries until there is nothing more. Whether a truncation ended it."""
        while chunk := await self._read():
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if self.bytes_per_second is not None:
                self.slowed_bytes += len(chunk)
                await asyncio.sleep(len(chunk) / self.bytes_per_second)
            await self.open.wait()
            truncate = self.truncate
            if truncate is not None and len(chunk) > 1:
                self._writer.write(chunk[: truncate(chunk)])
                return True
            self._writer.write(chunk)
            await self._writer.drain()
        # What was on its way arrives, though who sent it has gone meanwhile.
        await self.open.wait()
        with suppress(OSError):
            self._writer.write_eof()
        return False

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(CHUNK_BYTES)
        except ConnectionError:
            return b""


class Passage:
    """A connection through a door, and the connection to the broker that belongs to it."""

    def __init__(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        broker: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._writers = (client[1], broker[1])
        self._ways = {
            Towards.BROKER: _Way(client[0], broker[1]),
            Towards.CLIENT: _Way(broker[0], client[1]),
        }
        self._reset = False
        self.was_truncated = False
        self._carrying: list[asyncio.Task[None]] = []

    async def carry(self) -> None:
        """Returns when both directions have ended, or when it was cut."""
        self._carrying = [asyncio.create_task(self._carry(way)) for way in self._ways.values()]
        try:
            await asyncio.wait(self._carrying)
        finally:
            for task in self._carrying:
                task.cancel()
            await asyncio.gather(*self._carrying, return_exceptions=True)
            for writer in self._writers:
                _close(writer, with_reset=self._reset)

    async def _carry(self, way: _Way) -> None:
        try:
            truncated = await way.carry()
        except ConnectionError:
            return  # who was written to has gone; the other direction finds out by itself
        if truncated:
            self.cut(reset=self._reset)

    def cut(self, *, reset: bool) -> None:
        """Ends both connections: with RST, or with FIN after what was written already."""
        self._reset = reset
        for task in self._carrying:
            task.cancel()

    def stall(self, directions: Iterable[Towards]) -> None:
        """Nothing gets through until ``release``; what was sent meanwhile arrives late."""
        for direction in directions:
            self._ways[direction].open.clear()

    def delay(self, seconds: float) -> None:
        """Every chunk takes so much longer, one after another."""
        for way in self._ways.values():
            way.delay_seconds = seconds

    def throttle(self, bytes_per_second: float | None) -> None:
        """No more than so many bytes get through in a second, in each direction; None ends it."""
        for way in self._ways.values():
            way.bytes_per_second = bytes_per_second

    @property
    def slowed_bytes(self) -> int:
        """How many were throttled until now."""
        return sum(way.slowed_bytes for way in self._ways.values())

    def truncate(self, direction: Towards, chance: random.Random, *, reset: bool) -> None:
        """Of the next chunk a part gets through, and then the connections end."""

        def part(chunk: bytes) -> int:
            self._reset = reset
            self.was_truncated = True
            return chance.randrange(1, len(chunk))

        self._ways[direction].truncate = part

    @property
    def is_stalled(self) -> bool:
        return not all(way.open.is_set() for way in self._ways.values())

    @property
    def is_late(self) -> bool:
        """Whether what was sent long ago may still be on its way."""
        return self.is_stalled or any(
            way.bytes_per_second is not None for way in self._ways.values()
        )

    def release(self) -> None:
        """The end of all that lasts, and of a truncation that has not come about."""
        for way in self._ways.values():
            way.truncate = None
            way.bytes_per_second = None
            way.delay_seconds = 0.0
            way.open.set()


class Door:
    """A port that leads to the broker."""

    def __init__(self, broker: tuple[str, int]) -> None:
        self._broker = broker
        self._server: asyncio.Server | None = None
        self.passages: list[Passage] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.refusing = False
        self.stalled: tuple[Towards, ...] = ()

    async def open(self) -> Self:
        self._server = await asyncio.start_server(self._enter, "127.0.0.1", 0, limit=CHUNK_BYTES)
        return self

    @property
    def port(self) -> int:
        assert self._server is not None, "closed"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._pass(reader, writer)
        except asyncio.CancelledError:
            # Of this Task nobody awaits the end but `close`, which is who cancels it.
            _close(writer, with_reset=True)
        finally:
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            broker = None if self.refusing else await _connect(self._broker)
        except OSError:
            broker = None
        # Who was on the way in when the door began to refuse was not among those that were cut.
        if broker is None or self.refusing:
            _close(writer, with_reset=True)
            if broker is not None:
                _close(broker[1], with_reset=True)
            return
        passage = Passage((reader, writer), broker)
        passage.stall(self.stalled)
        self.passages.append(passage)
        try:
            await passage.carry()
        finally:
            self.passages.remove(passage)

    def release(self) -> None:
        """The end of all faults."""
        self.refusing = False
        self.stalled = ()
        for passage in self.passages:
            passage.release()

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None


@asynccontextmanager
async def opened(broker: tuple[str, int], *names: str) -> AsyncIterator[dict[str, Door]]:
    """Doors to the broker, by name."""
    doors: dict[str, Door] = {}
    try:
        for name in names:
            doors[name] = await Door(broker).open()
        yield doors
    finally:
        for door in doors.values():
            await door.close()


def make_narrow(connecting: socket.socket) -> None:
    """Leaves little room on the way, so that one who does not read is soon noticed."""
    connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)


async def _connect(
    address: tuple[str, int],
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    connecting = socket.socket()
    try:
        connecting.setblocking(False)
        make_narrow(connecting)
        await asyncio.get_running_loop().sock_connect(connecting, address)
        return await asyncio.open_connection(sock=connecting, limit=CHUNK_BYTES)
    except BaseException:
        connecting.close()
        raise


def reset(transport: asyncio.WriteTransport) -> None:
    """Ends a connection with RST, as the crash of a machine does."""
    raw = transport.get_extra_info("socket")
    with suppress(OSError):  # the other side has closed it before
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    transport.abort()


def _close(writer: asyncio.StreamWriter, *, with_reset: bool) -> None:
    if with_reset:
        reset(writer.transport)
    else:
        writer.close()
