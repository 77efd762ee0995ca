"""Connections as the tests need them: each records what it was given, and misbehaves in one way."""

import asyncio
from typing import NoReturn

from tests.deadlines import until


class RecordingConnection:
    """Takes everything at once, and remembers it."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.texts: list[str] = []
        self.closed: list[tuple[int | None, str | None]] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name or hex(id(self))}>"

    async def send_text(self, data: str) -> None:
        self.texts.append(data)

    async def close(self, code: int | None = None, reason: str | None = None) -> None:
        self.closed.append((code, reason))

    async def received(self, count: int) -> list[str]:
        """The texts, as soon as there are at least so many."""
        await until(
            lambda: len(self.texts) >= count,
            f"{count} texts at {self}, which has {self.texts[:20]}",
        )
        return self.texts

    async def received_text(self, text: str) -> None:
        await until(lambda: text in self.texts, f"{text!r} at {self}, which has {self.texts[:20]}")


class PlainConnection:
    """Offers the two coroutines and nothing else; ``touched`` names what else was looked for."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.touched: list[str] = []

    def __getattr__(self, name: str) -> NoReturn:
        self.touched.append(name)
        raise AttributeError(name)

    async def send_text(self, data: str) -> None:
        self.texts.append(data)

    async def close(self, code: int, reason: str) -> None:
        self.texts.append(f"closed {code} {reason}")


class FailingConnection(RecordingConnection):
    """Its peer has gone: every send raises, and so does close."""

    def __init__(self, name: str = "", *, error: BaseException | None = None) -> None:
        super().__init__(name)
        self.error = error or RuntimeError("the peer has gone")
        self.attempts = 0

    async def send_text(self, data: str) -> None:
        self.attempts += 1
        raise self.error

    async def close(self, code: int | None = None, reason: str | None = None) -> None:
        await super().close(code, reason)
        raise self.error


class StallingConnection(RecordingConnection):
    """A peer that does not read: sends wait until ``release()``."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.waiting = 0
        self.cancelled = 0
        self._released = asyncio.Event()

    def release(self) -> None:
        self._released.set()

    async def send_text(self, data: str) -> None:
        self.waiting += 1
        try:
            await self._released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
        self.texts.append(data)

    async def stalled(self) -> None:
        """Returns when a send waits."""
        await until(lambda: self.waiting > 0, f"a send that waits at {self}")


class StallingCloseConnection(RecordingConnection):
    """A peer that never answers the closing handshake; ``release()`` gives it up."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self._released = asyncio.Event()

    def release(self) -> None:
        self._released.set()

    async def close(self, code: int | None = None, reason: str | None = None) -> None:
        await super().close(code, reason)
        await self._released.wait()


class SlowConnection(RecordingConnection):
    """Gives way to the event loop a few times in every send."""

    def __init__(self, name: str = "", *, turns: int = 3) -> None:
        super().__init__(name)
        self.turns = turns
        self.sending = 0
        self.overlapped = False

    async def send_text(self, data: str) -> None:
        self.sending += 1
        self.overlapped = self.overlapped or self.sending > 1
        for _ in range(self.turns):
            await asyncio.sleep(0)
        self.texts.append(data)
        self.sending -= 1


class UnhashableConnection(RecordingConnection):
    __hash__ = None  # type: ignore[assignment]


class NamedConnection(RecordingConnection):
    """Equal to every other of the same name."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NamedConnection) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)
