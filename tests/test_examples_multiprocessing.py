"""examples/multiprocessing_pool: one publisher, used by the parent and by the children."""

import hashlib
from pathlib import Path

import pytest

from tests.examples import Example, Tap, is_over, story
from tests.redis_server import RedisServer


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_of_processes(redis_server: RedisServer, tmp_path: Path, method: str) -> None:
    example = Example("multiprocessing_pool", tmp_path, redis_server.url)
    tap = Tap(redis_server, "upload:*", "pool:*")
    done = example.run(f"python pool.py {method}")
    assert (done.returncode, done.stderr) == (0, "")
    tap.until(lambda: len(tap.of("pool:events")) == 2, "the last event")
    tap.until(lambda: is_over(tap.of("upload:all-files")), "the end of all")
    tap.until(lambda: len(tap.of("pool:logs")) == 2, "a line of each child")
    tap.close()

    expected = {"missing.txt": "No such file or directory"}
    for name in ("README.md", "pool.py"):
        digest = hashlib.sha256((example.directory / name).read_bytes()).hexdigest()
        expected[name] = digest
        end = story(tap.of(f"upload:{name}"), "queued", "hashing")
        assert (end["action"], end["description"]) == ("upload_completed", f"sha256 {digest}")
    assert dict(line.split(": ") for line in done.stdout.splitlines()) == expected
    failed = story(tap.of("upload:missing.txt"), "queued")
    assert (failed["action"], failed["error_message"]) == ("upload_failed", "FileNotFoundError")
    assert story(tap.of("upload:all-files"), "queued")["action"] == "upload_completed"

    # What the parent said before it made the children comes once, and theirs is theirs.
    started, ended = tap.of("pool:events")
    assert (started["type"], ended["type"]) == ("started", "ended")
    lines = tap.of("pool:logs")
    assert {line["file"] for line in lines} == {"README.md", "pool.py"}
    assert started["data"]["pid"] not in {line["pid"] for line in lines}
