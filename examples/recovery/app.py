"""Who watches: the WebSocket endpoint, how an upload ended, and the page. ``uvicorn app:app``"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse
from uploads import HISTORY, URL, end_of

from fanwire import ClientMessage, get_manager, init_manager, init_publisher


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    manager = init_manager()
    publisher = init_publisher(URL, history=HISTORY)
    await publisher.start()
    yield
    await manager.disconnect_all()
    await publisher.stop()


app = FastAPI(lifespan=lifespan)


@app.websocket("/ws/{user_id}")
async def watch(websocket: WebSocket, user_id: str) -> None:
    """Whoever asks is believed here; a real app finds out who it is and what they may watch."""
    manager = get_manager()
    await websocket.accept()
    await manager.connect(user_id, websocket)
    try:
        async for text in websocket.iter_text():
            message = ClientMessage.parse(text)
            if message.action == "subscribe_upload" and message.upload_id is not None:
                await manager.subscribe_upload(
                    user_id, message.upload_id, connection=websocket, since=message.since
                )
    except ValueError as error:  # not of the protocol
        await websocket.close(4004, str(error)[:100])
    except WebSocketDisconnect:
        pass
    finally:
        await manager.disconnect(user_id, websocket)


@app.get("/uploads/{upload_id}")
def how_it_ended(upload_id: str) -> dict[str, str | None]:
    return end_of(upload_id)


@app.get("/")
def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"))
