"""Topics on redis-py, in the shape that PyView's guide gives to a backend of one's own."""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import redis.asyncio as redis

logger = logging.getLogger(__name__)

TopicHandler = Callable[[str, Any], Coroutine[Any, Any, None]]


class RedisPubSub:
    """One SUBSCRIBE for each topic, one lock around the maps, a Task for each handler's message.

    As in the guide, redis-py's defaults stay (RESP3, payloads as bytes). Two things are not: the
    listener starts after the first subscription, because `listen()` ends at once where there is
    none, and nothing is logged where an operation succeeds.
    """

    def __init__(self, url: str, channel_prefix: str = "pyview:") -> None:
        self._redis = redis.Redis.from_url(url)
        self._pubsub: Any = self._redis.pubsub()
        self._prefix = channel_prefix
        self._lock = asyncio.Lock()
        self._sessions_of: dict[str, dict[str, TopicHandler]] = {}
        self._topics_of: dict[str, dict[str, TopicHandler]] = {}
        self._listener: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """It connects when it first subscribes or publishes."""

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
        await self._pubsub.aclose()
        await self._redis.aclose()

    async def subscribe_topic(self, session_id: str, topic: str, handler: TopicHandler) -> None:
        async with self._lock:
            if topic not in self._sessions_of:
                self._sessions_of[topic] = {}
                await self._pubsub.subscribe(f"{self._prefix}{topic}")
                if self._listener is None:
                    self._listener = asyncio.create_task(self._listen())
            self._sessions_of[topic][session_id] = handler
            self._topics_of.setdefault(session_id, {})[topic] = handler

    async def unsubscribe_topic(self, session_id: str, topic: str) -> None:
        async with self._lock:
            await self._forget(session_id, topic)
            topics = self._topics_of.get(session_id, {})
            topics.pop(topic, None)
            if not topics:
                self._topics_of.pop(session_id, None)

    async def unsubscribe_all(self, session_id: str) -> None:
        async with self._lock:
            for topic in self._topics_of.pop(session_id, {}):
                await self._forget(session_id, topic)

    async def broadcast(self, topic: str, message: Any) -> None:
        payload = json.dumps({"topic": topic, "message": message})
        await self._redis.publish(f"{self._prefix}{topic}", payload)

    async def _forget(self, session_id: str, topic: str) -> None:
        sessions = self._sessions_of.get(topic)
        if sessions is None:
            return
        sessions.pop(session_id, None)
        if not sessions:
            del self._sessions_of[topic]
            await self._pubsub.unsubscribe(f"{self._prefix}{topic}")

    async def _listen(self) -> None:
        async for event in self._pubsub.listen():
            if event["type"] != "message":
                continue
            try:
                envelope = json.loads(event["data"])
                topic, message = envelope["topic"], envelope["message"]
            except (ValueError, KeyError):
                logger.warning("Not an envelope of a topic: %r", event["data"])
                continue
            async with self._lock:
                handlers = list(self._sessions_of.get(topic, {}).values())
            for handler in handlers:
                asyncio.create_task(handler(topic, message))  # noqa: RUF006 - as in the guide
