"""Worker processes that track jobs: nothing is left behind, and no last message is lost."""

import sys

import pytest

from tests.interpreters import run_program
from tests.redis_server import RedisServer
from tests.tracking import Ear, brief

JOBS = 100


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("form", ["with", "async with"])
def test_a_hundred_jobs_and_an_end(redis_server: RedisServer, ear: Ear, form: str) -> None:
    done = run_program("track_jobs", redis_server.url, form, str(JOBS), "return")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "0 0\n")
    heard = brief(ear.messages())
    assert heard == [(0, "queued"), "completed"] * JOBS


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("form", ["with", "async with"])
@pytest.mark.parametrize(
    ("how", "status", "text"),
    [("exception", 1, "LookupError"), ("sys.exit", 3, "interrupted"), ("interrupt", -2, "")],
)
def test_a_job_that_ends_its_process(
    redis_server: RedisServer, ear: Ear, form: str, how: str, status: int, text: str
) -> None:
    done = run_program("track_jobs", redis_server.url, form, "3", how)
    assert done.returncode == status, done.stderr
    assert "during handling" not in done.stderr.lower() or how == "interrupt"
    *_, failed = ear.messages("upload:u2")
    assert failed["action"] == "upload_failed"
    # asyncio makes a cancellation of an interrupt.
    expected = text or ("interrupted" if form == "with" else "cancelled")
    assert failed["error_message"] == expected


def test_a_fork_while_another_thread_tells() -> None:
    done = run_program("track_fork")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
