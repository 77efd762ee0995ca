"""The app that is soaked: it publishes what it is told to, and serves those who watch.

Arguments: the descriptor of a listening socket, the broker's URL, and for how many seconds an
upload's history is kept; without the last there is no history.
"""

import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, WebSocket
from fastapi.websockets import WebSocketState

from fanwire import (
    ClientMessage,
    History,
    get_manager,
    get_publisher,
    init_manager,
    init_publisher,
)

# Fewer messages than an upload has, so that a history is trimmed, and more than are missed by who
# is away for a moment.
HISTORY_SIZE = 64


async def texts(websocket: WebSocket) -> AsyncIterator[str]:
    """What a client says, until it has left or the manager has closed its connection."""
    while True:
        event = await websocket.receive()
        if event["type"] == "websocket.disconnect":
            return
        if websocket.application_state is not WebSocketState.CONNECTED:
            return
        yield event["text"]


async def subscribe(user_id: str, websocket: WebSocket, text: str) -> None:
    message = ClientMessage.parse(text)
    assert message.upload_id is not None, f"{message} is not said here"
    await get_manager().subscribe_upload(
        user_id, message.upload_id, connection=websocket, since=message.since
    )


async def publish(order: Any, *, history: bool) -> str:
    """Publishes one message and says what became of it."""
    receipt = await get_publisher().publish_progress(
        order["upload_id"],
        order["message"],
        receipt=True,
        idempotency_key=order["idempotency_key"] if history else None,
    )
    return receipt.status


def make_app(url: str, ttl_seconds: float | None) -> FastAPI:
    history = ttl_seconds is not None
    options: dict[str, Any] = {}
    if ttl_seconds is not None:
        options["history"] = History(size=HISTORY_SIZE, ttl=ttl_seconds)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        init_manager()
        await init_publisher(url, **options).start()
        yield
        await get_manager().disconnect_all()
        await get_publisher().stop()

    app = FastAPI(lifespan=lifespan)

    @app.get("/state")
    async def state() -> dict[str, Any]:
        manager, publisher = get_manager(), get_publisher()
        figures = {k: v for k, v in publisher.stats().items() if isinstance(v, int)}
        return {
            "state": publisher.health()["state"],
            "figures": {
                **figures,
                "users": len(manager.user_connections),
                "watched_uploads": len(manager.upload_subscribers),
            },
        }

    @app.websocket("/publish")
    async def publishing(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in texts(websocket):
            status = await publish(json.loads(text), history=history)
            await websocket.send_json({"status": status})

    @app.websocket("/ws/{user_id}")
    async def watching(websocket: WebSocket, user_id: str) -> None:
        await websocket.accept()
        await get_manager().connect(user_id, websocket)
        try:
            async for text in texts(websocket):
                await subscribe(user_id, websocket, text)
        finally:
            await get_manager().disconnect(user_id, websocket)

    return app


def main(descriptor: str, url: str, ttl_seconds: str | None = None) -> None:
    listening = socket.socket(fileno=int(descriptor))
    app = make_app(url, None if ttl_seconds is None else float(ttl_seconds))
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
