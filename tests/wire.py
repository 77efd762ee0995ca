"""What a message becomes, seen from its far end and without a broker's process."""

import asyncio
from typing import Any

import fanwire
from tests.connections import RecordingConnection


class Wire:
    """Publishes through the embedded broker and returns the text that a connection is given."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._manager = fanwire.ConnectionManager()
        self._publisher = fanwire.UploadProgressPublisher("memory://", manager=self._manager)
        self._connection = RecordingConnection()
        self._loop.run_until_complete(self._manager.connect("wire", self._connection))
        self._loop.run_until_complete(self._publisher.start())

    def send(self, message: Any) -> str:
        self._connection.texts.clear()
        return self._loop.run_until_complete(self._send(message))

    async def _send(self, message: Any) -> str:
        await self._publisher.publish_to_user("wire", message)
        (text,) = await self._connection.received(1)
        return text

    def close(self) -> None:
        self._loop.run_until_complete(self._publisher.stop())
        self._loop.close()
