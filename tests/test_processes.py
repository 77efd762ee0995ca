"""Processes fork, run a loop per job, and end without saying goodbye."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import Broker
from tests.deadlines import EXIT_SECONDS
from tests.interpreters import ROOT, command, environment, output_of, run_program
from tests.redis_server import RedisServer

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Tap:
    """Reads what is published, as any other program would."""

    def __init__(self, server: RedisServer) -> None:
        self._pubsub = server.tap(patterns=["upload:*"])
        self._server = server

    def texts(self) -> list[str]:
        """Everything so far: up to a mark that this call publishes."""
        self._server.publish("upload:mark", "mark")
        texts: list[str] = []
        while not texts or texts[-1] != "mark":
            message: dict[str, Any] | None = self._pubsub.get_message(timeout=20)
            if message is not None:
                texts.append(message["data"].decode())
        self._pubsub.close()
        return texts[:-1]


def told_by(name: str) -> list[str]:
    return [f'"{name} {what}"' for what in (0, 1, 2, "nowait", "last")]


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_publishing_before_and_after_a_fork(redis_server: RedisServer, unix: bool) -> None:
    tap = Tap(redis_server)
    url = redis_server.unix_url if unix else redis_server.url
    assert output_of("fork_publish", url, "os.fork", "publishing") == ["child status 0"]
    texts = tap.texts()
    # Each once, in the order in which the processes took turns.
    assert texts == [
        *told_by("parent before"),
        *told_by("child inherited"),
        *told_by("child anew"),
        *told_by("parent after"),
    ]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_publishing_in_a_child_of_multiprocessing(redis_server: RedisServer, method: str) -> None:
    tap = Tap(redis_server)
    assert output_of("fork_publish", redis_server.url, method, "publishing") == ["child status 0"]
    assert tap.texts() == [
        *told_by("parent before"),
        *told_by("child anew"),
        *told_by("parent after"),
    ]


def test_forking_a_process_that_listens(redis_server: RedisServer) -> None:
    tap = Tap(redis_server)
    output = output_of("fork_publish", redis_server.url, "os.fork", "listening")
    expected = [
        '"parent before"',
        *told_by("child inherited"),
        *told_by("child anew"),
        '"parent after"',
    ]
    # The parent listens on, and gets what the child says as well, each message once.
    assert output == ["child status 0", f"parent received {len(expected)}"]
    assert Counter(tap.texts()) == Counter(expected)


def test_forking_with_the_embedded_broker() -> None:
    # It lives in a process, so the parent hears its own messages alone.
    output = output_of("fork_publish", "memory://", "os.fork", "listening")
    assert output == ["child status 0", "parent received 2"]


@linux_only
@pytest.mark.parametrize("kind", ["shared", "short", "abandoned", "running"])
def test_one_loop_per_job_leaves_nothing_behind(broker: Broker, kind: str) -> None:
    (line,) = output_of("run_per_job", broker.url, "200", kind)
    _, threads, _, descriptors = line.split()
    # None per job, that is; a thread or two may still be on its way out.
    assert int(threads) <= 2, line
    assert int(descriptors) <= 4, line


@linux_only
@pytest.mark.parametrize("kind", ["messages", "connections", "refused"])
def test_memory_does_not_grow(broker: Broker, kind: str) -> None:
    # What passes through is several times more than this: 24 MB at the least.
    (grown,) = output_of("memory_use", broker.url, kind)
    assert float(grown) < 8


def test_jobs_without_a_broker_leave_nothing_behind(own_redis: RedisServer) -> None:
    own_redis.kill()
    done = run_program("run_per_job", own_redis.url, "50", "abandoned")
    assert done.returncode == 0, done.stderr
    _, threads, _, descriptors = done.stdout.split()
    assert int(threads) <= 2 and int(descriptors) <= 4, done.stdout


@contextmanager
def unstopped(url: str, how: str) -> Iterator["subprocess.Popen[str]"]:
    """A program that has a started publisher, and is about to end without stopping it."""
    with subprocess.Popen(
        command("exit_unstopped", url, how),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=ROOT,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("return", 0),
        ("flood", 0),
        ("daemon thread", 0),
        ("open loop", 0),
        ("sys.exit", 3),
        ("exception", 1),
        ("interrupt", -2),
    ],
)
def test_an_interpreter_ends_without_stop(broker: Broker, how: str, status: int) -> None:
    with unstopped(broker.url, how) as process:
        output, errors = process.communicate(timeout=EXIT_SECONDS)
    assert (process.returncode, output) == (status, ""), errors
    for trouble in ("panicked", "Fatal Python error", "never awaited", "ResourceWarning"):
        assert trouble not in errors
    if status == 0:
        assert errors == ""


@pytest.mark.parametrize("trouble", ["still", "down"])
def test_an_interpreter_ends_whatever_the_broker_does(own_redis: RedisServer, trouble: str) -> None:
    with unstopped(own_redis.url, "when told") as process:
        if trouble == "still":
            own_redis.pause()
        else:
            own_redis.kill()
        try:
            output, errors = process.communicate("end\n", timeout=EXIT_SECONDS)
        finally:
            if trouble == "still":
                own_redis.resume()
    assert (process.returncode, output) == (0, ""), errors
    assert "panicked" not in errors and "atal" not in errors
    if trouble == "still":
        assert errors.splitlines() == [
            f"fanwire: {own_redis.url}: the interpreter ends before 1 messages could be published"
        ]


@pytest.mark.parametrize("whose", ["own", "fork", "spawn", "forkserver"])
def test_what_waits_at_the_end_goes_out(redis_server: RedisServer, whose: str) -> None:
    tap = Tap(redis_server)
    assert output_of("exit_publishing", redis_server.url, "2000", whose) == []
    assert tap.texts() == [str(n) for n in range(2000)]


@pytest.mark.parametrize("whose", ["own", "fork"])
def test_what_is_left_at_the_end_is_told(own_redis: RedisServer, whose: str) -> None:
    own_redis.kill()
    done = run_program("exit_publishing", own_redis.url, "20", whose)
    assert done.returncode == 0, done.stderr
    first, last = done.stderr.splitlines()
    assert "publishing fails, messages wait until this ends" in first
    # Of progress and the like only the newest would wait; these are nothing of the kind.
    text = f"{own_redis.url}: the interpreter ends before 20 messages could be published"
    assert last == f"fanwire: {text}"


def test_before_and_after_initialisation() -> None:
    assert output_of("uninitialised") == [
        "ConnectionManager not initialized. Call init_manager()",
        "UploadProgressPublisher not initialized. Call init_publisher()",
        '"in time"',
        "the options arrived",
    ]
