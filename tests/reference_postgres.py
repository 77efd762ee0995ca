"""Topics over asyncpg as PyView's guide shows them, in words of our own and no more of it."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg

Handler = Callable[[str, Any], Coroutine[Any, Any, None]]


class ReferencePubSub:
    """A channel for each topic, the message's JSON as the payload, and a pool to publish with.

    ``NOTIFY channel, $1``, as it is written there, is no SQL: this says ``pg_notify``.
    """

    def __init__(self, dsn: str, prefix: str) -> None:
        self._dsn = dsn
        self._prefix = prefix
        self._handlers: dict[str, dict[str, Handler]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._pool = await asyncpg.create_pool(self._dsn, min_size=1, max_size=3)
        self._listening = await asyncpg.connect(self._dsn)

    async def stop(self) -> None:
        await self._listening.close()
        await self._pool.close()

    async def subscribe_topic(self, session_id: str, topic: str, handler: Handler) -> None:
        if topic not in self._handlers:
            self._handlers[topic] = {}
            await self._listening.add_listener(self._prefix + topic, self._heard)
        self._handlers[topic][session_id] = handler

    async def unsubscribe_topic(self, session_id: str, topic: str) -> None:
        self._handlers.get(topic, {}).pop(session_id, None)

    async def unsubscribe_all(self, session_id: str) -> None:
        for handlers in self._handlers.values():
            handlers.pop(session_id, None)

    async def broadcast(self, topic: str, message: Any) -> None:
        payload = json.dumps(message)
        await self._pool.execute("SELECT pg_notify($1, $2)", self._prefix + topic, payload)

    def _heard(self, connection: Any, pid: int, channel: str, payload: Any) -> None:
        topic = channel.removeprefix(self._prefix)
        for handler in list(self._handlers.get(topic, {}).values()):
            task = asyncio.ensure_future(handler(topic, json.loads(payload)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
