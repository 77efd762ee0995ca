"""The web side: takes a file, hands it to a worker, and shows whoever watches how far that is.

    uvicorn app:app --port 8000

A redis-server on its usual port is taken for granted; FANWIRE_URL names another one.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect

from fanwire import get_manager, init_manager
from jobs import count_lines, publisher


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    init_manager()
    await publisher.start()  # the same object as in the workers, which here listens as well
    yield
    await get_manager().disconnect_all()
    await publisher.stop()


app = FastAPI(lifespan=lifespan)


@app.put("/uploads/{upload_id}", status_code=202)
async def upload(upload_id: str, request: Request) -> dict[str, str]:
    # Where workers run on other machines, this is a place that they can read as well.
    with tempfile.NamedTemporaryFile(delete=False) as file:
        async for chunk in request.stream():
            await asyncio.to_thread(file.write, chunk)
    await asyncio.to_thread(count_lines.send, upload_id, file.name)
    return {"upload_id": upload_id, "status": "queued"}


@app.websocket("/uploads/{upload_id}")
async def watch(websocket: WebSocket, upload_id: str) -> None:
    """Your app decides here who this is, and whether they may watch this upload."""
    manager = get_manager()
    user_id = f"guest-{id(websocket)}"
    await websocket.accept()
    await manager.connect(user_id, websocket)
    try:
        # Who comes late is told at once where the upload stands: jobs.py asks for a history.
        await manager.subscribe_upload(user_id, upload_id, connection=websocket)
        async for _ in websocket.iter_text():
            pass
    except WebSocketDisconnect:
        pass
    finally:
        await manager.disconnect(user_id, websocket)
