"""What the workers do: count the lines of a text, and tell how far they are.

    dramatiq jobs --processes 2 --threads 4

A redis-server on its usual port is taken for granted; FANWIRE_URL names another one.
"""

import asyncio
import codecs
import os
from pathlib import Path

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import CurrentMessage

import fanwire

URL = os.environ.get("FANWIRE_URL", "redis://127.0.0.1:6379")

broker = RedisBroker(url=URL)
broker.add_middleware(CurrentMessage())  # for `is_retried`
dramatiq.set_broker(broker)
# One for all jobs of a process. A worker only publishes, so it does not call start().
publisher = fanwire.init_publisher(URL, history=fanwire.History(ttl=3600))


MAX_RETRIES = 3


def is_retried(error: BaseException) -> bool:
    """Whether Dramatiq will run the job again."""
    if isinstance(error, UnicodeDecodeError):  # what is no text today is none on the next attempt
        return False
    message = CurrentMessage.get_current_message()
    return message is not None and message.options.get("retries", 0) < MAX_RETRIES


@dramatiq.actor(max_retries=MAX_RETRIES, min_backoff=500, throws=UnicodeDecodeError)
def count_lines(upload_id: str, path: str) -> None:
    try:
        asyncio.run(_count_lines(upload_id, Path(path)))  # an event loop for each job
    except BaseException as error:
        if not is_retried(error):
            Path(path).unlink(missing_ok=True)
        raise
    Path(path).unlink()


async def _count_lines(upload_id: str, path: Path) -> None:
    # What the block does not tell is told for it: that it begins, ends, or ends in an exception.
    # One after which Dramatiq tries the job again is no end.
    async with publisher.track(upload_id, retrying=is_retried) as progress:
        progress.stage("counting_lines")
        decoder = codecs.getincrementaldecoder("utf-8")()
        lines = 0
        with path.open("rb") as file:
            progress.total = os.fstat(file.fileno()).st_size
            while chunk := await asyncio.to_thread(file.read, 65_536):
                lines += decoder.decode(chunk).count("\n")
                progress.advance(len(chunk))
        decoder.decode(b"", final=True)
        progress.result(description=f"{lines} lines")
