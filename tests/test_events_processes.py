"""Publishers across forks, and interpreters that end without closing them."""

import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import RedisFactory
from tests.deadlines import EXIT_SECONDS
from tests.events import Outage, Tap
from tests.interpreters import (
    ROOT,
    TIMEOUT_SECONDS,
    command,
    environment,
    output_of,
    run_program,
)
from tests.redis_server import RedisServer


@contextmanager
def program(name: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        command(name, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=ROOT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said_by(name: str) -> list[tuple[str, Any]]:
    return [("logs", (name, n)) for n in range(50)] + [("events", name)]


def said(tap: Tap) -> dict[str, list[tuple[str, Any]]]:
    """Who said what, in order."""
    by: dict[str, list[tuple[str, Any]]] = {}
    for channel, message in tap.messages():
        if channel == "logs":
            by.setdefault(message["by"], []).append((channel, (message["by"], message["n"])))
        else:
            by.setdefault(message["type"], []).append((channel, message["type"]))
    return by


@pytest.mark.parametrize("ending", ["flush", "exit"])
@pytest.mark.parametrize("method", ["os.fork", "fork", "spawn", "forkserver"])
@pytest.mark.parametrize("state", ["sent", "waiting"])
def test_publishing_before_and_after_a_fork(
    make_redis: RedisFactory, method: str, state: str, ending: str
) -> None:
    if (method, ending) == ("os.fork", "exit"):
        ending = "flush"  # a child of os.fork ends as it likes: nobody asks what waits
    server = make_redis(password="pw", acl_user="worker")
    tap, trouble = Tap(server), Outage(server)
    if state == "waiting":
        trouble.begin()
    with program("events_fork", server.url, method, state, ending) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "forked\n"
        trouble.end()
        output, errors = process.communicate("go on\n", timeout=TIMEOUT_SECONDS)
    assert (process.returncode, output) == (0, "child status 0\n"), errors
    names = ["parent before", "child anew", "parent after"]
    if method == "os.fork":
        names.append("child inherited")
    # Everybody's messages once and in order; what waited in the parent was the parent's to send.
    assert said(tap) == {name: said_by(name) for name in names}
    tap.close()


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("return", 0),
        ("daemon thread", 0),
        ("flushing", 0),
        ("sys.exit", 3),
        ("exception", 1),
        ("interrupt", -2),
        ("terminated", 0),
    ],
)
def test_an_interpreter_ends_without_close(
    redis_server: RedisServer, how: str, status: int
) -> None:
    tap = Tap(redis_server)
    with program("events_exit", redis_server.url, how) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ending\n"  # and nothing else that would be lost here
        _, errors = process.communicate(timeout=EXIT_SECONDS)
    assert process.returncode == status, errors
    for trouble in ("panicked", "Fatal Python error", "fatal runtime", "never awaited", "Resource"):
        assert trouble not in errors
    if status == 0:
        assert errors == ""
    # What was published before the end has gone out.
    counts = Counter(
        message["type"] if channel == "events" else message["n"]
        for channel, message in tap.messages()
    )
    assert (counts["first"], counts["last"]) == (5, 5)
    assert [counts[n] for n in range(200)] == [5] * 200
    tap.close()


@pytest.mark.parametrize("how", ["return", "daemon thread", "flushing", "sys.exit", "exception"])
@pytest.mark.parametrize("trouble", ["still", "down"])
def test_an_interpreter_ends_without_close_and_without_a_broker(
    own_redis: RedisServer, how: str, trouble: str
) -> None:
    with program("events_exit", own_redis.url, how) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "started\n"
        if trouble == "still":
            own_redis.pause()
        else:
            own_redis.kill()
        try:
            process.stdin.write("go\n")
            process.stdin.flush()
            assert process.stdout.readline() == "ending\n"
            _, errors = process.communicate(timeout=EXIT_SECONDS)
        finally:
            if trouble == "still":
                own_redis.resume()
    assert process.returncode == {"sys.exit": 3, "exception": 1}.get(how, 0), errors
    assert "panicked" not in errors and "atal" not in errors
    # It is not lost without a word.
    assert "the interpreter ends before" in errors


@pytest.mark.parametrize("what", ["track", "log", "event", "model"])
def test_an_interpreter_ends_while_a_daemon_thread_is_in_its_own_code(what: str) -> None:
    for _ in range(4):  # it depends on the moment
        done = run_program("exit_in_python", what, "memory://")
        assert done.returncode == 0, done.stderr


def test_a_fork_while_another_thread_logs_for_the_first_time() -> None:
    assert output_of("fork_first_log", "redis://127.0.0.1:1") == ["child status 0"]
