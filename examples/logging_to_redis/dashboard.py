"""Shows in a browser what the two programs publish.

    uvicorn dashboard:app --port 8000

It needs no fanwire: what a program publishes are plain messages on channels of Redis.
"""

import asyncio
import os

from fastapi import FastAPI, WebSocket
from fastapi.responses import HTMLResponse
from redis.asyncio import Redis
from redis.exceptions import RedisError

URL = os.environ.get("FANWIRE_URL", "redis://127.0.0.1:6379")
PAGE = """<!doctype html>
<meta charset="utf-8">
<title>linecount</title>
<pre id="lines"></pre>
<script>
  const lines = document.getElementById("lines");
  function listen() {
    const socket = new WebSocket(`${location.origin.replace("http", "ws")}/live`);
    socket.onmessage = ({ data }) => {
      // As text: whoever can write a log line must not write into the page.
      lines.append(data + "\\n");
      if (lines.childNodes.length > 1000) lines.firstChild.remove();
    };
    socket.onclose = () => setTimeout(listen, 1000);
  }
  listen();
</script>
"""

app = FastAPI()


@app.get("/", response_class=HTMLResponse)
def page() -> str:
    return PAGE


@app.websocket("/live")
async def live(websocket: WebSocket) -> None:
    """Your app decides here who this is: log lines are not for everybody."""
    await websocket.accept()
    forwarding = asyncio.create_task(forward(websocket))
    try:
        async for _ in websocket.iter_text():  # it ends when the page is gone
            pass
    finally:
        forwarding.cancel()


async def forward(websocket: WebSocket) -> None:
    """Each message as it was published; one connection to Redis for each page."""
    try:
        async with Redis.from_url(URL) as redis, redis.pubsub() as channels:
            await channels.psubscribe("linecount:*")
            async for message in channels.listen():
                if message["type"] == "pmessage":
                    await websocket.send_text(message["data"].decode())
                else:
                    await websocket.send_text('{"event": "listening"}')
    except RedisError:
        await websocket.close(1013, "Redis is away")  # the page comes back in a second
