"""What lives over many runs: a redis-server, doors to it, and two instances of the app."""

import json
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import fanwire
from tests.faults import proxy
from tests.faults.faults import INSTANCES, WRITERS_DOOR
from tests.faults.hosts import Host, Process, Thread
from tests.faults.proxy import Door
from tests.interpreters import ROOT
from tests.redis_server import RedisServer

IN_MEMORY = "memory://"


class World:
    """Args:
    server: None where the broker is the memory of this process; then there are no doors.
    writers_url: by which the writers reach the broker.
    """

    def __init__(
        self,
        server: RedisServer | None,
        doors: dict[str, Door],
        instances: Mapping[str, Host],
        writers_url: str,
        history_size: int,
    ) -> None:
        self.server = server
        self.doors = doors
        self.instances = instances
        self.writers_url = writers_url
        self.history_size = history_size
        self.runs = 0
        self.is_broken = False
        """Whether an instance has ended or does not answer: of no use for another run."""

    @classmethod
    def created(
        cls, history_size: int, *, in_memory: bool = False
    ) -> AbstractAsyncContextManager[Self]:
        """Ready for runs. A size of 0 is for runs without a history."""
        return cls._in_memory(history_size) if in_memory else cls._with_redis(history_size)

    @classmethod
    @asynccontextmanager
    async def _with_redis(cls, history_size: int) -> AsyncIterator[Self]:
        rules = documented_rules()
        with ExitStack() as stack:
            server = RedisServer(password="secret", acl_user="app", acl_rules=rules)
            stack.enter_context(server)
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fanwire-")))
            names = (*INSTANCES, WRITERS_DOOR)
            async with proxy.opened(("127.0.0.1", server.port), *names) as doors:
                urls = {name: server.url_through(door.port) for name, door in doors.items()}
                instances = {
                    name: stack.enter_context(
                        Process.running(urls[name], history_size, directory / name)
                    )
                    for name in INSTANCES
                }
                world = cls(server, doors, instances, urls[WRITERS_DOOR], history_size)
                yield await world._settled()

    @classmethod
    @asynccontextmanager
    async def _in_memory(cls, history_size: int) -> AsyncIterator[Self]:
        with ExitStack() as stack:
            instances = {
                name: stack.enter_context(Thread.running(IN_MEMORY, history_size))
                for name in INSTANCES
            }
            yield await cls(None, {}, instances, IN_MEMORY, history_size)._settled()

    async def _settled(self) -> Self:
        troubles = await self.settle()
        if troubles:
            raise RuntimeError("; ".join(troubles))
        return self

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

    async def tell_user(self, user_id: str, message: dict[str, Any]) -> None:
        """Publishes past all doors."""
        if self.server is not None:
            self.server.publish(f"user:{user_id}", json.dumps(message))
            return
        publisher = fanwire.UploadProgressPublisher(IN_MEMORY, strict=True)
        try:
            await publisher.publish_to_user(user_id, message)
        finally:
            await publisher.stop()

    async def figures(self) -> Counter[str]:
        """The counters of both instances together."""
        figures: Counter[str] = Counter()
        for instance in self.instances.values():
            figures.update(await instance.ask("/figures"))
        return figures


def documented_rules() -> str:
    """What docs/recovery.md lets the user of an app do; more nobody needs, whatever happens."""
    page = (ROOT / "docs" / "recovery.md").read_text("utf-8")
    found = re.search(r"(?s)\nredis-cli ACL SETUSER app on '>password' (.*?)\n```", page)
    assert found is not None, "docs/recovery.md has no rules"
    return " ".join(shlex.split(found[1].replace("\\\n", " ")))
