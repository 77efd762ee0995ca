"""A contender's side of the load generator: a few lines of JSON, next to no CPU."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Self


class LoadError(RuntimeError):
    """The load generator could not do what it was asked to."""


@dataclass(frozen=True)
class Burst:
    """What was published: when, and how many subscribers Redis counted for all of it."""

    started_ns: int
    ended_ns: int
    heard: int


class LoadClient:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, path: str) -> Self:
        return cls(*await asyncio.open_unix_connection(path, limit=1 << 24))

    async def prepare(self, channels: list[str], count: int, last: str | None = None) -> None:
        await self._ask({"op": "prepare", "channels": channels, "count": count, "last": last})

    async def go(self, rate: float | None = None) -> Burst:
        return Burst(**await self._ask({"op": "go", "rate": rate}))

    async def until_heard(self, channel: str) -> None:
        await self._ask({"op": "until_heard", "channel": channel})

    async def published(self) -> int:
        """How many PUBLISH commands Redis has run since it started."""
        calls: int = (await self._ask({"op": "published"}))["calls"]
        return calls

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
