"""An instance of an app with live progress; ``hosts.py`` runs it.

Arguments of the process: the descriptor of a listening socket, the broker's URL, and the size of
the history (0 for none). It ends when its standard input does, so it never outlives who started it.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.websockets import WebSocketState

import fanwire

# Few, so that a client which does not read for a while is given up, and has to come back.
MAX_QUEUED_MESSAGES = 64


def make_app(url: str, history: fanwire.History | None) -> FastAPI:
    manager = fanwire.ConnectionManager(max_queued_messages=MAX_QUEUED_MESSAGES)
    publisher = fanwire.UploadProgressPublisher(url, manager=manager, history=history)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await publisher.start()
        yield
        await manager.disconnect_all()
        await publisher.stop()

    app = FastAPI(lifespan=lifespan)

    @app.get("/figures")
    async def figures() -> dict[str, int]:
        """The counters, those of deliveries included, and who is connected."""
        stats = publisher.stats()
        counters = {name: n for name, n in stats.items() if isinstance(n, int)}
        return {**counters, "connected": len(manager.user_connections)}

    @app.get("/block")
    async def block(seconds: float) -> dict[str, int]:
        """Nothing else runs meanwhile. How many messages the listener has got all the same."""
        before = publisher.stats()["received"]
        time.sleep(seconds)  # noqa: ASYNC251 (that is the fault)
        return {"received": publisher.stats()["received"] - before}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return publisher.health()

    @app.websocket("/ws")
    async def watch(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            user_id = (await _received(websocket))["token"]
            await manager.connect(user_id, websocket)
            try:
                await websocket.send_json({"action": "auth_success", "user_id": user_id})
                while True:
                    await _handle(manager, websocket, user_id, await _received(websocket))
            finally:
                await manager.disconnect(user_id, websocket)
        except WebSocketDisconnect:
            return

    return app


def make_config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app, log_level="warning", ws_per_message_deflate=False, ws_ping_interval=None
    )


async def _handle(
    manager: fanwire.ConnectionManager, websocket: WebSocket, user_id: str, message: dict[str, Any]
) -> None:
    match message:
        case {"action": "subscribe_upload", "upload_id": upload_id, "since": since}:
            position = (since["epoch"], since["offset"]) if since else None
            await manager.subscribe_upload(user_id, upload_id, connection=websocket, since=position)
        case {"action": "ping"}:
            await websocket.send_json({"action": "pong"})
        case _:
            raise ValueError(f"not of the client protocol: {message}")


async def _received(websocket: WebSocket) -> dict[str, Any]:
    event = dict(await websocket.receive())
    # The manager closes a connection that is too slow; what it still says then is not answered.
    closed = websocket.application_state is not WebSocketState.CONNECTED
    if closed or event["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(event.get("code", 1006))
    message: dict[str, Any] = json.loads(event["text"])
    return message


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main(descriptor: str, url: str, history_size: str) -> None:
    threading.Thread(target=_end_with_input, daemon=True).start()
    history = fanwire.History(size=int(history_size)) if int(history_size) else None
    listening = socket.socket(fileno=int(descriptor))
    uvicorn.Server(make_config(make_app(url, history))).run(sockets=[listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
