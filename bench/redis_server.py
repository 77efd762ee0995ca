"""A redis-server of our own, on a free port; with nothing on disk, unless it is given a folder."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS = 10.0
STOP_SECONDS = 5.0


class RedisServer:
    """With a folder it keeps what it is told, and has what was kept there before.

    `cores`: where it runs; anywhere, if that is not said.
    """

    def __init__(
        self,
        folder: Path | None = None,
        port: int | None = None,
        cores: set[int] | None = None,
    ) -> None:
        self.port = port or free_port()
        self._folder = folder
        self._cores = cores
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Returns once it answers. It can be started again after `stop`."""
        self._process = subprocess.Popen(
            [
                "redis-server",
                *("--bind", "127.0.0.1", "--port", str(self.port)),
                *("--save", "", "--appendonly", "no" if self._folder is None else "yes"),
                *(() if self._folder is None else ("--dir", str(self._folder))),
                # A slow contender is measured, not disconnected for being behind.
                *("--client-output-buffer-limit", "pubsub 0 0 0"),
            ],
            stdout=subprocess.DEVNULL,
        )
        if self._cores is not None:
            os.sched_setaffinity(self._process.pid, self._cores)
        try:
            self._wait_until_up(self._process)
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def pause(self) -> None:
        """It stands still: connections stay open, and nobody answers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def version(self) -> str:
        with socket.create_connection(("127.0.0.1", self.port), timeout=2.0) as sock:
            sock.sendall(b"INFO server\r\n")
            answer = sock.recv(65536).decode()
        for line in answer.splitlines():
            if line.startswith("redis_version:"):
                return line.removeprefix("redis_version:")
        raise RuntimeError("redis-server did not tell its version")

    def _wait_until_up(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"redis-server ended at once with status {process.returncode}")
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as sock:
                    sock.sendall(b"PING\r\n")
                    if sock.recv(64).startswith(b"+PONG"):
                        return
            except OSError:
                pass
            time.sleep(0.005)  # it is not up, or reads what it has kept
        raise RuntimeError(f"redis-server was not up within {START_SECONDS:g} s")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
