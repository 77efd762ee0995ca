"""What the workers do: hash the file, compress it, and tell how far they are.

    celery -A jobs worker --concurrency 2 --loglevel INFO

A redis-server on its usual port is taken for granted; FANWIRE_URL names another one.
"""

import hashlib
import logging
import os
import zlib
from pathlib import Path
from typing import Any

from celery import Celery, Task
from celery.exceptions import Retry
from celery.signals import after_setup_logger

import fanwire
import fanwire.events

URL = os.environ.get("FANWIRE_URL", "redis://127.0.0.1:6379")

app = Celery("jobs", broker=URL)
app.conf.broker_connection_retry_on_startup = True
# Both are made before Celery forks, and used in each of its processes.
publisher = fanwire.init_publisher(URL)
events = fanwire.events.init_publisher(URL, namespace="jobs")


@after_setup_logger.connect
def log_to_redis(logger: logging.Logger, **_: Any) -> None:
    """What Celery and the tasks log goes to the channel `jobs:logs`, too."""
    logger.addHandler(fanwire.events.RedisLogHandler())


@app.task(bind=True, max_retries=1, default_retry_delay=1)
def digest(self: "Task[[str, str], None]", upload_id: str, path: str) -> None:
    # What the block does not tell is told for it: that it begins, ends, or ends in an exception.
    # One that Celery raises to try the task again is no end.
    with publisher.track(upload_id, retrying=Retry) as progress:
        try:
            size = Path(path).stat().st_size
        except FileNotFoundError as error:  # it may be on its way
            raise self.retry(exc=error) from error
        progress.total = 2 * size  # it is read twice
        progress.stage("hashing")
        sha256 = hashlib.sha256()
        with Path(path).open("rb") as file:
            for chunk in progress.wrap(file, chunk_size=65_536):
                sha256.update(chunk)
        progress.stage("compressing")
        compressor, compressed = zlib.compressobj(), 0
        with Path(path).open("rb") as file:
            for chunk in progress.wrap(file, chunk_size=65_536):
                compressed += len(compressor.compress(chunk))
        compressed += len(compressor.flush())
        progress.result(description=f"sha256 {sha256.hexdigest()}, {compressed} of {size} bytes")
    events.publish_event("digested", {"path": path, "size": size, "compressed": compressed})
