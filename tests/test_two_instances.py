"""Two instances of an app, each a uvicorn process, with browsers' sockets on both."""

import asyncio
import json
import signal
import socket
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.conftest import Unique
from tests.deadlines import DEADLINE_SECONDS, until
from tests.demo import START_DEADLINE_SECONDS
from tests.interpreters import ROOT, environment
from tests.messages import completed, progress
from tests.servers import AnyServer


class Instance:
    """The app in a process of its own, on a port that is taken before the process begins."""

    def __init__(self, url: str, *options: str) -> None:
        self._url = url
        self._options = options

    def __enter__(self) -> Self:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.port: int = listening.getsockname()[1]
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.apps.progress_app",
                    str(listening.fileno()),
                    self._url,
                    *self._options,
                ],
                pass_fds=[listening.fileno()],
                stderr=subprocess.PIPE,
                env=environment(),
                cwd=ROOT,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()

    async def request(self, path: str, body: str | None = None) -> Any:
        """GET, or POST with a body. The socket listens already, so an early request just waits."""

        def send() -> Any:
            request = urllib.request.Request(
                f"http://127.0.0.1:{self.port}{path}",
                data=body.encode() if body is not None else None,
                headers={"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as answer:
                return json.load(answer)

        return await asyncio.to_thread(send)

    async def socket(self, user_id: str, *uploads: str) -> ClientConnection:
        """A client's socket, after the app has confirmed its subscriptions."""
        client = await connect(
            f"ws://127.0.0.1:{self.port}/ws/{user_id}",
            open_timeout=START_DEADLINE_SECONDS,
            ping_interval=None,
            proxy=None,
        )
        for upload_id in uploads:
            await client.send(json.dumps({"upload_id": upload_id}))
            assert json.loads(await text_of(client))["action"] == "subscribed"
        return client

    async def until_state(self, **expected: Any) -> None:
        end = asyncio.get_running_loop().time() + DEADLINE_SECONDS
        while (state := await self.request("/state")) | expected != state:
            assert asyncio.get_running_loop().time() < end, f"{state} does not become {expected}"
            await asyncio.sleep(0.005)


@pytest.fixture
def instances(any_server: AnyServer) -> Iterator[tuple[Instance, Instance]]:
    with ExitStack() as stack:
        yield (
            stack.enter_context(Instance(any_server.url)),
            stack.enter_context(Instance(any_server.unix_url)),
        )


@pytest.fixture
def instances_with_history(any_server: AnyServer) -> Iterator[tuple[Instance, Instance]]:
    with ExitStack() as stack:
        yield (
            stack.enter_context(Instance(any_server.url, "history")),
            stack.enter_context(Instance(any_server.unix_url, "history")),
        )


async def text_of(client: ClientConnection) -> str:
    text = await asyncio.wait_for(client.recv(), DEADLINE_SECONDS)
    assert isinstance(text, str)
    return text


def reset(client: ClientConnection) -> None:
    """Ends the TCP connection as a dead peer would: with a reset and no closing handshake."""
    raw = client.transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.transport.abort()


async def test_progress_of_one_instance_is_seen_on_the_other(
    instances: tuple[Instance, Instance],
) -> None:
    first, second = instances
    await first.until_state(running=True)
    await second.until_state(running=True)
    watching = await second.socket("ada", "u1")
    other = await second.socket("bob", "u2")
    same = await first.socket("ada", "u1")
    sent = [progress("u1", n).model_dump_json() for n in (0, 50, 100)]
    sent.append(completed("u1").model_dump_json())
    for body in sent:
        await first.request("/uploads/u1/progress", body)
        # One after another: where a client is behind, newer progress takes the place of older.
        for client in (watching, same):
            assert json.loads(await text_of(client)) == json.loads(body)
    await first.request("/uploads/u2/progress", '{"n":2}')
    assert await text_of(other) == '{"n":2}'
    await second.request("/users/bob/messages", '{"n":3}')
    assert await text_of(other) == '{"n":3}'
    for client in (watching, other, same):
        await client.close()


async def test_a_client_that_vanishes_is_cleaned_up(
    instances: tuple[Instance, Instance],
) -> None:
    first, second = instances
    vanishing = await second.socket("ada", "u1")
    staying = await second.socket("bob", "u1")
    await second.until_state(connections={"ada": 1, "bob": 1}, subscribers={"u1": ["ada", "bob"]})
    reset(vanishing)
    with pytest.raises(ConnectionClosed):
        await asyncio.wait_for(vanishing.recv(), DEADLINE_SECONDS)
    received = 0
    end = asyncio.get_running_loop().time() + DEADLINE_SECONDS
    while (await second.request("/state"))["connections"] != {"bob": 1}:
        assert asyncio.get_running_loop().time() < end, "ada is still there"
        await first.request("/uploads/u1/progress", '{"n":1}')
        # The one that stays gets each of them, whatever becomes of the other.
        assert await text_of(staying) == '{"n":1}'
        received += 1
    assert received > 0
    await second.until_state(subscribers={"u1": ["bob"]})
    await staying.close()


async def test_a_client_that_stops_reading_holds_up_nobody(
    instances: tuple[Instance, Instance],
) -> None:
    first, second = instances
    stalled = await second.socket("ada", "u1")
    reading = await second.socket("bob", "u1")
    stalled.transport.pause_reading()
    body = json.dumps({"text": "x" * 100_000})
    for _ in range(100):
        await first.request("/uploads/u1/progress", body)
        await text_of(reading)
    stalled.transport.abort()
    await reading.close()


async def test_an_instance_says_goodbye_when_it_is_told_to_end(
    instances: tuple[Instance, Instance],
) -> None:
    _, second = instances
    client = await second.socket("ada", "u1")
    second.process.send_signal(signal.SIGTERM)
    with pytest.raises(ConnectionClosed) as closed:
        await asyncio.wait_for(client.recv(), DEADLINE_SECONDS)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    await until(lambda: second.process.poll() is not None, "the process ends")
    # Uvicorn repeats the signal that ended it.
    assert second.process.returncode in (0, -signal.SIGTERM)


async def recorded(client: ClientConnection) -> dict[str, Any]:
    """The next message that is not the app's own confirmation."""
    while (message := json.loads(await text_of(client)))["action"] == "subscribed":
        pass
    assert isinstance(message, dict)
    return message


async def test_who_vanished_gets_on_the_other_instance_what_was_missed(
    instances_with_history: tuple[Instance, Instance], unique: Unique
) -> None:
    first, second = instances_with_history
    upload_id = unique("upload")
    path = f"/uploads/{upload_id}/progress"
    await first.until_state(running=True)
    await second.until_state(running=True)
    await first.request(path, progress(upload_id, 10).model_dump_json())
    vanishing = await second.socket("ada")
    await vanishing.send(json.dumps({"upload_id": upload_id}))
    known = await recorded(vanishing)
    assert known["payload"]["progress_percent"] == 10
    reset(vanishing)
    for body in (progress(upload_id, 20), completed(upload_id)):
        await first.request(path, body.model_dump_json())

    back = await first.socket("ada")
    since = known["_fanwire"]
    await back.send(json.dumps({"upload_id": upload_id, "since": since}))
    positions = [(await recorded(back))["_fanwire"]]
    if positions[0]["offset"] == 2:  # unless newer progress overwrote it
        positions.append((await recorded(back))["_fanwire"])
    assert positions[-1] == {"epoch": since["epoch"], "offset": 3}
    late = await second.socket("bob")
    await late.send(json.dumps({"upload_id": upload_id}))
    last = await recorded(late)
    assert (last["action"], last["_fanwire"]) == ("upload_completed", positions[-1])
    for client in (back, late):
        await client.close()
