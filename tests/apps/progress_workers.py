"""What gunicorn loads before it forks: an upload publisher that has published already.

Where Redis is says ``EVENTS_URL``. A request is a job with an event loop of its own.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from typing import Any

import fanwire

STEPS = 20

publisher = fanwire.UploadProgressPublisher(os.environ["EVENTS_URL"], strict=True)
asyncio.run(publisher.publish_progress("loaded", {"by": os.getpid()}))
assert publisher.publish_nowait("loaded", {"by": os.getpid()})


async def work(upload_id: str) -> None:
    for step in range(STEPS):
        if step % 2:
            assert publisher.publish_nowait(upload_id, {"step": step, "by": os.getpid()})
        else:
            await publisher.publish_progress(upload_id, {"step": step, "by": os.getpid()})
    await publisher.publish_progress(upload_id, {"step": "done", "by": os.getpid()})


def app(environ: dict[str, Any], start: Callable[..., object]) -> Iterable[bytes]:
    asyncio.run(work(environ["PATH_INFO"].strip("/")))
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]
