"""The redis-server that the fixture ``fanwire_redis`` starts, without pytest around it."""

import socket
import stat
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

import fanwire.testing.redis
from fanwire.testing.redis import PrivateRedis
from tests.deadlines import until_blocking
from tests.demo import alive


def program(directory: Path, script: str) -> str:
    """A program of the test's own, in the place of redis-server."""
    path = directory / "redis-server"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made during this test."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_it_answers_inside_the_block_and_is_gone_after_it() -> None:
    with PrivateRedis() as server:
        process_id = server.process_id
        client = redis.Redis.from_url(server.url)
        assert client.info("server")["process_id"] == process_id
        assert client.config_get("save")["save"] == ""
        directory = Path(str(client.config_get("dir")["dir"]))
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        client.close()
    assert process_id is not None and not alive(process_id)
    assert server.process_id is None
    assert not directory.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", urlsplit(server.url).port or 0), timeout=5).close()


def test_it_ends_though_the_block_raises() -> None:
    server, process_ids = PrivateRedis(), list[int | None]()

    def fail() -> None:
        process_ids.append(server.process_id)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), server:
        fail()
    (process_id,) = process_ids
    assert process_id is not None and not alive(process_id)


def test_it_ends_though_it_is_gone_already() -> None:
    with PrivateRedis() as server:
        client = redis.Redis.from_url(server.url)
        client.shutdown(nosave=True)
        client.close()


@pytest.mark.parametrize("ending", ["by itself", "with its block"])
def test_nothing_of_it_stays(ending: str) -> None:
    with PrivateRedis() as server:
        process_id = server.process_id
        (watcher,) = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
        assert alive(int(watcher))
        if ending == "by itself":
            client = redis.Redis.from_url(server.url)
            client.shutdown(nosave=True)
            client.close()
    until_blocking(lambda: not alive(int(watcher)), "who watched over it ends")


def test_two_know_nothing_of_each_other() -> None:
    with PrivateRedis() as one, PrivateRedis() as other:
        assert one.url != other.url
        clients = [redis.Redis.from_url(server.url) for server in (one, other)]
        clients[0].set("key", "value")
        assert clients[1].get("key") is None
        for client in clients:
            client.close()


def test_a_port_that_somebody_took_is_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with PrivateRedis() as theirs:
        taken = urlsplit(theirs.url).port or 0
        find = fanwire.testing.redis._free_port
        ports = iter([taken, taken])
        monkeypatch.setattr(
            fanwire.testing.redis, "_free_port", lambda: next(ports, None) or find()
        )
        with PrivateRedis() as ours:
            assert ours.url != theirs.url
            client = redis.Redis.from_url(ours.url)
            assert client.info("server")["process_id"] == ours.process_id
            client.close()


def test_a_program_that_fails_says_why(temporary: Path) -> None:
    failing = program(temporary, "echo cannot read my mind >&2; exit 3")
    with pytest.raises(RuntimeError, match="cannot read my mind"), PrivateRedis(failing):
        pytest.fail("it cannot have started")
    assert [path.name for path in temporary.iterdir()] == ["redis-server"]


def test_a_program_that_does_not_exist(temporary: Path) -> None:
    with pytest.raises(FileNotFoundError), PrivateRedis(str(temporary / "redis-server")):
        pytest.fail("it cannot have started")
    assert list(temporary.iterdir()) == []


def test_a_program_that_never_answers_is_ended(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process_ids = list[int]()

    class Watched(PrivateRedis):
        def _answers(self, process: subprocess.Popen[bytes]) -> bool:
            process_ids.append(process.pid)
            return super()._answers(process)

    monkeypatch.setattr(fanwire.testing.redis, "START_SECONDS", 0.5)
    monkeypatch.setattr(fanwire.testing.redis, "STOP_SECONDS", 0.1)
    deaf = program(temporary, "trap '' TERM; while :; do sleep 0.01; done")
    with pytest.raises(RuntimeError, match="did not start: it said nothing"), Watched(deaf):
        pytest.fail("it cannot have started")
    (process_id,) = process_ids
    assert not alive(process_id)
