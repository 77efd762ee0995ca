"""Real servers that load the application, fork, and run it in their children."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker

from tests.deadlines import until_blocking
from tests.events import Tap
from tests.interpreters import ROOT, environment
from tests.redis_server import RedisServer, free_port

JOBS, STEPS, APP = 40, 200, "tests.apps.events_workers"
GUNICORN = ["--config", "python:tests.apps.gunicorn_config"]


@contextmanager
def server(kind: str, url: str, *arguments: str) -> Iterator[int]:
    """Runs until the block is left; then it has to end by itself, and in good order.

    Gives the id of its first process.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", kind, *arguments],
        env={**environment(), "EVENTS_URL": url, "EVENTS_FOR": kind, "PYTHONWARNINGS": "ignore"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process.pid
        process.terminate()
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
        assert "Traceback" not in output and "panicked" not in output, output
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.communicate()


class Seen:
    """Everything that came so far."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self.jobs: Counter[int] = Counter()
        self.steps: dict[int, list[int]] = {}
        self.forked: set[bool] = set()

    def look(self) -> "Seen":
        for channel, message in self._tap.messages():
            if channel == "logs":
                self.steps.setdefault(message["job"], []).append(message["step"])
            elif message["type"] == "done":
                self.jobs[message["data"]["job"]] += 1
                self.forked.add(message["data"]["forked"])
        return self

    def check(self, *, forked: bool = True) -> None:
        """Each job's messages once, and in order, by processes that were forked or not."""
        assert self.jobs == Counter(range(JOBS))
        assert self.forked == {forked}
        assert self.steps == {n: list(range(STEPS)) for n in range(JOBS)}


@pytest.fixture
def seen(own_redis: RedisServer) -> Iterator[Seen]:
    tap = Tap(own_redis)
    yield Seen(tap)
    tap.close()


def run(seen: Seen, give: Callable[[int], Any]) -> None:
    for n in range(JOBS):
        give(n)
    until_blocking(lambda: sum(seen.look().jobs.values()) >= JOBS, "all jobs are done")


def gunicorns_workers(redis_server: RedisServer, master: int) -> int:
    """How many of them are ready."""
    count: Any = redis_server.client.get(f"workers of {master}")
    return int(count or 0)


def test_gunicorn_that_loads_the_app_before_it_forks(own_redis: RedisServer, seen: Seen) -> None:
    port = free_port()

    def ask(n: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{n}", timeout=20) as answer:
                return bool(answer.read() == b"done")
        except urllib.error.URLError as error:
            if isinstance(error.reason, ConnectionRefusedError):
                return False
            raise

    options = ["--preload", "--workers", "3", "--bind", f"127.0.0.1:{port}", f"{APP}:app"]
    with server("gunicorn", own_redis.url, *GUNICORN, *options) as master:
        until_blocking(lambda: gunicorns_workers(own_redis, master) == 3, "all workers are ready")
        run(seen, lambda n: until_blocking(lambda: ask(n), "gunicorn answers"))
    seen.look().check()


@pytest.mark.parametrize("jobs", ["many jobs a process", "a process for each job"])
def test_a_celery_worker_with_processes(own_redis: RedisServer, seen: Seen, jobs: str) -> None:
    client = Celery(broker=own_redis.url)
    options = ["-A", f"{APP}:celery_app", "worker", "-P", "prefork", "-c", "3", "-l", "WARNING"]
    if jobs == "a process for each job":
        options += ["--max-tasks-per-child", "1"]
    with server("celery", own_redis.url, *options):
        run(seen, lambda n: client.send_task("work", (n,)))
    client.close()
    seen.look().check()


def test_a_dramatiq_worker_with_processes_and_threads(own_redis: RedisServer, seen: Seen) -> None:
    broker = RedisBroker(url=own_redis.url)
    broker.declare_queue("jobs")

    def give(n: int) -> None:
        message: Message[None] = Message(
            queue_name="jobs", actor_name="work", args=(n,), kwargs={}, options={}
        )
        broker.enqueue(message)

    with server("dramatiq", own_redis.url, APP, "--processes", "2", "--threads", "2"):
        run(seen, give)
    broker.close()
    # It starts its processes anew.
    seen.look().check(forked=False)
