"""Connections and subscriptions in plain dicts of sets."""

import logging
from collections import defaultdict
from typing import Any, Protocol

logger = logging.getLogger(__name__)


class Message(Protocol):
    """What the reference asks of a message: to be a pydantic model."""

    def model_dump(self, *, mode: str) -> Any: ...
    def model_dump_json(self) -> str: ...


class ConnectionManager:
    """Who is connected to this process, and which uploads each user watches.

    Nothing is logged where an operation succeeds: the reference is charged for its maps alone.
    """

    def __init__(self) -> None:
        self.user_connections: defaultdict[str, set[Any]] = defaultdict(set)
        self.upload_subscribers: defaultdict[str, set[str]] = defaultdict(set)
        self.user_subscriptions: defaultdict[str, set[str]] = defaultdict(set)

    async def connect(self, user_id: str, websocket: Any) -> None:
        self.user_connections[user_id].add(websocket)

    async def disconnect(self, user_id: str, websocket: Any) -> None:
        self.user_connections[user_id].discard(websocket)
        if not self.user_connections[user_id]:
            del self.user_connections[user_id]
            for upload_id in list(self.user_subscriptions.get(user_id, ())):
                await self.unsubscribe_upload(user_id, upload_id)

    async def subscribe_upload(self, user_id: str, upload_id: str) -> None:
        self.upload_subscribers[upload_id].add(user_id)
        self.user_subscriptions[user_id].add(upload_id)

    async def unsubscribe_upload(self, user_id: str, upload_id: str) -> None:
        # Indexing makes a set for what was never subscribed, which the next lines remove again. For
        # what was, the common case, it is cheaper than `get` and a test for None.
        subscribers = self.upload_subscribers[upload_id]
        subscribers.discard(user_id)
        if not subscribers:
            del self.upload_subscribers[upload_id]
        subscriptions = self.user_subscriptions[user_id]
        subscriptions.discard(upload_id)
        if not subscriptions:
            del self.user_subscriptions[user_id]

    def get_upload_subscriber_ids(self, upload_id: str) -> set[str]:
        return set(self.upload_subscribers.get(upload_id, ()))

    async def send_to_user(self, user_id: str, message: Message) -> None:
        payload = message.model_dump(mode="json")
        for websocket in list(self.user_connections.get(user_id, ())):
            try:
                await websocket.send_json(payload)
            except Exception as error:  # noqa: BLE001 - whatever a dead socket raises
                logger.warning("Sending to user %s failed: %s", user_id, error)
                await self.disconnect(user_id, websocket)

    async def send_to_upload_subscribers(self, upload_id: str, message: Message) -> None:
        for user_id in self.get_upload_subscriber_ids(upload_id):
            await self.send_to_user(user_id, message)

    async def forward(self, channel: str, payload: str) -> None:
        """A message from the broker to the connections here that it concerns."""
        kind, _, name = channel.partition(":")
        user_ids = self.get_upload_subscriber_ids(name) if kind == "upload" else (name,)
        for user_id in user_ids:
            for websocket in list(self.user_connections.get(user_id, ())):
                try:
                    await websocket.send_text(payload)
                except Exception as error:  # noqa: BLE001 - whatever a dead socket raises
                    logger.warning("Sending to user %s failed: %s", user_id, error)
                    await self.disconnect(user_id, websocket)

    async def disconnect_all(self) -> None:
        for connections in list(self.user_connections.values()):
            for websocket in list(connections):
                try:
                    await websocket.close(code=1012, reason="Server reloading")
                except Exception as error:  # noqa: BLE001 - it is going away either way
                    logger.debug("Closing a connection failed: %s", error)
        self.user_connections.clear()
        self.upload_subscribers.clear()
        self.user_subscriptions.clear()
