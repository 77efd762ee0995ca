"""broadcaster, as its documentation shows it: a subscription in a Task of its own."""

import asyncio
from typing import Any

from broadcaster import Broadcast  # type: ignore[import-not-found]
from contract import Contender
from per_channel import PerChannelManager
from reference.manager import Message


class BroadcastHub(PerChannelManager):
    def __init__(self, url: str) -> None:
        super().__init__()
        self._broadcast = Broadcast(url)
        self._open = False

    async def follow(self, channel: str, websocket: Any) -> asyncio.Task[None]:
        await self.start()
        subscribed = asyncio.Event()
        task = asyncio.create_task(self._deliver(channel, websocket, subscribed))
        await subscribed.wait()
        return task

    async def _deliver(self, channel: str, websocket: Any, subscribed: asyncio.Event) -> None:
        async with self._broadcast.subscribe(channel) as subscriber:
            subscribed.set()
            async for event in subscriber:
                await websocket.send_text(event.message)

    async def start(self) -> None:
        if not self._open:
            self._open = True
            await self._broadcast.connect()
            # Its first subscription is deaf: the listener looks before it is confirmed, finds none,
            # and waits for another one. These are that first one and the one that wakes it.
            await self.follow("nothing", None)
            await self.follow("nothing-either", None)

    async def stop(self) -> None:
        """Its Tasks and its connection end with the process."""

    async def publish_progress(self, upload_id: str, message: Message) -> None:
        await self._broadcast.publish(f"upload:{upload_id}", message.model_dump_json())


def build(url: str) -> Contender:
    hub = BroadcastHub(url)
    return Contender(hub, hub, hears_all=False)
