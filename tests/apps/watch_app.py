"""An app with live progress as its users see it: who watches an upload is given its state first.

``create`` makes it, for ``uvicorn --factory``; the broker comes from the environment. ``bare``
makes one that has nothing to do with fanwire.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

import fanwire


def create() -> FastAPI:
    manager = fanwire.ConnectionManager()
    publisher = fanwire.UploadProgressPublisher(manager=manager, history=fanwire.History())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await publisher.start()
        yield
        await manager.disconnect_all()
        await publisher.stop()

    app = FastAPI(lifespan=lifespan)

    @app.get("/state")
    async def state() -> dict[str, Any]:
        return {"pid": os.getpid(), **publisher.health()}

    @app.post("/uploads/{upload_id}")
    async def progress(upload_id: str, message: dict[str, Any]) -> str:
        receipt = await publisher.publish_progress(upload_id, message, receipt=True)
        return receipt.status

    @app.websocket("/ws/{user_id}")
    async def ws(websocket: WebSocket, user_id: str) -> None:
        await websocket.accept()
        await manager.connect(user_id, websocket)
        try:
            async for text in websocket.iter_text():
                message = fanwire.ClientMessage.parse(text)
                if message.upload_id is not None:
                    await manager.subscribe_upload(
                        user_id, message.upload_id, connection=websocket, since=message.since
                    )
        finally:
            await manager.disconnect(user_id, websocket)

    return app


def bare() -> FastAPI:
    app = FastAPI()

    @app.get("/state")
    async def state() -> dict[str, Any]:
        return {"pid": os.getpid()}

    @app.websocket("/ws/{user_id}")
    async def ws(websocket: WebSocket, user_id: str) -> None:
        await websocket.accept()
        with suppress(WebSocketDisconnect):
            await websocket.receive_text()

    return app
