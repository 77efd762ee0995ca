"""Live upload progress in one file: FastAPI, fanwire, and a page without any framework.

    uvicorn app:app

Two instances that know of each other's uploads:

    FANWIRE_URL=redis://127.0.0.1:6379 uvicorn app:app --port 8000
    FANWIRE_URL=redis://127.0.0.1:6379 uvicorn app:app --port 8001
"""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse
from starlette.requests import ClientDisconnect

from fanwire import History, get_manager, get_publisher, init_manager, init_publisher


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    init_manager()
    # With a history, a page that is opened late shows at once where the upload stands.
    init_publisher(os.environ.get("FANWIRE_URL", "memory://"), history=History(ttl=3600))
    await get_publisher().start()
    yield
    await get_manager().disconnect_all()
    await get_publisher().stop()


app = FastAPI(lifespan=lifespan)


@app.put("/uploads/{upload_id}", response_model=None)
async def upload(upload_id: str, request: Request) -> dict[str, str | int] | Response:
    """The body is the file. An ``UploadFile`` would be here only after its last byte."""
    expected = int(request.headers.get("content-length", 0))  # 0: sent in chunks, or empty
    digest = hashlib.sha256()
    received = 0
    published_at = 0.0
    try:
        async for chunk in request.stream():
            await asyncio.to_thread(digest.update, chunk)
            received += len(chunk)
            # 20 times a second is live to a person, and a broker has better things to do.
            if time.monotonic() - published_at >= 0.05:
                published_at = time.monotonic()
                percent = 100 * received // expected if expected else 0
                progress = {"upload_id": upload_id, "progress_percent": percent}
                await get_publisher().publish_progress(
                    upload_id, {"action": "upload_progress", "payload": progress}
                )
    except ClientDisconnect:
        await get_publisher().publish_progress(
            upload_id,
            {"action": "upload_failed", "upload_id": upload_id, "error_message": "Cancelled."},
        )
        return Response(status_code=499)  # nobody is left to read it
    description = f"{received} bytes, sha256 {digest.hexdigest()}"
    await get_publisher().publish_progress(
        upload_id,
        {"action": "upload_completed", "upload_id": upload_id, "description": description},
    )
    return {"upload_id": upload_id, "size": received, "sha256": digest.hexdigest()}


@app.websocket("/ws/{user_id}")
async def watch(websocket: WebSocket, user_id: str) -> None:
    """The client sends the ids of the uploads that it watches.

    Whoever asks is believed here. A real app finds out who it is and what they may watch; the demo
    of fanwire (``fanwire/demo/websocket.py``) shows where.
    """
    manager = get_manager()
    await websocket.accept()
    await manager.connect(user_id, websocket)
    try:
        async for upload_id in websocket.iter_text():
            await manager.subscribe_upload(user_id, upload_id, connection=websocket)
    except WebSocketDisconnect:
        pass  # gone in the middle of a message: as good a way to leave as any
    finally:
        await manager.disconnect(user_id, websocket)


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return """<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Upload progress</title>
<link rel="icon" href="data:,">
<style>
  body { font: 1rem/1.6 system-ui, sans-serif; max-width: 36rem; margin: auto; padding: 1rem }
  p { overflow-wrap: anywhere }
  progress { width: 100% }
</style>
<h1>Upload progress</h1>
<p><label>Upload a file: <input type="file" id="file"></label></p>
<p><progress id="bar" max="100" value="0" aria-label="Progress"></progress></p>
<p id="text" role="status">No upload yet.</p>
<p>To watch it elsewhere, open <a id="link" target="_blank"></a></p>
<script>
const id = location.hash.slice(1) || Math.random().toString(36).slice(2);
location.hash = id;
link.href = link.textContent = location.href;
const ws = new WebSocket(`${location.origin.replace("http", "ws")}/ws/guest-${Math.random()}`);
ws.onopen = () => ws.send(id);
ws.onmessage = ({ data }) => {
  const message = JSON.parse(data);
  bar.value = message.payload?.progress_percent ?? bar.value;
  if (message.action === "upload_completed") bar.value = 100;
  text.textContent = message.description ?? message.error_message ?? `${bar.value} %`;
};
file.onchange = () => fetch("/uploads/" + id, { method: "PUT", body: file.files[0] });
</script>
"""
