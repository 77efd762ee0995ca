"""A redis-server of its own for a test: nobody else's messages, nothing on disk, and gone after."""

import errno
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from fanwire.testing import tethered

__all__ = ["PROGRAM", "PrivateRedis"]

PROGRAM = "redis-server"
START_SECONDS = 20.0
STOP_SECONDS = 5.0
POLL_SECONDS = 0.005
PORTS_TO_TRY = 10


class PrivateRedis:
    """A redis-server process on a free port of the loopback. A context manager.

    It runs inside the block, with a directory of its own under the system's temporary one. At the
    block's end the process ends and the directory is removed. Where this process is killed, the
    server ends all the same, and what is left is the directory with its log.

    Args:
        program: the path of ``redis-server``, or its name if it is on the PATH.

    Raises:
        FileNotFoundError: on entering: there is no such program.
        RuntimeError: on entering: it ended by itself, or did not answer within 20 s. The text has
            what it printed.
    """

    def __init__(self, program: str = PROGRAM) -> None:
        self._program = program
        self._directory = Path()
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens, as ``redis://127.0.0.1:{port}``."""
        return f"redis://127.0.0.1:{self._port}"

    @property
    def process_id(self) -> int | None:
        """The id of the process; None before the block and after it."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Self:
        # A short path: the name of a Unix socket has room for about a hundred bytes.
        self._directory = Path(tempfile.mkdtemp(prefix="fanwire-redis-"))
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        shutil.rmtree(self._directory)

    def _start(self) -> None:
        """Somebody may take the free port first: the server then ends, and another is tried."""
        if shutil.which(self._program) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._program)
        for _ in range(PORTS_TO_TRY):
            self._port = _free_port()
            with self._log.open("wb") as log:
                self._process = tethered.start(self._command(), log)
            if self._answers(self._process):
                return
            self._end()
            if "in use" not in self._printed():
                break
        raise RuntimeError(f"{self._program} did not start: {self._printed() or 'it said nothing'}")

    def _command(self) -> list[str]:
        return [
            self._program,
            *("--bind", "127.0.0.1", "--port", str(self._port)),
            *("--unixsocket", str(self._socket), "--dir", str(self._directory)),
            *("--save", "", "--appendonly", "no"),
        ]

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        """Asks on the Unix socket, which it opens after the port: whoever answers there is ours."""
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(START_SECONDS)
                    client.connect(str(self._socket))
                    client.sendall(b"PING\r\n")
                    if client.recv(64).startswith(b"+PONG"):
                        return True
            except (FileNotFoundError, ConnectionError):
                pass  # not yet
            time.sleep(POLL_SECONDS)
        return False

    def _end(self) -> None:
        if self._process is None:
            return
        with self._process as process:  # at the end of the block its input is closed, too
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        self._process = None

    @property
    def _socket(self) -> Path:
        return self._directory / "redis.sock"

    @property
    def _log(self) -> Path:
        return self._directory / "log"

    def _printed(self) -> str:
        return self._log.read_text(errors="replace").strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
