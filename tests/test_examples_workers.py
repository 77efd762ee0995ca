"""examples/dramatiq_worker and examples/celery_worker, as their READMEs start them."""

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker

from tests.deadlines import DEADLINE_SECONDS, until_blocking
from tests.examples import MORE_AND_MORE, Example, Tap, Watcher, is_over, moved, story
from tests.redis_server import RedisServer, free_port

LINE = b"a line of a text, and not the only one\n"


def put(port: int, upload_id: str, content: bytes) -> None:
    answer = httpx2.put(
        f"http://127.0.0.1:{port}/uploads/{upload_id}",
        content=content,
        timeout=DEADLINE_SECONDS,
        trust_env=False,
    )
    assert answer.status_code == 202
    assert answer.json() == {"upload_id": upload_id, "status": "queued"}


def test_jobs_of_dramatiq(
    own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    monkeypatch.setenv("TMPDIR", str(files))
    example = Example("dramatiq_worker", tmp_path, own_redis.url)
    port = free_port()
    tap = Tap(own_redis, "upload:*")
    texts = {f"text-{n}": LINE * (n + 1) * 1_000 for n in range(12)}
    with (
        example.running("dramatiq", tracebacks=True),
        example.running("uvicorn", {"8000": str(port)}, serves=port),
        ExitStack() as sockets,
    ):

        def watch(name: str) -> Watcher:
            return sockets.enter_context(Watcher.of(port, name))

        watchers = {name: watch(name) for name in [*texts, "picture"]}
        with ThreadPoolExecutor(4) as several:
            list(several.map(lambda item: put(port, *item), texts.items()))
        put(port, "picture", b"\x89PNG\r\n")
        seen = {name: watcher.until_over() for name, watcher in watchers.items()}
        tap.until(lambda: all(is_over(tap.of(f"upload:{name}")) for name in seen), "all ends")
        # A watcher of more work than goes into one message.
        for lines in MORE_AND_MORE:
            watcher = watch(f"large-{lines}")
            put(port, f"large-{lines}", LINE * lines)
            large = watcher.until_over()
            if moved(large):
                break
        assert moved(large)
        assert large[-1]["description"] == f"{lines} lines"
        [late] = watch("text-0").until_over()
        until_blocking(lambda: not list(files.iterdir()), "the workers delete the files")
    tap.close()

    for name, messages in seen.items():
        told = tap.of(f"upload:{name}")
        end = story(told, "queued", "counting_lines")
        # Each message once and in order.
        offsets = [message["_fanwire"]["offset"] for message in told]
        assert offsets == list(range(1, len(told) + 1))
        # What a watcher got is of those, in their order, and the last one at any rate.
        assert messages[-1] == end and all(message in told for message in messages)
        if name == "picture":
            assert (end["action"], end["error_message"]) == ("upload_failed", "UnicodeDecodeError")
        else:
            lines = texts[name].count(b"\n")
            assert (end["action"], end["description"]) == ("upload_completed", f"{lines} lines")
    assert late == seen["text-0"][-1]


def test_a_job_that_dramatiq_tries_again_is_not_told_as_failed(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    example = Example("dramatiq_worker", tmp_path, own_redis.url)
    tap = Tap(own_redis, "upload:*")
    broker = RedisBroker(url=own_redis.url)
    late, never = tmp_path / "late", tmp_path / "never"
    with example.running("dramatiq", tracebacks=True):
        # The file that comes late has to be there before the last attempt at it.
        for path, options in ((late, {"min_backoff": 4_000}), (never, {})):
            arguments: Any = {"args": (path.name, str(path)), "kwargs": {}, "options": options}
            broker.enqueue(Message(queue_name="default", actor_name="count_lines", **arguments))
        tap.until(lambda: "will be tried again" in texts(tap.of("upload:late")), "a failure")
        late.write_bytes(LINE * 3)
        for path in (late, never):
            tap.until(partial(ended, tap, path.name), "the end")
    tap.close()
    broker.close()
    *told, end = tap.of("upload:late")
    assert {message["action"] for message in told} == {"upload_progress"}
    assert (end["action"], end["description"]) == ("upload_completed", "3 lines")
    assert not late.exists()
    *told, end = tap.of("upload:never")
    assert {message["action"] for message in told} == {"upload_progress"}
    assert texts(told).count("will be tried again") == 3
    assert (end["action"], end["error_message"]) == ("upload_failed", "FileNotFoundError")


def ended(tap: Tap, upload_id: str) -> bool:
    return is_over(tap.of(f"upload:{upload_id}"))


def texts(messages: list[Any]) -> list[str]:
    return [message["payload"]["message"] for message in messages if "payload" in message]


def test_jobs_of_celery(own_redis: RedisServer, tmp_path: Path) -> None:
    example = Example("celery_worker", tmp_path, own_redis.url)
    # The last one takes a second: longer than there is between two messages.
    files = {f"file-{n}": os.urandom(n * 100_000) for n in range(8)} | {"large": bytes(32_000_000)}
    for name, content in files.items():
        (example.directory / name).write_bytes(content)
    names = [*files, "missing.txt"]
    tap = Tap(own_redis, "upload:*", "jobs:*")

    def last_words() -> list[dict[str, Any]]:
        return [line for line in tap.of("jobs:logs") if line["logger"] == "celery.app.trace"]

    with example.running("celery", tracebacks=True):
        done = example.run("python send.py", {"README.md jobs.py missing.txt": " ".join(names)})
        assert (done.returncode, done.stderr) == (0, "")
        tap.until(lambda: len(tap.of("jobs:events")) >= len(files), "an event of each task")
        tap.until(lambda: len(last_words()) > len(names), "Celery's last word on each attempt")
    tap.close()

    # What the terminal has shown.
    shown = dict[str, list[str]]()
    for line in done.stdout.splitlines():
        name, _, text = line.partition(": ")
        shown.setdefault(name, []).append(text)
    assert shown.keys() == set(names)
    assert shown["missing.txt"][-1] == "failed, FileNotFoundError"
    for name, content in files.items():
        end = f"sha256 {hashlib.sha256(content).hexdigest()}, "
        assert shown[name][-1].startswith(end)
        assert shown[name][-1].endswith(f" of {len(content)} bytes")
        assert not any(text.startswith("sha256") for text in shown[name][:-1])
    assert any(text.startswith("compressing, ") for text in shown["large"][:-1])

    # What was published: each job's story, from processes that were forked with one publisher.
    uploads = {channel for channel, _ in tap.heard if channel.startswith("upload:")}
    ends = Counter[str]()
    for upload in uploads:
        messages = tap.of(upload)
        failed = messages[-1]["action"] == "upload_failed"
        if failed:  # it was tried twice, and is over when it has been
            assert texts(messages) == ["", "will be tried again", ""]
        end = story(messages, "queued", *([] if failed else ["hashing", "compressing"]))
        ends[end.get("description") or end["error_message"]] += 1
    assert ends == Counter(lines[-1].removeprefix("failed, ") for lines in shown.values())
    assert any(moved(tap.of(upload)) for upload in uploads)
    done_with = [Path(event["data"]["path"]).name for event in tap.of("jobs:events")]
    assert sorted(done_with) == sorted(files)
    assert {event["type"] for event in tap.of("jobs:events")} == {"digested"}
    levels = Counter(line["level"] for line in last_words())
    assert levels == {"info": len(files) + 1, "error": 1}  # one of them is tried again
    [failure] = [line for line in last_words() if line["level"] == "error"]
    assert "FileNotFoundError" in failure["exception"]
