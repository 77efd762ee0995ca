"""What contenders with a subscription for each connection and channel have in common."""

import asyncio
from abc import ABC, abstractmethod
from typing import Any


class PerChannelManager(ABC):
    """Users and their connections here; what is watched is the library's own affair.

    `follow` makes a connection get the messages of a channel, and returns what ends that.
    """

    def __init__(self) -> None:
        self._connections: dict[str, set[Any]] = {}
        self._following: dict[tuple[str, Any, str], Any] = {}

    async def connect(self, user_id: str, websocket: Any) -> None:
        self._connections.setdefault(user_id, set()).add(websocket)
        await self._start(user_id, websocket, f"user:{user_id}")

    async def disconnect(self, user_id: str, websocket: Any) -> None:
        self._connections.get(user_id, set()).discard(websocket)
        for key in [key for key in self._following if key[:2] == (user_id, websocket)]:
            await self._end(key)

    async def subscribe_upload(self, user_id: str, upload_id: str) -> None:
        for websocket in self._connections.get(user_id, ()):
            await self._start(user_id, websocket, f"upload:{upload_id}")

    async def unsubscribe_upload(self, user_id: str, upload_id: str) -> None:
        for websocket in self._connections.get(user_id, ()):
            await self._end((user_id, websocket, f"upload:{upload_id}"))

    async def _start(self, user_id: str, websocket: Any, channel: str) -> None:
        self._following[user_id, websocket, channel] = await self.follow(channel, websocket)

    async def _end(self, key: tuple[str, Any, str]) -> None:
        following = self._following.pop(key, None)
        if following is not None:
            await self.unfollow(following)

    @abstractmethod
    async def follow(self, channel: str, websocket: Any) -> Any: ...

    async def unfollow(self, following: Any) -> None:
        following.cancel()
        await asyncio.wait([following])
