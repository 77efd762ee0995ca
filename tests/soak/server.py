"""The app's process: started, asked, looked at from outside, and stopped."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.deadlines import DEADLINE_SECONDS, until
from tests.interpreters import ROOT, environment

LISTEN_STATE = "0A"  # as /proc/net/tcp spells it
STOP_SECONDS = 5.0
LOOKS = 4
BETWEEN_LOOKS_SECONDS = 0.02


@dataclass(frozen=True)
class Resources:
    """What the kernel says the process holds."""

    rss_mib: float
    threads: int
    # Descriptors of accepted connections, which come and go with the clients; and all others.
    client_descriptors: int
    own_descriptors: int


class Server:
    """A uvicorn process that serves inside the block, and is killed at its end."""

    def __init__(self, url: str, ttl_seconds: float | None) -> None:
        self._arguments = [url] if ttl_seconds is None else [url, str(ttl_seconds)]

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="fanwire-soak-")
        self._log = Path(self._directory.name) / "stderr"
        with (
            socket.create_server(("127.0.0.1", 0), backlog=512) as listening,
            self._log.open("wb") as log,
        ):
            self.port: int = listening.getsockname()[1]
            descriptor = listening.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.soak.app", str(descriptor), *self._arguments],
                pass_fds=[descriptor],
                stderr=log,
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
        self._process.kill()
        self._process.wait()
        self._directory.cleanup()

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def state(self) -> Any:
        """What the app says of itself. It may be asked before it serves: then it just waits."""

        def ask() -> Any:
            url = f"http://127.0.0.1:{self.port}/state"
            with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as answer:
                return json.load(answer)

        try:
            return await asyncio.to_thread(ask)
        except OSError as error:
            raise RuntimeError(f"the server does not answer; its log:\n{self.log}") from error

    async def until_figures(self, **expected: int) -> dict[str, int]:
        """The figures, when they are as expected; or at the deadline, as they are then."""
        end = asyncio.get_running_loop().time() + DEADLINE_SECONDS
        while True:
            figures: dict[str, int] = (await self.state())["figures"]
            if {**figures, **expected} == figures or asyncio.get_running_loop().time() > end:
                return figures
            await asyncio.sleep(0.1)

    async def resources(self) -> Resources:
        """Of several looks the one with the fewest descriptors of its own.

        A connection that is just being accepted or closed is in the kernel's table of connections
        too late or no more, and looks like something else.
        """
        looks = [self._look()]
        while len(looks) < LOOKS:
            await asyncio.sleep(BETWEEN_LOOKS_SECONDS)
            looks.append(self._look())
        return min(looks, key=lambda look: look.own_descriptors)

    def _look(self) -> Resources:
        home = Path("/proc") / str(self._process.pid)
        pages = int((home / "statm").read_text().split()[1])
        connections = self._accepted_connections(home)
        links = []
        for descriptor in (home / "fd").iterdir():
            try:
                links.append(str(descriptor.readlink()))
            except FileNotFoundError:
                continue  # closed since it was listed
        clients = sum(link in connections for link in links)
        return Resources(
            rss_mib=pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
            threads=len(list((home / "task").iterdir())),
            client_descriptors=clients,
            own_descriptors=len(links) - clients,
        )

    def _accepted_connections(self, home: Path) -> set[str]:
        """Those to the app's own port, as the links in the process's ``fd`` name them."""
        found = set()
        for line in (home / "net" / "tcp").read_text().splitlines()[1:]:
            fields = line.split()
            port = int(fields[1].rpartition(":")[2], 16)
            if port == self.port and fields[3] != LISTEN_STATE:
                found.add(f"socket:[{fields[9]}]")
        return found

    async def stop(self) -> int | None:
        """Ends it as a supervisor would; its status, or None where it hangs."""
        self._process.send_signal(signal.SIGTERM)
        try:
            await until(
                lambda: self._process.poll() is not None,
                "the server ends",
                deadline_seconds=STOP_SECONDS,
            )
        except AssertionError:
            return None
        return self._process.returncode
