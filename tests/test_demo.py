"""The demo's app in real processes: the protocol of its WebSocket, and its uploads."""

import asyncio
import hashlib
import itertools
import json
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from fanwire.demo import progress
from fanwire.demo.messages import Stage, UploadProgress
from tests.deadlines import DEADLINE_SECONDS
from tests.demo import Demo, OwnInstance
from tests.examples import Tap, is_over
from tests.redis_server import RedisServer
from tests.servers import AnyServer

StartInstance = Callable[..., OwnInstance]


@pytest.fixture
def start_instance() -> Iterator[StartInstance]:
    with ExitStack() as instances:
        yield lambda **settings: instances.enter_context(OwnInstance(**settings))


@pytest.fixture(scope="module")
def shared() -> Iterator[OwnInstance]:
    """An instance on memory:// that small uploads of one kilobyte fit into."""
    with OwnInstance(max_upload_bytes=1000) as instance:
        yield instance


# The client protocol


async def test_a_client_that_says_nothing_is_closed_with_4001(
    start_instance: StartInstance,
) -> None:
    own = start_instance(auth_timeout_seconds=0.05)
    client = await own.instance.connect()
    assert await client.receive() == {"action": "auth_error", "message": "No auth message in time"}
    assert await client.close_code() == 4001


@pytest.mark.parametrize(
    "message",
    [{"action": "ping"}, {"type": "auth"}, {"type": "auth", "token": 7}, [], "text", None],
)
async def test_anything_before_auth_is_refused_with_4002(shared: OwnInstance, message: Any) -> None:
    client = await shared.instance.connect()
    await client.send(message)
    assert await client.receive() == {"action": "auth_error", "message": "Auth required"}
    assert await client.close_code() == 4002


@pytest.mark.parametrize("token", ["", "  "])
async def test_a_token_of_nobody_is_refused_with_4003(shared: OwnInstance, token: str) -> None:
    client = await shared.instance.connect()
    await client.send({"type": "auth", "token": token})
    assert await client.receive() == {"action": "auth_error", "message": "Invalid token"}
    assert await client.close_code() == 4003


MALFORMED = [
    pytest.param("{", id="not JSON"),
    pytest.param("", id="empty"),
    pytest.param("[" * 50_000, id="deeply nested"),
    pytest.param(b'{"action":"ping"}', id="a binary frame"),
]


@pytest.mark.parametrize("frame", MALFORMED)
async def test_what_cannot_be_read_is_closed_with_4004_before_auth(
    shared: OwnInstance, frame: str | bytes
) -> None:
    client = await shared.instance.connect()
    await client.socket.send(frame)
    assert await client.close_code() == 4004


@pytest.mark.parametrize(
    "frame",
    [
        *MALFORMED,
        "[]",
        "{}",
        '{"action":"no such action"}',
        '{"action":"subscribe_upload"}',
        '{"action":"subscribe_upload","upload_id":7}',
        '{"action":"subscribe_upload","upload_id":""}',
        '{"action":"subscribe_upload","upload_id":"\\ud800"}',
        json.dumps({"action": "subscribe_upload", "upload_id": "x" * 201}),
        '{"action":"subscribe_upload","upload_id":"u1","since":17}',
        '{"action":"subscribe_upload","upload_id":"u1","since":{"epoch":"00000000000000ff"}}',
        '{"action":"subscribe_upload","upload_id":"u1","since":{"epoch":"x","offset":-1}}',
        '{"action":"unsubscribe_upload"}',
        '{"type":"auth","token":"again"}',
    ],
)
async def test_what_makes_no_sense_is_closed_with_4004_and_cleaned_up(
    shared: OwnInstance, frame: str | bytes
) -> None:
    client = await shared.instance.sign_in("mallory")
    await client.watch("u1")
    await client.settled()
    await client.socket.send(frame)
    assert await client.close_code() == 4004
    await shared.until_state(connections=[], watched=[], heartbeats=0)


async def test_subscribing_and_unsubscribing(shared: OwnInstance) -> None:
    client = await shared.instance.sign_in("ada")
    longest = "x" * 200
    await client.watch("u1")
    await client.watch(longest)
    await client.settled()
    await shared.until_state(connections=["ada"], watched=["u1", longest])
    await client.send({"action": "unsubscribe_upload", "upload_id": "u1"})
    await client.send({"action": "unsubscribe_upload", "upload_id": "never watched"})
    await client.send({"action": "pong"})
    await client.settled()
    await shared.until_state(watched=[longest])
    await client.socket.close()
    # The heartbeat's next turn is half a minute away: it was ended, and did not find out by itself.
    await shared.until_state(connections=[], watched=[], heartbeats=0)


async def test_the_heartbeat_goes_on_and_ends_with_its_client(
    start_instance: StartInstance,
) -> None:
    own = start_instance(heartbeat_seconds=0.02)
    leaving, vanishing = await own.instance.sign_in("ada"), await own.instance.sign_in("bob")
    for client in (leaving, vanishing):
        for _ in range(3):
            assert await client.receive() == {"action": "ping"}
            await client.send({"action": "pong"})
    await own.until_state(connections=["ada", "bob"], heartbeats=2)
    await leaving.socket.close()
    await own.until_state(connections=["bob"], heartbeats=1)
    # As a machine that loses its power: no closing handshake.
    raw = vanishing.socket.transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    vanishing.socket.transport.abort()
    await own.until_state(connections=[], heartbeats=0)
    assert own.stderr == ""


# Uploads


def check_messages(messages: list[Any], upload_id: str) -> None:
    """The shapes that clients know, and where each stands; a bar that never runs backwards."""
    check_positions([message["_fanwire"] for message in messages])
    *progress, completed = messages
    for message in progress:
        payload = message["payload"]
        assert message == {
            "action": "upload_progress",
            "payload": {
                "upload_id": upload_id,
                "status": "pending" if payload["stage"] == "queued" else "processing",
                "stage": payload["stage"],
                "progress_percent": payload["progress_percent"],
                "message": payload["message"],
                "error_message": None,
                "description_audit_score": None,
            },
            "timestamp": message["timestamp"],
            "_fanwire": message["_fanwire"],
        }
        assert isinstance(payload["progress_percent"], int)
    percents = [message["payload"]["progress_percent"] for message in progress]
    assert percents == sorted(percents)
    assert percents[0] == 0
    assert percents[-1] <= 99
    stages = [message["payload"]["stage"] for message in progress]
    # Each in its turn. What a newer message overwrote on the way is not seen, and need not be.
    turns = iter(["queued", "receiving", "hashing", "counting_lines"])
    assert all(stage in turns for stage in dict.fromkeys(stages)), stages
    assert completed == {
        "action": "upload_completed",
        "upload_id": upload_id,
        "description": completed["description"],
        "audit_score": None,
        "timestamp": completed["timestamp"],
        "_fanwire": completed["_fanwire"],
    }


def check_positions(positions: list[Any]) -> None:
    """Of one epoch, and each newer than the one before."""
    assert len({position["epoch"] for position in positions}) == 1
    offsets = [position["offset"] for position in positions]
    assert offsets == sorted(set(offsets))


@pytest.mark.parametrize(
    ("content", "lines"),
    [(b"", 0), (b"\n", 1), (b"a\nb\n", 2), (b"a\nb", 2), (bytes(range(256)), 2), (b"x" * 1000, 1)],
)
async def test_an_upload_reports_its_stages_and_the_truth_about_the_file(
    shared: OwnInstance, content: bytes, lines: int
) -> None:
    client = await shared.instance.sign_in("ada")
    watcher = await shared.instance.sign_in("bob")
    upload_id = await shared.instance.new_upload("ada", len(content))
    await watcher.watch(upload_id)
    # Before what is newer can take the place of the first that each of them is told.
    queued, began = await watcher.receive(), await client.receive()
    answer = await shared.instance.put("ada", upload_id, content)
    sha256 = hashlib.sha256(content).hexdigest()
    readable = "1.0 kB (1,000 bytes)" if len(content) == 1000 else f"{len(content)} bytes"
    assert (answer.status, answer.json) == (
        200,
        {
            "upload_id": upload_id,
            "file_name": "rows.csv",
            "size": len(content),
            "sha256": sha256,
            "lines": lines,
        },
    )
    messages = await watcher.until_over()
    check_messages([queued, *messages], upload_id)
    description = messages[-1]["description"].splitlines()
    assert description[:2] == ["Name: rows.csv", f"Size: {readable}"]
    assert description[2:] == [f"SHA-256: {sha256}", f"Lines: {lines}"]
    # Its owner was told of it without asking.
    announced = [began, await client.receive()]
    assert [message["action"] for message in announced] == ["file_progress"] * 2
    assert [message["payload"]["status"] for message in announced] == ["processing", "completed"]
    assert announced[0]["payload"] == {
        "batch_id": upload_id,
        "upload_id": upload_id,
        "file_name": "rows.csv",
        "file_size": len(content),
        "progress_percentage": 0,
        "status": "processing",
    }
    # Who comes late is told how it ended.
    late = await shared.instance.sign_in("cleo")
    await late.watch(upload_id)
    assert await late.receive() == messages[-1]
    await shared.until_state(temporary_files=0)
    for one in (client, watcher, late):
        await one.socket.close()


async def test_progress_is_published_at_most_twenty_times_a_second(
    start_instance: StartInstance,
) -> None:
    own = start_instance()
    client = await own.instance.sign_in("ada")
    content = random.Random(7).randbytes(20_000_000)
    upload_id = await own.instance.new_upload("bob", len(content))
    await client.watch(upload_id)
    queued = await client.receive()
    chunks = (content[start : start + 10_000] for start in range(0, len(content), 10_000))
    begun = time.monotonic()
    assert (await own.instance.put("bob", upload_id, chunks)).status == 200
    seconds = time.monotonic() - begun
    messages = await client.until_over()
    check_messages([queued, *messages], upload_id)
    # The first message of a stage does not wait.
    stages = Counter(message["payload"]["stage"] for message in messages[:-1])
    assert sum(count - 1 for count in stages.values()) <= seconds * 20, (stages, seconds)
    await client.socket.close()


def test_two_messages_of_a_stage_are_fifty_milliseconds_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published: list[tuple[int, str]] = []
    milliseconds = 1_000

    class Publisher:
        def publish_nowait(self, _: str, message: UploadProgress) -> None:
            published.append((milliseconds, message.payload.stage))

    clock = SimpleNamespace(monotonic=lambda: milliseconds / 1000)
    monkeypatch.setattr(progress, "get_publisher", Publisher)
    monkeypatch.setattr(progress, "time", clock)
    upload = progress.Upload("ada", "rows.csv", 100)
    stages: list[Stage] = ["receiving", "hashing", "counting_lines"]
    for stage in stages:
        for done in range(101):
            upload.progress(stage, done)
            milliseconds += 3
    for stage in stages:
        times = [at for at, of in published if of == stage]
        assert [later - earlier for earlier, later in itertools.pairwise(times)] == [51] * 5


async def test_an_upload_that_is_too_large_is_refused_before_it_begins(shared: OwnInstance) -> None:
    body = json.dumps({"file_name": "big", "size": 1001})
    answer = await shared.instance.request("POST", "/uploads", body, user="ada")
    assert (answer.status, answer.json) == (
        413,
        {"detail": "The file is larger than the limit of 1.0 kB."},
    )


@pytest.mark.parametrize("announced", [True, False], ids=["content-length", "chunked"])
async def test_an_upload_that_turns_out_too_large_fails(
    shared: OwnInstance, announced: bool
) -> None:
    watcher = await shared.instance.sign_in("bob")
    upload_id = await shared.instance.new_upload("ada", 10)
    await watcher.watch(upload_id)
    body = b"x" * 1001 if announced else iter([b"x" * 1000, b"x"])
    answer = await shared.instance.put("ada", upload_id, body)
    reason = "The file is larger than the limit of 1.0 kB."
    assert (answer.status, answer.json) == (413, {"detail": reason})
    failed = (await watcher.until_over())[-1]
    assert failed == {
        "action": "upload_failed",
        "upload_id": upload_id,
        "error_message": reason,
        "timestamp": failed["timestamp"],
        "_fanwire": failed["_fanwire"],
    }
    await shared.until_state(temporary_files=0)
    await watcher.socket.close()


async def test_an_upload_whose_client_goes_away_fails(shared: OwnInstance) -> None:
    watcher = await shared.instance.sign_in("bob")
    upload_id = await shared.instance.new_upload("ada", 1000)
    await watcher.watch(upload_id)
    async with shared.instance.begin("ada", upload_id, 1000, b"x" * 500):
        while (await watcher.receive())["payload"]["stage"] != "receiving":
            pass
        await shared.until_state(temporary_files=1)
    failed = (await watcher.until_over())[-1]
    assert failed["action"] == "upload_failed"
    assert failed["error_message"] == "The connection broke before the whole file had arrived."
    await shared.until_state(temporary_files=0)
    await watcher.socket.close()


async def test_an_upload_can_be_cancelled(shared: OwnInstance) -> None:
    watcher = await shared.instance.sign_in("bob")
    waiting = await shared.instance.new_upload("ada", 1000)
    running = await shared.instance.new_upload("ada", 1000)
    async with shared.instance.begin("ada", running, 1000, b"x" * 500) as answer:
        await shared.until_state(temporary_files=1)
        for upload_id in (waiting, running):
            await watcher.watch(upload_id)
            await shared.instance.request("DELETE", f"/uploads/{upload_id}", user="ada")
            failed = (await watcher.until_over())[-1]
            assert failed["upload_id"] == upload_id
            assert failed["error_message"] == "The upload was cancelled."
        assert await answer.readline() == b"HTTP/1.1 503 Service Unavailable\r\n"
    await shared.until_state(temporary_files=0)
    assert (await shared.instance.put("ada", waiting, b"x")).status == 409
    await watcher.socket.close()


async def test_an_upload_is_its_owners_and_is_sent_once(shared: OwnInstance) -> None:
    upload_id = await shared.instance.new_upload("ada", 1)
    assert (await shared.instance.put("bob", upload_id, b"x")).status == 404
    assert (await shared.instance.put("ada", "unknown", b"x")).status == 404
    assert (await shared.instance.put("ada", upload_id, b"x")).status == 200
    assert (await shared.instance.put("ada", upload_id, b"x")).status == 409
    assert (await shared.instance.request("PUT", f"/uploads/{upload_id}", b"x")).status == 401


async def test_slow_motion_changes_nothing_but_the_pace(
    redis_server: RedisServer, start_instance: StartInstance
) -> None:
    instance = start_instance(broker_url=redis_server.url).instance
    tap = Tap(redis_server, "upload:*")
    watcher = await instance.sign_in("bob")
    upload_id = await instance.new_upload("ada", 1000)
    await watcher.watch(upload_id)
    queued = await watcher.receive()
    answer = await instance.put("ada", upload_id, b"x\n" * 500, "?bytes_per_second=5000")
    assert (answer.json["lines"], answer.json["size"]) == (500, 1000)
    check_messages([queued, *await watcher.until_over()], upload_id)
    # Of what is published nothing is overwritten.
    tap.until(lambda: is_over(tap.of(f"upload:{upload_id}")), "the end")
    published = tap.of(f"upload:{upload_id}")
    check_messages(published, upload_id)
    # 100 ms a piece and 50 ms between two messages: each of the six halves of a stage is told.
    assert {m["payload"]["progress_percent"] for m in published[:-1]} >= {0, 25, 50, 75}
    await watcher.socket.close()
    tap.close()


# Two instances


async def test_an_upload_to_one_instance_is_watched_on_the_other(any_server: AnyServer) -> None:
    with Demo("--broker", any_server.url, instances=2) as demo:
        one, other = demo.instances
        shown = (await one.request("GET", "/instance")).json
        assert shown["ports"] == [one.port, other.port], "they are printed in order"
        assert shown["broker"] == re.sub("//.*@", "//", any_server.url)
        earlier = await one.new_upload("carol", 2)
        assert (await one.put("carol", earlier, b"x\n")).status == 200
        owner, watcher = await other.sign_in("ada"), await other.sign_in("bob")
        content = b"".join(b"row %d\n" % number for number in range(300_000))
        upload_id = await one.new_upload("ada", len(content))
        await watcher.watch(upload_id)
        # States are read in order: when the second is there, the first was read, which is none yet.
        await watcher.watch(earlier)
        assert (await watcher.until_over())[-1]["upload_id"] == earlier
        begun = threading.Event()

        def body() -> Iterator[bytes]:
            yield content[:7]
            # Before newer progress can take its place where the machine is busy.
            assert begun.wait(DEADLINE_SECONDS), "the watcher sees that it has begun"
            yield content[7:]

        putting = asyncio.create_task(one.put("ada", upload_id, body()))
        first = await watcher.receive()
        begun.set()
        answer, messages, announced = await asyncio.gather(
            putting, watcher.until_over(), owner.receive()
        )
        assert announced["payload"]["file_name"] == "rows.csv"
        check_messages([first, *messages], upload_id)
        assert answer.json["lines"] == 300_000
        assert answer.json["sha256"] in messages[-1]["description"]
        await owner.socket.close()
        await watcher.socket.close()
