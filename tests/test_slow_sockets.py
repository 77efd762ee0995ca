"""Real sockets: a client that stops reading among others that read."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from fanwire import ConnectionManager
from tests.conftest import Broker
from tests.deadlines import bounded, until
from tests.delivery import delivering

# Large enough to fill the buffers of a socket after some dozens.
TEXT = "x" * 100_000


def app(manager: ConnectionManager) -> Starlette:
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        user = str(websocket.path_params["user"])
        await manager.connect(user, websocket)
        await manager.subscribe_upload(user, "u1")
        try:
            while True:
                await websocket.receive_text()
        except WebSocketDisconnect:
            await manager.disconnect(user, websocket)

    return Starlette(routes=[WebSocketRoute("/{user}", endpoint)])


@asynccontextmanager
async def serving(manager: ConnectionManager) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            app(manager), log_level="error", lifespan="off", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        running = asyncio.ensure_future(server.serve(sockets=[listening]))
        try:
            yield f"ws://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


async def open_client(url: str, **options: Any) -> ClientConnection:
    return await connect(url, ping_interval=None, proxy=None, compression=None, **options)


@pytest.mark.parametrize(
    ("options", "counter"),
    [
        ({"max_queued_bytes": 2_000_000, "send_timeout_seconds": 60.0}, "overflowed"),
        ({"max_queued_bytes": 1 << 30, "send_timeout_seconds": 1.0}, "timed_out"),
    ],
    ids=["overflow", "deadline"],
)
async def test_a_client_that_stops_reading(
    options: dict[str, Any], counter: str, broker: Broker
) -> None:
    told: list[Any] = []
    options |= {"max_queued_messages": 100_000, "overflow": "disconnect"}
    options |= {"on_disconnect": lambda connection, reason: told.append(reason)}
    async with AsyncExitStack() as stack:
        delivery = await stack.enter_async_context(delivering(broker.url, **options))
        manager = delivery.manager
        url = await stack.enter_async_context(serving(manager))
        # It reads no more than one message ahead, and nobody asks for that one.
        slow = await open_client(f"{url}/slow", max_queue=1)
        healthy = [await open_client(f"{url}/healthy-{n}") for n in range(5)]
        await until(lambda: len(manager.user_connections) == 7, "all are connected")

        sent = 0
        while "slow" in manager.user_connections:
            assert sent < 5_000, "it never came to be slow"
            delivery.publish(("upload:u1", f"{sent} {TEXT}"))
            for client in healthy:
                text = await bounded(client.recv())
                assert text == f'"{sent} {TEXT}"'
            sent += 1
        assert delivery.figures()[counter] == delivery.figures()["disconnected"] == 1
        assert len(manager.user_connections) == 6

        # What comes afterwards comes to all the others.
        delivery.publish(("upload:u1", "after"))
        assert [await bounded(client.recv()) for client in healthy] == ['"after"'] * 5
        await until(lambda: told == [{"overflowed": "overflow"}.get(counter, "send timed out")])

        # And the slow one finds out when it reads on: what it gets has no gap, and then the end.
        texts: list[str] = []
        with suppress(ConnectionClosed):
            while True:
                texts.append(str(await bounded(slow.recv())))
        assert [text.split()[0] for text in texts] == [f'"{n}' for n in range(len(texts))]
        assert len(texts) < sent
        assert slow.close_code in (1013, 1006)
        for client in healthy:
            with suppress(ConnectionClosed):
                await client.close()
