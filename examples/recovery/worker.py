"""A worker, which is run again when it has died: ``python worker.py ID [SECONDS] [FAILS_AT]``."""

import asyncio
import sys

from uploads import HISTORY, URL, note_end

from fanwire import UploadProgressPublisher

STEPS = 100


def check(step: int, fails_at: int | None) -> None:
    if step == fails_at:
        raise ValueError(f"step {step} makes no sense")


async def work(upload_id: str, seconds: float, fails_at: int | None) -> None:
    publisher = UploadProgressPublisher(URL, history=HISTORY)
    try:
        for step in range(1, STEPS + 1):
            await asyncio.sleep(seconds / STEPS)  # the work
            check(step, fails_at)
            progress = {"upload_id": upload_id, "progress_percent": 100 * step // STEPS}
            message = {"action": "upload_progress", "payload": progress}
            # What an earlier run has published is not published again: the bar stays where it is.
            await publisher.publish_progress(upload_id, message, version=step)
    except ValueError as error:  # what the next run would fail of as well
        # First where it lasts, then to who is watching.
        note_end(upload_id, error=str(error))
        end = {"action": "upload_failed", "upload_id": upload_id, "error_message": str(error)}
    else:
        note_end(upload_id, result="All is done.")
        end = {"action": "upload_completed", "upload_id": upload_id, "description": "All is done."}
    await publisher.publish_progress(upload_id, end, version=STEPS + 1)
    await publisher.stop(drain_seconds=10)  # the broker may be away just now


if __name__ == "__main__":
    _, name, *rest = sys.argv
    seconds = float(rest[0]) if rest else 20
    asyncio.run(work(name, seconds, int(rest[1]) if len(rest) > 1 else None))
