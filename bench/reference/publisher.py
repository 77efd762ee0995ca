"""Publishing and listening on redis-py, one message at a time on the app's event loop."""

import asyncio
import logging
from typing import Any

import redis.asyncio as redis
from redis.exceptions import RedisError

from reference.manager import ConnectionManager, Message

logger = logging.getLogger(__name__)

PATTERNS = ("upload:*", "user:*")
POLL_SECONDS = 1.0
RETRY_SECONDS = 1.0
STOP_SECONDS = 2.0


class UploadProgressPublisher:
    """Publishes upload progress, and forwards what others publish to local connections.

    The listener polls `get_message(timeout=...)`, as the code that this stands for does, and leaves
    redis-py's protocol at its default. `ListeningPublisher` is the same on redis-py's fastest path.
    """

    def __init__(
        self, url: str, manager: ConnectionManager, *, protocol: int | None = None
    ) -> None:
        options: dict[str, Any] = {} if protocol is None else {"protocol": protocol}
        # Responses are decoded by hiredis in C: cheaper than `bytes.decode` in the loop below.
        self._redis = redis.Redis.from_url(url, decode_responses=True, **options)
        self._manager = manager
        self._listener: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()
            await asyncio.wait([listener], timeout=STOP_SECONDS)
        await self._redis.aclose()

    async def publish_progress(self, upload_id: str, message: Message) -> None:
        await self._publish(f"upload:{upload_id}", message.model_dump_json())

    async def publish_to_user(self, user_id: str, message: Message) -> None:
        await self._publish(f"user:{user_id}", message.model_dump_json())

    async def _publish(self, channel: str, payload: str) -> None:
        try:
            await self._redis.publish(channel, payload)
        except RedisError as error:
            logger.warning("Publishing to %s failed: %s", channel, error)

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.psubscribe(*PATTERNS)
                    await self._forward_all(pubsub)
            except RedisError as error:
                logger.warning("The listener lost Redis: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _forward_all(self, pubsub: Any) -> None:
        while True:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=POLL_SECONDS)
            if message is not None:
                await self._manager.forward(message["channel"], message["data"])


class ListeningPublisher(UploadProgressPublisher):
    """The reference with redis-py at its best: `listen()` instead of polling, over RESP2.

    `listen()` arms no timer per message, and over RESP2 redis-py does not format every message for
    a debug log line, as its hiredis parser does for each push of RESP3.
    """

    def __init__(self, url: str, manager: ConnectionManager) -> None:
        super().__init__(url, manager, protocol=2)

    async def _forward_all(self, pubsub: Any) -> None:
        async for message in pubsub.listen():
            if message["type"] == "pmessage":
                await self._manager.forward(message["channel"], message["data"])
