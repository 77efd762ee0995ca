"""Topics on asyncpg, in the shape that PyView's guide gives to a backend on PostgreSQL."""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg

logger = logging.getLogger(__name__)

TopicHandler = Callable[[str, Any], Coroutine[Any, Any, None]]
Listener = Callable[[Any, int, str, Any], None]

# As many as publish side by side in the workload have to share; more were not faster.
POOL_SIZE = 10


class PostgresPubSub:
    """One LISTEN for each topic, one lock around the maps, two Tasks for each message.

    As in the guide, but for what does not work there: `NOTIFY channel, $1` is no SQL, so it is
    `pg_notify`; a connection refuses a second query while one is under way, so a pool publishes;
    and a listener is removed by its own name, or it would stay. Nothing is logged where an
    operation succeeds.
    """

    def __init__(self, dsn: str, channel_prefix: str = "pyview_") -> None:
        self._dsn = dsn
        self._prefix = channel_prefix
        self._lock = asyncio.Lock()
        self._sessions_of: dict[str, dict[str, TopicHandler]] = {}
        self._topics_of: dict[str, set[str]] = {}
        self._listeners: dict[str, Listener] = {}

    async def start(self) -> None:
        self._pool = await asyncpg.create_pool(self._dsn, min_size=POOL_SIZE, max_size=POOL_SIZE)
        self._listening = await asyncpg.connect(self._dsn)

    async def stop(self) -> None:
        await self._pool.close()
        await self._listening.close()

    async def subscribe_topic(self, session_id: str, topic: str, handler: TopicHandler) -> None:
        async with self._lock:
            if topic not in self._sessions_of:
                self._sessions_of[topic] = {}
                self._listeners[topic] = self._listener_of(topic)
                await self._listening.add_listener(f"{self._prefix}{topic}", self._listeners[topic])
            self._sessions_of[topic][session_id] = handler
            self._topics_of.setdefault(session_id, set()).add(topic)

    async def unsubscribe_topic(self, session_id: str, topic: str) -> None:
        async with self._lock:
            await self._forget(session_id, topic)
            self._topics_of.get(session_id, set()).discard(topic)

    async def unsubscribe_all(self, session_id: str) -> None:
        async with self._lock:
            for topic in self._topics_of.pop(session_id, set()):
                await self._forget(session_id, topic)

    async def broadcast(self, topic: str, message: Any) -> None:
        payload = json.dumps(message)
        await self._pool.execute("SELECT pg_notify($1, $2)", f"{self._prefix}{topic}", payload)

    async def _forget(self, session_id: str, topic: str) -> None:
        sessions = self._sessions_of.get(topic, {})
        sessions.pop(session_id, None)
        if not sessions and self._sessions_of.pop(topic, None) is not None:
            await self._listening.remove_listener(
                f"{self._prefix}{topic}", self._listeners.pop(topic)
            )

    def _listener_of(self, topic: str) -> Listener:
        def listener(connection: Any, pid: int, channel: str, payload: Any) -> None:  # noqa: ARG001
            self._spawn(self._hand_out(topic, payload))

        return listener

    async def _hand_out(self, topic: str, payload: Any) -> None:
        try:
            message = json.loads(payload)
        except ValueError:
            logger.warning("Not JSON on %s: %r", topic, payload)
            return
        async with self._lock:
            handlers = list(self._sessions_of.get(topic, {}).values())
        for handler in handlers:
            self._spawn(handler(topic, message))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.create_task(work)  # noqa: RUF006 - as in the guide
