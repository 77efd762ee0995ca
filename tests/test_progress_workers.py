"""gunicorn loads an app whose upload publisher has published already, and runs it in children."""

import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from tests.deadlines import until_blocking
from tests.examples import Tap
from tests.redis_server import RedisServer, free_port
from tests.test_events_workers import GUNICORN, gunicorns_workers, server

JOBS, STEPS, WORKERS = 40, 20, 3


def test_gunicorn_that_loads_the_app_before_it_forks(redis_server: RedisServer) -> None:
    port = free_port()

    def ask(n: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{n}", timeout=20) as answer:
                return bool(answer.read() == b"done")
        except urllib.error.URLError as error:
            if isinstance(error.reason, ConnectionRefusedError):
                return False
            raise

    tap = Tap(redis_server, "upload:*")
    options = ["--preload", "--workers", str(WORKERS), "--bind", f"127.0.0.1:{port}"]
    app = "tests.apps.progress_workers:app"
    with server("gunicorn", redis_server.url, *GUNICORN, *options, app) as master:
        until_blocking(lambda: gunicorns_workers(redis_server, master) == WORKERS, "all are ready")
        until_blocking(lambda: ask(0), "gunicorn answers")
        with ThreadPoolExecutor(4) as several:
            assert all(several.map(ask, range(1, JOBS)))
        tap.until(lambda: len(tap.heard) >= 2 + JOBS * (STEPS + 1), "every message")
        redis_server.publish("upload:mark", "0")
        tap.until(lambda: tap.of("upload:mark"), "the mark behind all of them")
    tap.close()
    # The parent's messages once, though all its children have inherited the publisher.
    loaded_by = [message["by"] for message in tap.of("upload:loaded")]
    assert len(loaded_by) == 2
    workers = set[int]()
    for n in range(JOBS):
        messages = tap.of(f"upload:{n}")
        # Each once and in order, by one process.
        assert [message["step"] for message in messages] == [*range(STEPS), "done"]
        [worker] = {message["by"] for message in messages}
        workers.add(worker)
    assert not workers & set(loaded_by)
    assert len(tap.heard) == 2 + JOBS * (STEPS + 1) + 1
