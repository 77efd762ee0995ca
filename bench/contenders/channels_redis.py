"""channels_redis: a channel and a receiving Task for each connection, groups for uploads."""

import asyncio
from typing import Any

from channels_redis.pubsub import RedisPubSubChannelLayer  # type: ignore[import-not-found]
from commands import Wire
from contract import Contender
from reference.manager import Message


class GroupManager:
    def __init__(self, url: str) -> None:
        self._layer = RedisPubSubChannelLayer(hosts=[url])
        # As Django's consumers do: the layer of this loop is asked through the proxy.
        self._channels: dict[str, dict[Any, tuple[str, asyncio.Task[None]]]] = {}

    async def connect(self, user_id: str, websocket: Any) -> None:
        channel = await self._layer.new_channel()
        task = asyncio.create_task(self._deliver(channel, websocket))
        self._channels.setdefault(user_id, {})[websocket] = (channel, task)
        await self._layer.group_add(_group(f"user:{user_id}"), channel)

    async def _deliver(self, channel: str, websocket: Any) -> None:
        while True:
            message = await self._layer.receive(channel)
            await websocket.send_text(message["text"])

    async def disconnect(self, user_id: str, websocket: Any) -> None:
        channel, task = self._channels[user_id].pop(websocket)
        await self._layer.group_discard(_group(f"user:{user_id}"), channel)
        task.cancel()
        await asyncio.wait([task])

    async def subscribe_upload(self, user_id: str, upload_id: str) -> None:
        for channel, _ in self._channels.get(user_id, {}).values():
            await self._layer.group_add(_group(f"upload:{upload_id}"), channel)

    async def unsubscribe_upload(self, user_id: str, upload_id: str) -> None:
        for channel, _ in self._channels.get(user_id, {}).values():
            await self._layer.group_discard(_group(f"upload:{upload_id}"), channel)

    async def start(self) -> None:
        """The layer listens from its first channel on."""

    async def stop(self) -> None:
        await self._layer.flush()

    async def publish_progress(self, upload_id: str, message: Message) -> None:
        event = {"type": "progress", "text": message.model_dump_json()}
        await self._layer.group_send(_group(f"upload:{upload_id}"), event)


def _group(channel: str) -> str:
    return channel.replace(":", ".")  # a colon is no part of a group's name


def _wire(layer: Any) -> Wire:
    def wire(channel: str, body: bytes) -> tuple[bytes, bytes]:
        event = {"type": "progress", "text": body.decode()}
        return f"asgi__group__{_group(channel)}".encode(), layer.serialize(event)

    return wire


def build(url: str) -> Contender:
    manager = GroupManager(url)
    wire = _wire(RedisPubSubChannelLayer(hosts=[url]))
    return Contender(manager, manager, wire=wire, hears_all=False)
