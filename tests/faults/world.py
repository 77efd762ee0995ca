"""What lives over many runs: a redis-server, doors to it, and two instances of the app."""

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

from tests.deadlines import DEADLINE_SECONDS
from tests.faults import proxy
from tests.faults.plan import INSTANCES, WRITERS_DOOR
from tests.faults.proxy import Door
from tests.interpreters import ROOT, environment
from tests.redis_server import RedisServer

POLL_SECONDS = 0.02


class Instance:
    """A process with the app. It runs inside the block."""

    def __init__(self, port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.address = ("127.0.0.1", port)
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

    async def ask(self, path: str) -> dict[str, Any]:
        """The socket listens from the beginning, so an early request just waits."""

        def get() -> dict[str, Any]:
            url = f"http://{self.address[0]}:{self.address[1]}{path}"
            with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as answer:
                answered: dict[str, Any] = json.load(answer)
                return answered

        return await asyncio.to_thread(get)

    async def is_idle(self) -> None:
        """Returns when it listens, and nobody is connected to it."""
        end = time.monotonic() + DEADLINE_SECONDS
        while (health := await self.ask("/health"))["state"] != "live":
            assert time.monotonic() < end, f"it does not listen: {health}"
            await asyncio.sleep(POLL_SECONDS)
        while connected := (await self.ask("/figures"))["connected"]:
            assert time.monotonic() < end, f"{connected} users are left behind"
            await asyncio.sleep(POLL_SECONDS)

    def new_troubles(self) -> list[str]:
        """What it has printed since the last time and no outage explains."""
        printed = self._log.read_bytes()[self._read :].decode(errors="replace")
        self._read += len(printed.encode())
        if self._process.poll() is not None:
            return [f"an instance ended with status {self._process.returncode}: {printed}"]
        is_trouble = "Traceback" in printed or "panicked" in printed
        return [f"an instance printed: {printed}"] if is_trouble else []


class World:
    def __init__(
        self,
        server: RedisServer,
        doors: dict[str, Door],
        instances: dict[str, Instance],
        history_size: int,
    ) -> None:
        self.server = server
        self.doors = doors
        self.instances = instances
        self.history_size = history_size
        self.runs = 0
        self.is_broken = False
        """Whether an instance has ended or does not answer: of no use for another run."""

    @classmethod
    @asynccontextmanager
    async def created(cls, history_size: int) -> AsyncIterator[Self]:
        """Ready for runs. A size of 0 is for runs without a history."""
        with ExitStack() as stack:
            server = stack.enter_context(RedisServer())
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fanwire-")))
            names = (*INSTANCES, WRITERS_DOOR)
            async with proxy.opened(("127.0.0.1", server.port), *names) as doors:
                instances = {
                    name: stack.enter_context(
                        Instance.running(doors[name].url, history_size, directory / name)
                    )
                    for name in INSTANCES
                }
                world = cls(server, doors, instances, history_size)
                troubles = await world.settle()
                if troubles:
                    raise RuntimeError("; ".join(troubles))
                yield world

    async def settle(self) -> list[str]:
        """Waits until both instances listen and nobody is connected. What is wrong with them."""
        troubles: list[str] = []
        for name, instance in self.instances.items():
            try:
                await instance.is_idle()
            except (AssertionError, OSError) as error:
                troubles.append(f"{name}: {error}")
        troubles += [
            trouble for instance in self.instances.values() for trouble in instance.new_troubles()
        ]
        self.is_broken |= bool(troubles)
        return troubles

    def release(self) -> None:
        """The end of all faults of the network."""
        for door in self.doors.values():
            door.release()

    async def figures(self) -> Counter[str]:
        """The counters of both instances together."""
        figures: Counter[str] = Counter()
        for instance in self.instances.values():
            figures.update(await instance.ask("/figures"))
        return figures
