"""A worker, which is run again when it has died: ``python worker.py ID [SECONDS]``."""

import asyncio
import sys

from uploads import HISTORY, URL, note_end

from fanwire import UploadProgressPublisher

STEPS = 100


async def work(upload_id: str, seconds: float) -> None:
    publisher = UploadProgressPublisher(URL, history=HISTORY)
    for step in range(1, STEPS + 1):
        await asyncio.sleep(seconds / STEPS)  # the work
        progress = {"upload_id": upload_id, "progress_percent": 100 * step // STEPS}
        message = {"action": "upload_progress", "payload": progress}
        # What an earlier run has published is not published again: the bar stays where it is.
        await publisher.publish_progress(upload_id, message, version=step)
    # First where it lasts, then to who is watching.
    note_end(upload_id, "All is done.")
    end = {"action": "upload_completed", "upload_id": upload_id, "description": "All is done."}
    await publisher.publish_progress(upload_id, end, version=STEPS + 1)
    await publisher.stop(drain_seconds=10)  # the broker may be away just now


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 20))
