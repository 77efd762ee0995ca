"""python-socketio's AsyncRedisManager: rooms, and one channel for everything."""

import json
from typing import Any, Protocol

import socketio  # type: ignore[import-not-found]
from contract import Contender

NAMESPACE = "/"
EVENT = "progress"


class DumpableMessage(Protocol):
    def model_dump(self, *, mode: str) -> Any: ...


class RoomManager:
    """Sessions are entered into rooms, and packets go to the connections straight from the manager.

    In an app they would pass through engine.io's queue and writer Task as well.
    """

    def __init__(self, url: str) -> None:
        self._redis = socketio.AsyncRedisManager(url)
        self._server = socketio.AsyncServer(client_manager=self._redis, async_mode="asgi")
        self._server.eio.send_packet = self._send_packet
        self._sockets: dict[str, Any] = {}
        self._sessions: dict[str, dict[Any, str]] = {}
        # Emits from another process, as an upload worker does.
        self._emitter = socketio.AsyncRedisManager(url, write_only=True)

    async def _send_packet(self, engine_id: str, packet: Any) -> None:
        await self._sockets[engine_id].send_text(packet.encode())

    async def connect(self, user_id: str, websocket: Any) -> None:
        engine_id = self._server.eio.generate_id()
        self._sockets[engine_id] = websocket
        session = await self._redis.connect(engine_id, NAMESPACE)
        self._sessions.setdefault(user_id, {})[websocket] = session
        await self._redis.enter_room(session, NAMESPACE, f"user:{user_id}")

    async def disconnect(self, user_id: str, websocket: Any) -> None:
        session = self._sessions[user_id].pop(websocket)
        await self._redis.disconnect(session, NAMESPACE, ignore_queue=True)

    async def subscribe_upload(self, user_id: str, upload_id: str) -> None:
        for session in self._sessions.get(user_id, {}).values():
            await self._redis.enter_room(session, NAMESPACE, f"upload:{upload_id}")

    async def unsubscribe_upload(self, user_id: str, upload_id: str) -> None:
        for session in self._sessions.get(user_id, {}).values():
            await self._redis.leave_room(session, NAMESPACE, f"upload:{upload_id}")

    async def start(self) -> None:
        self._redis.initialize()

    async def stop(self) -> None:
        """Its listener ends with the process."""

    async def publish_progress(self, upload_id: str, message: DumpableMessage) -> None:
        room = f"upload:{upload_id}"
        await self._emitter.emit(EVENT, message.model_dump(mode="json"), room=room)


def _wire(channel: str, body: bytes) -> tuple[bytes, bytes]:
    message = {
        "method": "emit",
        "event": EVENT,
        "data": [json.loads(body)],
        "binary": False,
        "namespace": NAMESPACE,
        "room": channel,
        "skip_sid": None,
        "callback": None,
        "host_id": "another-process",
    }
    return b"socketio", json.dumps(message).encode()


def build(url: str) -> Contender:
    manager = RoomManager(url)
    return Contender(manager, manager, wire=_wire)
