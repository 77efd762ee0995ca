"""The proxy does to connections what it says, and nothing else."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.deadlines import bounded, until
from tests.faults import proxy
from tests.faults.proxy import BOTH, Door, Towards, opened
from tests.redis_server import free_port

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Broker:
    """The far side: remembers what comes, and sends what it is told to."""

    def __init__(self) -> None:
        self.ends: list[Ends] = []
        self.received: list[bytearray] = []
        self.ended: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ends.append((reader, writer))
        received = bytearray()
        self.received.append(received)
        try:
            while data := await reader.read(1 << 16):
                received += data
            self.ended.append("FIN")
        except ConnectionResetError:
            self.ended.append("RST")
        finally:
            writer.close()


@asynccontextmanager
async def through_a_door() -> AsyncIterator[tuple[Broker, Door]]:
    broker = Broker()
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    async with server, opened(server.sockets[0].getsockname()[:2], "door") as doors:
        yield broker, doors["door"]


@asynccontextmanager
async def connected(broker: Broker, door: Door) -> AsyncIterator[Ends]:
    there = len(broker.ends)
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    try:
        await until(lambda: len(broker.ends) > there, "the far side is reached")
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_bytes_go_both_ways() -> None:
    async with through_a_door() as (broker, door), connected(broker, door) as (reader, writer):
        payload = random.Random(1).randbytes(200_000)
        writer.write(payload)
        await until(lambda: broker.received[0] == payload)
        broker.ends[0][1].write(payload)
        assert await bounded(reader.readexactly(len(payload))) == payload
        writer.write_eof()
        await until(lambda: broker.ended == ["FIN"])
        assert await bounded(reader.read()) == b""
        await until(lambda: not door.passages)


@pytest.mark.parametrize("is_reset", [True, False], ids=["RST", "FIN"])
async def test_a_cut_ends_both_sides(is_reset: bool) -> None:
    async with through_a_door() as (broker, door), connected(broker, door) as (reader, _):
        door.passages[0].cut(reset=is_reset)
        if is_reset:
            with pytest.raises(ConnectionResetError):
                await bounded(reader.read())
        else:
            assert await bounded(reader.read()) == b""
        await until(lambda: broker.ended == ["RST" if is_reset else "FIN"])


async def test_what_is_stalled_arrives_late() -> None:
    async with through_a_door() as (broker, door), connected(broker, door) as (reader, writer):
        (passage,) = door.passages
        passage.stall((Towards.BROKER,))
        writer.write(b"to the broker")
        broker.ends[0][1].write(b"to the client")
        assert await bounded(reader.readexactly(13)) == b"to the client"
        assert passage.is_stalled and not broker.received[0]
        passage.stall(BOTH)
        # Who gives up meanwhile has said it all the same.
        writer.close()
        passage.release()
        await until(lambda: broker.received[0] == b"to the broker")
        await until(lambda: broker.ended == ["FIN"])


async def test_a_stalled_door_stalls_who_comes_anew() -> None:
    async with through_a_door() as (broker, door):
        door.stalled = BOTH
        async with connected(broker, door) as (_, writer):
            writer.write(b"hello")
            await until(lambda: door.passages[0].is_stalled)
            assert not broker.received[0]
            door.release()
            await until(lambda: broker.received[0] == b"hello")


async def test_a_delay_keeps_the_order() -> None:
    async with through_a_door() as (broker, door), connected(broker, door) as (_, writer):
        door.passages[0].delay(0.01)
        for number in range(10):
            writer.write(bytes([number]))
            await writer.drain()
        await until(lambda: broker.received[0] == bytes(range(10)))


async def test_what_is_throttled_arrives_whole() -> None:
    async with through_a_door() as (broker, door), connected(broker, door) as (reader, writer):
        (passage,) = door.passages
        passage.throttle(1_000_000)
        payload = random.Random(3).randbytes(100_000)
        writer.write(payload)
        broker.ends[0][1].write(b"x" * 1_000)
        assert await bounded(reader.readexactly(1_000))
        await until(lambda: broker.received[0] == payload)
        assert passage.slowed_bytes == 101_000
        assert passage.is_late


@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize("is_reset", [True, False], ids=["RST", "FIN"])
async def test_a_truncation_lets_a_part_through(direction: Towards, is_reset: bool) -> None:
    async with through_a_door() as (broker, door), connected(broker, door) as (reader, writer):
        (passage,) = door.passages
        passage.truncate(direction, random.Random(2), reset=is_reset)
        truncated_before = passage.was_truncated
        if direction is Towards.BROKER:
            writer.write(b"0123456789")
            await until(lambda: broker.ended)
            part = bytes(broker.received[0])
        else:
            broker.ends[0][1].write(b"0123456789")
            part = await bounded(reader.read(100))
        assert b"0123456789".startswith(part) and 0 < len(part) < 10
        assert (truncated_before, passage.was_truncated) == (False, True)
        await until(lambda: not door.passages)


async def test_a_door_that_refuses() -> None:
    async with through_a_door() as (broker, door):
        door.refusing = True
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        with pytest.raises(ConnectionResetError):
            await bounded(reader.read())
        writer.close()
        assert broker.ends == []
        door.release()
        async with connected(broker, door) as (_, writer):
            writer.write(b"hello")
            await until(lambda: broker.received[0] == b"hello")


async def test_who_is_on_the_way_in_when_a_door_begins_to_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect = proxy._connect

    async def refuse_meanwhile(address: tuple[str, int]) -> Ends:
        ends = await connect(address)
        await until(lambda: broker.ends, "the far side is reached")
        door.refusing = True
        return ends

    monkeypatch.setattr(proxy, "_connect", refuse_meanwhile)
    async with through_a_door() as (broker, door):
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        with pytest.raises(ConnectionResetError):
            await bounded(reader.read())
        writer.close()
        assert not door.passages
        await until(lambda: broker.ended == ["RST"])


async def test_who_comes_while_the_broker_is_down_is_refused() -> None:
    async with opened(("127.0.0.1", free_port()), "door") as doors:
        reader, writer = await asyncio.open_connection("127.0.0.1", doors["door"].port)
        with pytest.raises(ConnectionResetError):
            await bounded(reader.read())
        writer.close()
