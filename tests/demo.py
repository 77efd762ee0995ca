"""The demo as tests use it: its processes, and what a browser would say to them."""

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.deadlines import DEADLINE_SECONDS, until, until_blocking
from tests.interpreters import ROOT, environment

# A process has to import all that it needs first, on a machine that may be busy with other things.
START_DEADLINE_SECONDS = 40.0


class Process:
    """A process, and the files that it writes its output to. Killed at the end of the block."""

    def __init__(
        self, command: list[str], pass_descriptors: Sequence[int] = (), **variables: str
    ) -> None:
        self._command = command
        self._pass_descriptors = pass_descriptors
        self._variables = variables

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="fanwire-demo-")
        self.directory = Path(self._directory.name)
        temporary = self.directory / "temporary"  # where an upload's file would stay behind
        temporary.mkdir()
        with (
            (self.directory / "stdout").open("wb") as stdout,
            (self.directory / "stderr").open("wb") as stderr,
        ):
            self.process = subprocess.Popen(
                self._command,
                stdout=stdout,
                stderr=stderr,
                cwd=ROOT,
                env={**environment(), "TMPDIR": str(temporary), **self._variables},
                pass_fds=self._pass_descriptors,
                # A group of its own, so that a test can do what a terminal does on Ctrl-C.
                start_new_session=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        children = self.children()
        self.process.kill()
        self.process.wait()
        # They end by themselves when their parent is gone; their files go after them.
        until_blocking(lambda: not any(map(alive, children)), f"{children} end")
        self._directory.cleanup()

    @property
    def stdout(self) -> str:
        return (self.directory / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.directory / "stderr").read_text()

    def children(self) -> list[int]:
        if self.process.poll() is not None:
            return []
        pid = self.process.pid
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    async def until_ended(self) -> int:
        await until(lambda: self.process.poll() is not None, "the process ends")
        return int(self.process.returncode)


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    # A child whose parent was killed waits for init to collect it, which is not every init's habit.
    return status.rpartition(")")[2].split()[0] != "Z"


class Demo(Process):
    """``python -m fanwire demo`` on free ports. Inside the block all its instances serve."""

    def __init__(self, *arguments: str, instances: int = 1) -> None:
        command = [sys.executable, "-m", "fanwire", "demo", "--port", "0"]
        super().__init__([*command, "--instances", str(instances), *arguments])
        self._instances = instances

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            until_blocking(self._serves, "the demo serves", deadline_seconds=START_DEADLINE_SECONDS)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _serves(self) -> bool:
        assert self.process.poll() is None, self.stderr
        return len(self._printed_urls()) == self._instances

    def _printed_urls(self) -> list[str]:
        lines = self.stdout.splitlines(keepends=True)
        return [line.strip() for line in lines if line.startswith("  http") and line[-1] == "\n"]

    @property
    def instances(self) -> list["Instance"]:
        return [Instance(url) for url in self._printed_urls()]


class OwnInstance(Process):
    """One instance of the app (tests/apps/demo_instance.py) with the settings of a test."""

    def __init__(self, *, listen_on: int = 0, **settings: Any) -> None:
        self._listening = socket.create_server(("127.0.0.1", listen_on))
        descriptor = self._listening.fileno()
        port = self._listening.getsockname()[1]
        self.instance = Instance(f"http://127.0.0.1:{port}")
        super().__init__(
            [
                *[sys.executable, "-m", "tests.apps.demo_instance", str(descriptor)],
                json.dumps({"port": port, **settings}),
            ],
            pass_descriptors=[descriptor],
        )

    def __enter__(self) -> Self:
        with self._listening:  # it listens already, so an early request just waits
            return super().__enter__()

    async def until_state(self, **expected: Any) -> None:
        end = asyncio.get_running_loop().time() + DEADLINE_SECONDS
        while (state := (await self.instance.request("GET", "/state")).json) | expected != state:
            assert asyncio.get_running_loop().time() < end, f"{state} does not become {expected}"
            await asyncio.sleep(0.005)


@dataclass(frozen=True)
class Answer:
    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True)
class Instance:
    """The address of one instance, and what one says to it."""

    url: str

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    async def request(
        self,
        method: str,
        path: str,
        body: str | bytes | Iterable[bytes] | None = None,
        *,
        user: str | None = None,
        **headers: str,
    ) -> Answer:
        """The body may be an iterator: it is sent in chunks then, and its size is not announced."""
        if isinstance(body, str):
            headers["Content-Type"] = "application/json"
        if user is not None:
            headers["Authorization"] = f"Bearer {user}"

        def send() -> Answer:
            connection = http.client.HTTPConnection(
                "127.0.0.1", self.port, timeout=START_DEADLINE_SECONDS
            )
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                return Answer(response.status, response.read().decode())
            finally:
                connection.close()

        return await asyncio.to_thread(send)

    async def new_upload(self, user: str, size: int, file_name: str = "rows.csv") -> str:
        body = json.dumps({"file_name": file_name, "size": size})
        answer = await self.request("POST", "/uploads", body, user=user)
        assert answer.status == 201, answer
        return str(answer.json["upload_id"])

    async def put(
        self, user: str, upload_id: str, body: bytes | Iterable[bytes], query: str = ""
    ) -> Answer:
        return await self.request("PUT", f"/uploads/{upload_id}{query}", body, user=user)

    @asynccontextmanager
    async def begin(
        self, user: str, upload_id: str, size: int, body: bytes, query: str = ""
    ) -> AsyncIterator[asyncio.StreamReader]:
        """Sends the head of an upload and the first bytes of its body; hangs up after the block."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"PUT /uploads/{upload_id}{query} HTTP/1.1\r\nHost: demo\r\n"
        head += f"Content-Length: {size}\r\n"
        writer.write(f"{head}Authorization: Bearer {user}\r\n\r\n".encode() + body)
        try:
            await writer.drain()
            yield reader
        finally:
            writer.close()
            with suppress(ConnectionError):  # the server may have hung up first
                await writer.wait_closed()

    async def connect(self, path: str = "/ws") -> "Client":
        url = f"ws://127.0.0.1:{self.port}{path}"
        return Client(
            await connect(url, open_timeout=START_DEADLINE_SECONDS, ping_interval=None, proxy=None)
        )

    async def sign_in(self, user: str) -> "Client":
        client = await self.connect()
        await client.send({"type": "auth", "token": user})
        assert await client.receive() == {"action": "auth_success", "user_id": user}
        return client


class Client:
    """A browser's side of the WebSocket."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def receive(self) -> Any:
        return json.loads(await asyncio.wait_for(self.socket.recv(), DEADLINE_SECONDS))

    async def settled(self) -> None:
        """Returns when the server has dealt with all that was sent before."""
        await self.send({"action": "ping"})
        assert await self.receive() == {"action": "pong"}

    async def watch(self, upload_id: str, since: Any = None) -> None:
        await self.send({"action": "subscribe_upload", "upload_id": upload_id, "since": since})

    async def until_over(self) -> list[Any]:
        """All that comes, up to the message that ends an upload."""
        messages = [await self.receive()]
        while messages[-1]["action"] not in ("upload_completed", "upload_failed"):
            messages.append(await self.receive())
        return messages

    async def close_code(self) -> int:
        """The code with which the server closes; what it sent before is read away."""
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(self._read_on(), DEADLINE_SECONDS)
        code = self.socket.close_code
        assert code is not None
        return code

    async def _read_on(self) -> None:
        while True:
            await self.socket.recv()
