"""A contender's side of the load generator: a few lines of JSON, next to no CPU."""

import asyncio
import json
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Self

from commands import Wire, publish_commands


class LoadError(RuntimeError):
    """The load generator could not do what it was asked to."""


@dataclass(frozen=True)
class Burst:
    """What was published: when, how many subscribers Redis counted, and how long Redis was busy."""

    started_ns: int
    ended_ns: int
    heard: int
    redis_seconds: float


class LoadClient:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._folder = Path()
        self.wire: Wire | None = None

    @classmethod
    async def open(cls, path: str) -> Self:
        client = cls(*await asyncio.open_unix_connection(path, limit=1 << 24))
        client._folder = Path(path).parent
        return client

    async def prepare(self, channels: list[str], count: int, last: str | None = None) -> None:
        if self.wire is None:
            await self._ask({"op": "prepare", "channels": channels, "count": count, "last": last})
            return
        order = [*islice(cycle(channels), count), *([] if last is None else [last])]
        commands = list(publish_commands(order, self.wire))
        file = self._folder / "commands"
        file.write_bytes(b"".join(commands))
        lengths = [len(command) for command in commands]
        await self._ask({"op": "prepare_file", "path": str(file), "lengths": lengths})

    async def go(self, rate: float | None = None) -> Burst:
        return Burst(**await self._ask({"op": "go", "rate": rate}))

    async def until_heard(self, channel: str) -> None:
        await self.prepare([channel], 1)
        await self._ask({"op": "until_heard"})

    async def published(self) -> int:
        """How many PUBLISH commands Redis has run since it started."""
        return await self.calls("publish")

    async def calls(self, command: str) -> int:
        """How often Redis has run a command since it started."""
        calls: int = (await self._ask({"op": "calls", "command": command}))["calls"]
        return calls

    async def all_calls(self) -> dict[str, int]:
        """How often Redis has run every command since it started, those of scripts too."""
        calls: dict[str, int] = (await self._ask({"op": "all_calls"}))["calls"]
        return calls

    async def reads(self) -> int:
        """How often Redis has read from a client since it started, this question included."""
        reads: int = (await self._ask({"op": "reads"}))["reads"]
        return reads

    async def cpu_seconds(self) -> float:
        """How much CPU Redis has used since it started."""
        seconds: float = (await self._ask({"op": "cpu_seconds"}))["seconds"]
        return seconds

    async def clear(self) -> None:
        """Redis forgets all that it keeps."""
        await self._ask({"op": "clear"})

    async def until_channels(self, count: int) -> int:
        """Waits until Redis has so many channels with subscribers; when, on the load's clock."""
        at_ns: int = (await self._ask({"op": "until_channels", "count": count}))["at_ns"]
        return at_ns

    async def pin(self, cores: set[int]) -> None:
        """Redis and the load generator run on these cores alone, until told otherwise."""
        await self._ask({"op": "pin", "cores": sorted(cores)})

    def close(self) -> None:
        self._writer.close()

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._writer.write(json.dumps(request).encode() + b"\n")
        line = await self._reader.readline()
        if not line:
            raise LoadError("the load generator is gone")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LoadError(answer["error"])
        return answer
