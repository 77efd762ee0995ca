"""Works on an `UploadFile`, and shows live how far that is.

    uvicorn app:app --port 8000

FANWIRE_URL names a broker that several instances share; without one each is on its own.
"""

import asyncio
import codecs
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, UploadFile, WebSocket, WebSocketDisconnect

from fanwire import History, get_manager, get_publisher, init_manager, init_publisher


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    init_manager()
    # Because of the history, who comes late is told at once where the upload stands.
    init_publisher(os.environ.get("FANWIRE_URL", "memory://"), history=History(ttl=3600))
    await get_publisher().start()
    yield
    await get_manager().disconnect_all()
    await get_publisher().stop()


app = FastAPI(lifespan=lifespan)


def in_words(error: BaseException) -> str:
    """What the watchers are told; by default it is the name of the exception, and no more."""
    return "It is no text in UTF-8." if isinstance(error, UnicodeDecodeError) else "It failed."


@app.post("/uploads/{upload_id}")
async def upload(upload_id: str, file: UploadFile) -> dict[str, int]:
    """When this begins, all of the file has come; its progress is that of what is done with it."""
    lines, decoder = 0, codecs.getincrementaldecoder("utf-8")()
    try:
        async with get_publisher().track(upload_id, file.size, describe=in_words) as progress:
            progress.stage("counting_lines")
            async for chunk in progress.wrap(file):
                lines += (await asyncio.to_thread(decoder.decode, chunk)).count("\n")
            decoder.decode(b"", final=True)
            progress.result(description=f"{file.filename} has {lines} lines.")
    except UnicodeDecodeError as error:  # the watchers have been told
        raise HTTPException(415, in_words(error)) from error
    return {"lines": lines}


@app.websocket("/uploads/{upload_id}")
async def watch(websocket: WebSocket, upload_id: str) -> None:
    """Your app decides here who this is, and whether they may watch this upload."""
    manager = get_manager()
    user_id = f"guest-{id(websocket)}"
    await websocket.accept()
    await manager.connect(user_id, websocket)
    try:
        await manager.subscribe_upload(user_id, upload_id, connection=websocket)
        async for _ in websocket.iter_text():
            pass
    except WebSocketDisconnect:
        pass
    finally:
        await manager.disconnect(user_id, websocket)
