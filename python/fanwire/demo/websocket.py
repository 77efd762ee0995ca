"""The WebSocket endpoint, and the protocol that its clients speak.

The client says ``{"type": "auth", "token": …}`` within five seconds and is answered
``auth_success``. Then it sends ``subscribe_upload`` (with ``since``, if it comes back and has some
of it already), ``unsubscribe_upload``, ``ping`` (answered with ``pong``) and ``pong`` (the answer
to the server's ``ping``). Whatever else it receives comes through the manager. The repository's
``docs/client-protocol.md`` has all of it.
"""

import asyncio
from enum import IntEnum
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from fastapi.websockets import WebSocketState
from pydantic_core import from_json

from fanwire import ClientMessage, get_manager, get_publisher

from .auth import user_of_token

router = APIRouter()

_LONGEST_UPLOAD_ID = 200

_telling: set[asyncio.Future[None]] = set()


class CloseCode(IntEnum):
    AUTH_TIMEOUT = 4001
    AUTH_REQUIRED = 4002
    INVALID_TOKEN = 4003
    INVALID_MESSAGE = 4004


class RefusedError(Exception):
    """This connection ends here; the client is told why."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@router.websocket("/ws")
async def watch_uploads(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        user_id = await _authenticate(websocket)
        await _serve(websocket, user_id)
    except RefusedError as refused:
        await websocket.close(refused.code, refused.reason)
    except WebSocketDisconnect:
        return  # the client left, which is how most conversations end


async def _authenticate(websocket: WebSocket) -> str:
    try:
        async with asyncio.timeout(websocket.app.state.settings.auth_timeout_seconds):
            text = await _receive_text(websocket)
    except TimeoutError:
        raise await _auth_error(
            websocket, CloseCode.AUTH_TIMEOUT, "No auth message in time"
        ) from None
    try:
        token = ClientMessage.parse(text).token
    except ValueError:
        token = None
    if token is None:
        if not _is_json(text):
            raise RefusedError(CloseCode.INVALID_MESSAGE, "Not JSON")
        raise await _auth_error(websocket, CloseCode.AUTH_REQUIRED, "Auth required")
    user_id = user_of_token(token)
    if user_id is None:
        raise await _auth_error(websocket, CloseCode.INVALID_TOKEN, "Invalid token")
    return user_id


def _is_json(text: str) -> bool:
    try:
        from_json(text)
    except ValueError:
        return False
    return True


async def _auth_error(websocket: WebSocket, code: CloseCode, reason: str) -> RefusedError:
    await websocket.send_json({"action": "auth_error", "message": reason})
    return RefusedError(code, reason)


async def _serve(websocket: WebSocket, user_id: str) -> None:
    manager = get_manager()
    # Registered before the client hears that it is: from auth_success on, it misses nothing.
    await manager.connect(user_id, websocket)
    heartbeat = asyncio.create_task(_send_heartbeats(websocket), name=f"heartbeat of {user_id}")
    try:
        await websocket.send_json({"action": "auth_success", "user_id": user_id})
        if (state := get_publisher().health()["state"]) != "live":
            await websocket.send_json(_broker_state(state))
        while True:
            await _handle(websocket, user_id, await _receive_text(websocket))
    finally:
        # Whatever ended the conversation: neither the heartbeat nor a subscription outlives it.
        heartbeat.cancel()
        await manager.disconnect(user_id, websocket)


async def _handle(websocket: WebSocket, user_id: str, text: str) -> None:
    manager = get_manager()
    try:
        message = ClientMessage.parse(text)
    except ValueError:
        raise RefusedError(CloseCode.INVALID_MESSAGE, "Invalid message") from None
    match message.action:
        # A real application asks here whether this user may watch this upload.
        case "subscribe_upload":
            # First comes where the upload stands, or what this tab has missed since it was cut off.
            await manager.subscribe_upload(
                user_id, _upload_id(message), connection=websocket, since=message.since
            )
        case "unsubscribe_upload":
            await manager.unsubscribe_upload(user_id, _upload_id(message))
        case "ping":
            await websocket.send_json({"action": "pong"})
        case "pong":
            pass  # the answer to our own ping; that the socket took it is all we wanted to know
        case _:
            raise RefusedError(CloseCode.INVALID_MESSAGE, "Signed in already")


def tell_broker_state(_old: str, new: str, _error: str | None) -> None:
    """Every page here shows whether what is published elsewhere reaches it at the moment."""
    for user_id in list(get_manager().user_connections):
        telling = asyncio.ensure_future(get_manager().send_to_user(user_id, _broker_state(new)))
        _telling.add(telling)
        telling.add_done_callback(_telling.discard)


def _broker_state(state: str) -> dict[str, str]:
    return {"action": "broker", "state": state}


def _upload_id(message: ClientMessage) -> str:
    upload_id = message.upload_id or ""
    if not 1 <= len(upload_id) <= _LONGEST_UPLOAD_ID:
        raise RefusedError(CloseCode.INVALID_MESSAGE, "Invalid upload_id")
    return upload_id


async def _send_heartbeats(websocket: WebSocket) -> None:
    interval: float = websocket.app.state.settings.heartbeat_seconds
    while True:
        await asyncio.sleep(interval)
        if websocket.application_state is not WebSocketState.CONNECTED:
            return
        try:
            await websocket.send_json({"action": "ping"})
        except WebSocketDisconnect:
            return  # the endpoint learns of it from its own receive, and cleans up


async def _receive_text(websocket: WebSocket) -> str:
    # Not receive_text(): that fails with a KeyError when a client sends a binary frame.
    message: dict[str, Any] = dict(await websocket.receive())
    # The manager closes a connection that is too slow; what it still says then is not answered.
    closed = websocket.application_state is not WebSocketState.CONNECTED
    if closed or message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1006))
    text = message.get("text")
    if not isinstance(text, str):
        raise RefusedError(CloseCode.INVALID_MESSAGE, "Text frames only")
    return text
