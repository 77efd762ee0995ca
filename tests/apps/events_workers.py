"""What servers of three kinds load before they fork: a publisher that has published already.

``app`` is for gunicorn, ``celery_app`` for Celery, and ``dramatiq_work`` for Dramatiq. Where Redis
is says ``EVENTS_URL``; which of them is meant, ``EVENTS_FOR``.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

from fanwire import events

URL, SERVER = os.environ["EVENTS_URL"], os.environ["EVENTS_FOR"]

publisher = events.init_publisher(URL)
publisher.publish_event("loaded")
LOADED_BY = os.getpid()
# What all jobs publish together may wait in one process.
STEPS = 200


def work(n: int) -> None:
    """Many lines and an event at the very end, by whichever process has got the job."""
    for step in range(STEPS):
        publisher.publish_log({"event": "step", "job": n, "step": step})
    publisher.publish_event("done", {"job": n, "forked": os.getpid() != LOADED_BY})


def app(environ: dict[str, Any], start: Callable[..., object]) -> Iterable[bytes]:
    work(int(environ["PATH_INFO"].strip("/")))
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]


if SERVER == "celery":
    import celery

    celery_app = celery.Celery("jobs", broker=URL)
    celery_app.conf.broker_connection_retry_on_startup = True
    celery_work = celery_app.task(work, name="work")

if SERVER == "dramatiq":
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    dramatiq.set_broker(RedisBroker(url=URL))
    dramatiq_work = dramatiq.actor(actor_name="work", queue_name="jobs")(work)
