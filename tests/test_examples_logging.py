"""examples/logging_to_redis: what is logged is seen in Redis, and on the terminal as ever."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.examples import Example, Tap
from tests.redis_server import RedisServer


def events_of(tap: Tap) -> list[str]:
    return [line["event"] for line in tap.of("linecount:logs")]


@pytest.mark.parametrize("library", ["structlog", "logging"])
def test_lines_events_and_stats(redis_server: RedisServer, tmp_path: Path, library: str) -> None:
    example = Example("logging_to_redis", tmp_path, redis_server.url)
    script = f"with_{library}.py"
    tap = Tap(redis_server, "linecount:*")
    done = example.run(f"python {script}")
    assert done.returncode == 0, done.stderr
    tap.until(lambda: tap.of("linecount:stats"), "the stats, which come last")
    tap.close()

    files = ["README.md", script, "missing.txt"]
    lengths = [len((example.directory / name).read_text().splitlines()) for name in files[:2]]
    [started] = tap.of("linecount:events")
    assert (started["type"], started["data"]) == ("run_started", {"files": files})
    [stats] = tap.of("linecount:stats")
    assert (stats["files"], stats["lines"]) == (2, sum(lengths))
    logs: list[dict[str, Any]] = tap.of("linecount:logs")
    assert [line["file"] for line in logs] == [name for name in files for _ in range(2)]
    assert [line.get("lines") for line in logs] == [None, lengths[0], None, lengths[1], None, None]
    assert [line["level"] for line in logs] == ["info"] * 5 + ["error"]
    assert "FileNotFoundError" in logs[-1]["exception"] and "exc_info" not in logs[-1]
    assert all(datetime.fromisoformat(line["timestamp"]) for line in logs)
    assert all(channel.startswith("linecount:") for channel, _ in tap.heard)
    # The first event, the lines, and the stats came in the order in which they were published.
    assert [tap.heard[0][1], tap.heard[-1][1]] == [started, stats]
    # On the terminal nothing has changed.
    terminal = done.stdout + done.stderr
    assert all(terminal.count(line["event"]) >= 1 for line in logs)
    assert "FileNotFoundError" in terminal


@pytest.mark.parametrize("library", ["structlog", "logging"])
def test_without_a_broker_the_program_does_its_work(
    own_redis: RedisServer, tmp_path: Path, library: str
) -> None:
    own_redis.kill()
    example = Example("logging_to_redis", tmp_path, own_redis.url)
    done = example.run(f"python with_{library}.py")
    assert done.returncode == 0, done.stderr
    terminal = done.stdout + done.stderr
    assert terminal.count("reading") >= 3 and terminal.count("FileNotFoundError") >= 1
    assert terminal.count("cannot be published, and wait") == 1


def test_what_the_readme_listens_with(redis_server: RedisServer, tmp_path: Path) -> None:
    example = Example("logging_to_redis", tmp_path, redis_server.url)
    here = {"redis-cli": f"redis-cli -p {redis_server.port}"}
    with example.running("redis-cli", here) as listening:
        listening.until(lambda: "psubscribe" in listening.output, "it is subscribed")
        assert example.run("python with_logging.py").returncode == 0
        listening.until(lambda: "linecount:stats" in listening.output, "all is shown")
    assert listening.output.count("\nlinecount:logs\n") == 6
