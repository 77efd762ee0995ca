"""coredis: asyncio from the ground up."""

from contextlib import AsyncExitStack

import coredis  # type: ignore[import-not-found]
from contract import Contender
from listening import ListeningClient
from reference.manager import ConnectionManager


class CoredisPublisher(ListeningClient):
    def __init__(self, url: str, manager: ConnectionManager) -> None:
        super().__init__(manager)
        self._client = coredis.Redis.from_url(url, decode_responses=True)
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        # By the Task of the workload, whose children then share the pool.
        await self._stack.enter_async_context(self._client)

    async def close(self) -> None:
        """Its task group ends with the process: only the Task that entered it may leave it."""

    async def publish(self, channel: str, payload: str) -> None:
        await self._client.publish(channel, payload)

    async def listen(self, manager: ConnectionManager) -> None:
        patterns = ["upload:*", "user:*"]
        async with self._client.pubsub(patterns=patterns, ignore_subscribe_messages=True) as pubsub:
            async for message in pubsub:
                await manager.forward(message["channel"], message["data"])


def build(url: str) -> Contender:
    manager = ConnectionManager()
    return Contender(manager, CoredisPublisher(url, manager))
