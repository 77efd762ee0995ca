"""What contenders that only listen have in common: their messages go to the reference's maps."""

import asyncio
from abc import ABC, abstractmethod

from reference.manager import ConnectionManager, Message


class ListeningClient(ABC):
    """A client library in the place of redis-py: it publishes, and feeds the reference's maps."""

    def __init__(self, manager: ConnectionManager) -> None:
        self._manager = manager
        self._listener: asyncio.Task[None] | None = None
        self._open = False

    async def start(self) -> None:
        await self._ensure_open()
        self._listener = asyncio.create_task(self.listen(self._manager))

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
        if self._open:
            await self.close()

    async def publish_progress(self, upload_id: str, message: Message) -> None:
        if not self._open:
            await self._ensure_open()
        await self.publish(f"upload:{upload_id}", message.model_dump_json())

    async def _ensure_open(self) -> None:
        if not self._open:
            await self.open()
            self._open = True

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    async def publish(self, channel: str, payload: str) -> None: ...

    @abstractmethod
    async def listen(self, manager: ConnectionManager) -> None: ...
