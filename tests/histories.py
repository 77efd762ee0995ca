"""Recorded messages, clients that know what they have of an upload, and instances of an app."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

import fanwire
from tests.connections import RecordingConnection
from tests.deadlines import until
from tests.redis_server import RedisServer
from tests.servers import AnyServer

Position = tuple[str, int]
InstanceFactory = Callable[..., Awaitable["Instance"]]

RESYNC = "resync"
FINAL = {"action": "upload_completed"}


def progress(percent: int, **more: Any) -> dict[str, Any]:
    """Where the current state begins, unless something newer of its kind comes."""
    return {"action": "upload_progress", "payload": {"progress_percent": percent}, **more}


def note(number: int, **more: Any) -> dict[str, Any]:
    """A message that belongs to the state, as it is neither progress nor final."""
    return {"action": "note", "number": number, **more}


def notes(count: int) -> list[dict[str, Any]]:
    return [note(number) for number in range(1, count + 1)]


def position_of(text: str) -> Position | None:
    """What the reserved member says; None for a message that is not recorded."""
    try:
        message = json.loads(text)
    except ValueError:
        return None
    member = message.get("_fanwire") if isinstance(message, dict) else None
    return (member["epoch"], member["offset"]) if member is not None else None


def seen(text: str) -> int | str:
    """The offset of a recorded message; "resync"; or the text of any other."""
    position = position_of(text)
    if position is not None:
        return position[1]
    try:
        message = json.loads(text)
    except ValueError:
        return text
    return RESYNC if isinstance(message, dict) and message.get("action") == RESYNC else text


def faults(texts: Iterable[str]) -> list[str]:
    """What breaks the rules for one upload: offsets grow within an epoch, up to a resync."""
    found: list[str] = []
    at: Position | None = None
    for text in texts:
        position = position_of(text)
        if seen(text) == RESYNC:
            at = None
        elif position is not None:
            if at is not None and (position[0] != at[0] or position[1] <= at[1]):
                found.append(f"{position} after {at}")
            at = position
    return found


def kept(server: AnyServer, upload_id: str) -> list[Any]:
    """Every message that is kept of an upload, oldest first."""
    if isinstance(server, RedisServer):
        entries: Any = server.client.xrange(f"fanwire:{{{upload_id}}}:log")
        return [json.loads(fields[b"d"]) for _, fields in entries]
    upload = hashlib.sha256(upload_id.encode()).digest()
    state = "SELECT epoch FROM fanwire_read(ARRAY[%s], ARRAY[NULL]::text[], ARRAY[0]) LIMIT 1"
    all_since = f"fanwire_read(ARRAY[%s], ARRAY[({state})], ARRAY[0])"
    rows = server.rows(f'SELECT payload FROM {all_since} ORDER BY "offset"', upload, upload)
    return [json.loads(payload) for (payload,) in rows]


def commands(server: RedisServer) -> dict[str, int]:
    """How often each command was called since ``CONFIG RESETSTAT``, scripts' own ones included."""
    statistics: dict[str, dict[str, int]] = server.client.info("commandstats")
    return {name.removeprefix("cmdstat_"): n["calls"] for name, n in statistics.items()}


class Client(RecordingConnection):
    """A browser that watches one upload."""

    @property
    def seen(self) -> list[int | str]:
        return [seen(text) for text in self.texts]

    @property
    def at(self) -> Position | None:
        """The position of the newest recorded message that it has."""
        positions = (position_of(text) for text in reversed(self.texts))
        return next((position for position in positions if position is not None), None)

    async def saw(self, *expected: int | str) -> None:
        """Returns when it has been given as much as this, and that is just this."""

        def is_there() -> bool:
            return len(self.texts) >= len(expected) and self.seen[-1:] == list(expected[-1:])

        await self._until(is_there, f"{list(expected)}")
        assert self.seen == list(expected), f"{self.seen[:200]} is not {list(expected)}"

    async def reached(self, offset: int) -> list[int | str]:
        """What it has, as soon as that ends with this offset. Nothing may go backwards in it."""
        await self._until(lambda: self.seen[-1:] == [offset], f"one that ends with {offset}")
        assert faults(self.texts) == [], self.seen[:200]
        return self.seen

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            await until(condition)
        except AssertionError as error:
            raise AssertionError(f"{self.seen[:200]} at {self} does not become {what}") from error


class SlowClient(Client):
    """Gives way to the event loop in every send."""

    async def send_text(self, data: str) -> None:
        await asyncio.sleep(0)
        self.texts.append(data)


@dataclass(frozen=True)
class Instance:
    """An instance of an app: its manager, and the publisher that listens for it."""

    manager: fanwire.ConnectionManager
    publisher: fanwire.UploadProgressPublisher

    async def watch(
        self,
        upload_id: str,
        *,
        user: str = "ada",
        since: Position | None = None,
        client: Client | None = None,
    ) -> Client:
        """A client of its own, which watches from now on."""
        client = client or Client()
        await self.manager.connect(user, client)
        await self.manager.subscribe_upload(user, upload_id, connection=client, since=since)
        return client

    async def publish(self, upload_id: str, *messages: Any) -> list[Position]:
        """Publishes one after another. Where they stand then."""
        return [await publish(self.publisher, upload_id, message) for message in messages]

    def figure(self, name: str) -> int:
        figure = self.manager.stats()[name]
        assert isinstance(figure, int)
        return figure

    async def until_figure(self, name: str, expected: int) -> None:
        try:
            await until(lambda: self.figure(name) == expected)
        except AssertionError as error:
            text = f"{name}={self.figure(name)} does not become {expected}"
            raise AssertionError(text) from error


async def publish(
    publisher: fanwire.UploadProgressPublisher, upload_id: str, message: Any
) -> Position:
    """Publishes a message that is recorded. Where it stands then."""
    receipt = await publisher.publish_progress(upload_id, message, receipt=True)
    assert receipt.status == "published", receipt
    assert receipt.position is not None
    return receipt.position


@pytest.fixture
async def make_instance() -> AsyncIterator[InstanceFactory]:
    """``await make_instance(url)``: an instance that keeps a history, and is stopped in the end.

    Progress is not coalesced on its way to a client, so that what it is given can be foretold. Test
    modules take this fixture over: it is not in conftest.py.
    """
    made: list[fanwire.UploadProgressPublisher] = []

    async def make(
        url: str,
        *,
        history: fanwire.History | None = fanwire.History(),  # noqa: B008 - it is frozen
        manager: fanwire.ConnectionManager | None = None,
        start: bool = True,
        **options: Any,
    ) -> Instance:
        manager = manager or fanwire.ConnectionManager(coalesce=False)
        publisher = fanwire.UploadProgressPublisher(
            url, manager=manager, history=history, **options
        )
        made.append(publisher)
        if start:
            await publisher.start()
        return Instance(manager, publisher)

    yield make
    for publisher in made:
        await publisher.stop()
