"""The pure-Python reference for topics, on redis-py: what a fleet runs beside fanwire in a deploy.

It keeps to the documented shape: one channel per topic, ``{"topic": …, "message": …}`` as the
payload, handlers looked up by the topic that the payload names, and a Task per handler and message.
"""

import asyncio
import json
from collections import defaultdict
from typing import Any

import redis.asyncio

from tests.pubsub import Handler


class ReferencePubSub:
    """Listens from its first subscription on: redis-py's ``listen()`` ends where there is none."""

    def __init__(self, url: str, channel_prefix: str = "pyview:") -> None:
        self._client = redis.asyncio.from_url(url)
        self._pubsub = self._client.pubsub()
        self._prefix = channel_prefix
        self._handlers: defaultdict[str, dict[str, Handler]] = defaultdict(dict)
        self._listening: asyncio.Task[None] | None = None
        self._handling: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self._client.ping()

    async def stop(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]
        await self._client.aclose()

    async def subscribe_topic(self, session_id: str, topic: str, handler: Handler) -> None:
        first = not self._handlers[topic]
        self._handlers[topic][session_id] = handler
        if first:
            await self._pubsub.subscribe(self._channel(topic))
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen())

    async def unsubscribe_topic(self, session_id: str, topic: str) -> None:
        self._handlers[topic].pop(session_id, None)
        if not self._handlers[topic]:
            del self._handlers[topic]
            await self._pubsub.unsubscribe(self._channel(topic))

    async def unsubscribe_all(self, session_id: str) -> None:
        for topic in [name for name, by in self._handlers.items() if session_id in by]:
            await self.unsubscribe_topic(session_id, topic)

    async def broadcast(self, topic: str, message: Any) -> None:
        payload = json.dumps({"topic": topic, "message": message})
        await self._client.publish(self._channel(topic), payload)

    def _channel(self, topic: str) -> str:
        return self._prefix + topic

    async def _listen(self) -> None:
        async for received in self._pubsub.listen():
            if received["type"] == "message":
                self._dispatch(received["data"])

    def _dispatch(self, payload: bytes) -> None:
        decoded = json.loads(payload)
        topic, message = decoded["topic"], decoded["message"]
        for handler in list(self._handlers.get(topic, {}).values()):
            handling = asyncio.create_task(handler(topic, message))
            self._handling.add(handling)
            handling.add_done_callback(self._handling.discard)
