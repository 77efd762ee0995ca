"""What the app runs in: a process of its own, or a thread of this one."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import uvicorn

import fanwire
from tests.deadlines import DEADLINE_SECONDS
from tests.faults.instance import make_app, make_config
from tests.interpreters import ROOT, environment

POLL_SECONDS = 0.02


class Host(ABC):
    """Runs an instance of the app, and is asked about it."""

    def __init__(self, port: int) -> None:
        self.address = ("127.0.0.1", port)

    @abstractmethod
    def new_troubles(self) -> list[str]:
        """What has gone wrong since the last time and no outage explains."""

    async def ask(self, path: str) -> dict[str, Any]:
        """The socket listens from the beginning, so an early request just waits."""

        def get() -> dict[str, Any]:
            url = f"http://{self.address[0]}:{self.address[1]}{path}"
            with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as answer:
                answered: dict[str, Any] = json.load(answer)
                return answered

        return await asyncio.to_thread(get)

    async def block(self, seconds: float) -> int:
        """Its event loop stands still. How many messages its listener got meanwhile."""
        return int((await self.ask(f"/block?seconds={seconds}"))["received"])

    async def is_idle(self) -> None:
        """Returns when it listens, and nobody is connected to it."""
        end = time.monotonic() + DEADLINE_SECONDS
        while (health := await self.ask("/health"))["state"] != "live":
            assert time.monotonic() < end, f"it does not listen: {health}"
            await asyncio.sleep(POLL_SECONDS)
        while connected := (await self.ask("/figures"))["connected"]:
            assert time.monotonic() < end, f"{connected} users are left behind"
            await asyncio.sleep(POLL_SECONDS)


class Process(Host):
    """Where apps run: their brokers are behind a network."""

    def __init__(self, port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
        super().__init__(port)
        self._process = process
        self._log = log
        self._read = 0

    @classmethod
    @contextmanager
    def running(cls, url: str, history_size: int, log: Path) -> Iterator[Self]:
        with socket.create_server(("127.0.0.1", 0)) as listening, log.open("wb") as errors:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.faults.instance"),
                    *(str(listening.fileno()), url, str(history_size)),
                ],
                pass_fds=[listening.fileno()],
                stdin=subprocess.PIPE,
                stderr=errors,
                env=environment(),
                cwd=ROOT,
            )
            port: int = listening.getsockname()[1]
        try:
            yield cls(port, process, log)
        finally:
            process.kill()
            process.communicate()

    def new_troubles(self) -> list[str]:
        printed = self._log.read_bytes()[self._read :].decode(errors="replace")
        self._read += len(printed.encode())
        if self._process.poll() is not None:
            return [f"an instance ended with status {self._process.returncode}: {printed}"]
        is_trouble = "Traceback" in printed or "panicked" in printed
        return [f"an instance printed: {printed}"] if is_trouble else []


class Thread(Host):
    """Where ``memory://`` reaches: everybody is in one process, each instance with its own loop."""

    def __init__(self, port: int, thread: threading.Thread) -> None:
        super().__init__(port)
        self._thread = thread

    @classmethod
    @contextmanager
    def running(cls, url: str, history_size: int) -> Iterator[Self]:
        history = fanwire.History(size=history_size) if history_size else None
        server = uvicorn.Server(make_config(make_app(url, history)))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
            thread.start()
            try:
                yield cls(listening.getsockname()[1], thread)
            finally:
                server.should_exit = True
                thread.join(DEADLINE_SECONDS)

    def new_troubles(self) -> list[str]:
        return [] if self._thread.is_alive() else ["an instance has ended"]
