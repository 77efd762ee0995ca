"""A real server for the end-to-end workload: uvicorn, Starlette's WebSockets, one contender."""

import asyncio
import json
import logging
import socket
from typing import Any

import uvicorn
from contract import Manager
from starlette.websockets import WebSocket, WebSocketDisconnect

BUFFER_BYTES = 1 << 16
START_SECONDS = 10.0


class Server:
    """One endpoint: a client says who it is and which upload it watches, and is told "ready"."""

    def __init__(self, manager: Manager, uploads: list[str]) -> None:
        self._manager = manager
        self._uploads = uploads
        # Small buffers, the same for all: a client that stops reading is felt after 300 kB or so.
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app,
                log_level=logging.CRITICAL,
                interface="asgi3",
                lifespan="off",
                ws_ping_interval=None,
                ws_per_message_deflate=False,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve([self._socket]))
        async with asyncio.timeout(START_SECONDS):
            while not self._server.started:  # noqa: ASYNC110 - uvicorn sets no event
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        if self._task is not None:
            await asyncio.wait([self._task], timeout=START_SECONDS)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        websocket = WebSocket(scope, receive, send)
        await websocket.accept()
        greeting = json.loads(await websocket.receive_text())
        user_id = greeting["user_id"]
        await self._manager.connect(user_id, websocket)
        await self._manager.subscribe_upload(user_id, self._uploads[int(greeting["number"])])
        try:
            await websocket.send_text("ready")
            while True:
                await websocket.receive_text()
        except WebSocketDisconnect:
            await self._manager.disconnect(user_id, websocket)
