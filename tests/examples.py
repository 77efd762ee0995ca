"""The folders of ``examples/``, used as a newcomer would: by the commands of their READMEs."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import orjson
from websockets.sync.client import ClientConnection, connect

from tests.deadlines import DEADLINE_SECONDS, until_blocking
from tests.interpreters import ROOT, TIMEOUT_SECONDS, environment
from tests.redis_server import RedisServer

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TROUBLE = re.compile("panicked|never awaited|ResourceWarning|Fatal Python error")

# Lines of a text: how many are work for longer than there is between two messages depends on the
# machine.
MORE_AND_MORE = [400_000 << doubled for doubled in range(5)]


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


class Running:
    """A command that was started, and the file that it writes to."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output

    @property
    def output(self) -> str:
        return self._output.read_text()

    def until(self, condition: Callable[[], object], what: str) -> None:
        """As ``until_blocking``, and fails at once where the process has ended."""

        def holds() -> object:
            assert self.process.poll() is None, self.output
            return condition()

        until_blocking(holds, what)


class Example:
    """A copy of one folder: whatever it needs has to be in it.

    Args:
        name: of the folder.
        directory: where the copy goes.
        url: of the broker.
    """

    def __init__(self, name: str, directory: Path, url: str) -> None:
        self.directory = directory / name
        shutil.copytree(
            ROOT / "examples" / name, self.directory, ignore=shutil.ignore_patterns("__pycache__")
        )
        readme = (self.directory / "README.md").read_text("utf-8")
        self._commands = [
            line for block in BLOCK.findall(readme) for line in str(block).splitlines()
        ]
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self._environment = {
            **environment(),
            "FANWIRE_URL": url,
            "PATH": programs,
            "PYTHONWARNINGS": "ignore",  # of the libraries that the examples are about
            "PYTHONUNBUFFERED": "1",
        }
        self._started = 0

    def command(self, beginning: str, replaced: dict[str, str] | None = None) -> str:
        """The one command of the README that begins so, with other ports, say, than its own."""
        [command] = [line for line in self._commands if line.startswith(beginning)]
        for old, new in (replaced or {}).items():
            assert command.count(old) == 1, command
            command = command.replace(old, new)
        return command

    def run(
        self, beginning: str, replaced: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        return subprocess.run(
            ["sh", "-c", self.command(beginning, replaced)],
            cwd=self.directory,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )

    @contextmanager
    def running(
        self,
        beginning: str,
        replaced: dict[str, str] | None = None,
        *,
        serves: int | None = None,
        tracebacks: bool = False,
    ) -> Iterator[Running]:
        """Runs a command until the block is left; then it has to end by itself, in good order.

        Args:
            beginning, replaced: as for ``command``.
            serves: the port on which it is to listen before the block begins.
            tracebacks: whether it may print some, because a job is meant to fail.
        """
        self._started += 1
        output = self.directory / f"output-{self._started}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["sh", "-c", f"exec {self.command(beginning, replaced)}"],
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running = Running(process, output)
        try:
            if serves is not None:
                running.until(lambda: is_listening(serves), f"it listens on {serves}")
            yield running
            process.terminate()
            process.wait(TIMEOUT_SECONDS)
            # Uvicorn repeats the signal that ended it.
            assert process.returncode in (0, -signal.SIGTERM), running.output
            assert not TROUBLE.search(running.output), running.output
            assert tracebacks or "\nTraceback" not in running.output, running.output
        except BaseException:
            sys.stderr.write(running.output)  # what pytest shows of a failed test
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Tap:
    """Hears all that is published on channels of some patterns, in order."""

    def __init__(self, server: RedisServer, *patterns: str) -> None:
        self.heard: list[tuple[str, Any]] = []
        self._pubsub = server.tap(patterns=patterns)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Listens until the condition holds of what was heard."""
        end = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < end, f"not heard: {what}, but {self.heard}"
            message: dict[str, Any] | None = self._pubsub.get_message(timeout=0.05)
            if message is not None:
                self.heard.append((message["channel"].decode(), orjson.loads(message["data"])))

    def of(self, channel: str) -> list[Any]:
        """The messages of a channel so far."""
        return [message for name, message in self.heard if name == channel]

    def close(self) -> None:
        self._pubsub.close()


class Watcher:
    """A client's WebSocket, and what has come over it."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    @classmethod
    @contextmanager
    def of(cls, port: int, upload_id: str) -> Iterator[Self]:
        """Watches an upload to the app on a port."""
        with connect(f"ws://127.0.0.1:{port}/uploads/{upload_id}", proxy=None) as socket:
            yield cls(socket)

    def until_over(self) -> list[Any]:
        messages: list[Any] = []
        while not is_over(messages):
            messages.append(orjson.loads(self._socket.recv(DEADLINE_SECONDS)))
        return messages


def story(messages: list[Any], *stages: str) -> Any:
    """Checks what a tracker has told of one upload from beginning to end; returns the end."""
    *progress, end = messages
    assert {message["action"] for message in progress} == {"upload_progress"}, messages
    payloads = [message["payload"] for message in progress]
    assert [stage for stage, _ in groupby(payload["stage"] for payload in payloads)] == [*stages]
    percents = [payload["progress_percent"] for payload in payloads]
    assert percents[0] == 0 and percents == sorted(percents), percents
    assert end["action"] in ("upload_completed", "upload_failed"), messages
    return end


def is_over(messages: list[Any]) -> bool:
    return bool(messages) and messages[-1]["action"] in ("upload_completed", "upload_failed")


def moved(messages: list[Any]) -> bool:
    """Whether any of them tells of progress within the work; of little work none does."""
    percents = [m["payload"]["progress_percent"] for m in messages if "payload" in m]
    return any(percent > 0 for percent in percents)
