"""gunicorn's settings: the broker counts the workers that are ready, by their master's process id.

A worker that was forked and is not ready yet does not hear that it is to end.
"""

import os
from typing import Any

import redis


def post_worker_init(worker: Any) -> None:
    with redis.Redis.from_url(os.environ["EVENTS_URL"]) as client:
        client.incr(f"workers of {worker.ppid}")
