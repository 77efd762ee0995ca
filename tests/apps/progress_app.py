"""A small FastAPI app with upload progress, started once per instance.

Arguments: the descriptor of a listening socket, the broker's URL, and "history" for an app that has
one. The WebSocket endpoint never disconnects anybody by itself: what happens to clients that vanish
is left to fanwire.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from fanwire import History, get_manager, get_publisher, init_manager, init_publisher


def make_app(url: str, history: History | None) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        init_manager()
        init_publisher(url, history=history)
        await get_publisher().start()
        yield
        await get_manager().disconnect_all()
        await get_publisher().stop()

    app = FastAPI(lifespan=lifespan)

    @app.get("/state")
    async def state() -> dict[str, Any]:
        manager = get_manager()
        return {
            "connections": {user: len(held) for user, held in manager.user_connections.items()},
            "subscribers": {
                key: sorted(users) for key, users in manager.upload_subscribers.items()
            },
            "running": get_publisher().running,
        }

    @app.post("/uploads/{upload_id}/progress")
    async def progress(upload_id: str, message: dict[str, Any]) -> None:
        await get_publisher().publish_progress(upload_id, message)

    @app.post("/users/{user_id}/messages")
    async def to_user(user_id: str, message: dict[str, Any]) -> None:
        await get_publisher().publish_to_user(user_id, message)

    @app.websocket("/ws/{user_id}")
    async def ws(websocket: WebSocket, user_id: str) -> None:
        await websocket.accept()
        manager = get_manager()
        await manager.connect(user_id, websocket)
        try:
            async for message in websocket.iter_json():
                since = message.get("since")
                await manager.subscribe_upload(
                    user_id,
                    message["upload_id"],
                    connection=websocket,
                    since=since and (since["epoch"], since["offset"]),
                )
                await manager.send_to_user(user_id, {"action": "subscribed", **message})
        except WebSocketDisconnect:
            pass  # deliberately nothing: the next failed send has to clean up
        await asyncio.Event().wait()

    return app


def main(descriptor: str, url: str, history: str = "") -> None:
    listening = socket.socket(fileno=int(descriptor))
    app = make_app(url, History() if history else None)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
