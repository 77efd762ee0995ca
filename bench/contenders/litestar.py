"""Litestar Channels on Redis pub/sub: a subscriber for each connection and channel."""

from typing import Any

from contract import Contender
from litestar.channels import ChannelsPlugin  # type: ignore[import-not-found]
from litestar.channels.backends.redis import (  # type: ignore[import-not-found]
    RedisChannelsPubSubBackend,
)
from per_channel import PerChannelManager
from redis.asyncio import Redis
from reference.manager import Message


class ChannelsHub(PerChannelManager):
    def __init__(self, url: str) -> None:
        super().__init__()
        backend = RedisChannelsPubSubBackend(redis=Redis.from_url(url))
        self._plugin = ChannelsPlugin(backend, arbitrary_channels_allowed=True)
        self._open = False

    async def follow(self, channel: str, websocket: Any) -> Any:
        await self.start()

        async def deliver(event: bytes) -> None:
            await websocket.send_text(event.decode())

        subscriber = await self._plugin.subscribe(channel)
        running = subscriber.run_in_background(deliver, join=False)
        await running.__aenter__()
        return subscriber, running

    async def unfollow(self, following: Any) -> None:
        subscriber, running = following
        await running.__aexit__(None, None, None)
        await self._plugin.unsubscribe(subscriber)

    async def start(self) -> None:
        if not self._open:
            self._open = True
            await self._plugin.__aenter__()

    async def stop(self) -> None:
        """Its Tasks and its connection end with the process."""

    async def publish_progress(self, upload_id: str, message: Message) -> None:
        if not self._open:
            await self.start()
        await self._plugin.wait_published(message.model_dump_json(), f"upload:{upload_id}")


def build(url: str) -> Contender:
    hub = ChannelsHub(url)
    return Contender(hub, hub, hears_all=False)
