"""What the recovery workloads have in common: the contender beside itself, with a history."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol, cast

from commands import plain
from contract import Session

EPOCH = b"00000000000000f1"
AT_ONCE = 500

Position = tuple[str, int]


class RecoveringManager(Protocol):
    """What a manager takes besides where a history is kept."""

    def subscribe_upload(
        self,
        user_id: str,
        upload_id: str,
        *,
        connection: Any = None,
        since: Position | None = None,
    ) -> Awaitable[None]: ...


class RecordingPublisher(Protocol):
    """What a publisher takes besides where a history is kept."""

    def publish_progress(
        self, upload_id: str, message: Any, *, receipt: bool
    ) -> Awaitable[Any]: ...


def manager_of(session: Session) -> RecoveringManager:
    return cast("RecoveringManager", session.contender.manager)


def publisher_of(session: Session) -> RecordingPublisher:
    return cast("RecordingPublisher", session.contender.publisher)


@asynccontextmanager
async def beside(
    session: Session, *, history: bool, url: str | None = None
) -> AsyncIterator[Session]:
    """The same session with another contender, not started, which is stopped in the end."""
    another = session.contender.another
    if another is None:
        raise ValueError("this contender keeps no history")
    url = url or f"redis://127.0.0.1:{session.redis_port}/0"
    contender = another(url, history=history)
    try:
        yield replace(session, contender=contender)
    finally:
        await contender.publisher.stop()


class Numbered:
    """Writes messages as publishers with a history do: those of each upload from offset 1 on."""

    def __init__(self) -> None:
        self._offsets: Counter[str] = Counter()

    def __call__(self, channel: str, body: bytes) -> tuple[bytes, bytes]:
        if not channel.startswith("upload:"):
            return plain(channel, body)
        self._offsets[channel] += 1
        member = b'"_fanwire":{"epoch":"%b","offset":%d}' % (EPOCH, self._offsets[channel])
        return channel.encode(), b"%b,%b}" % (body[:-1], member)


async def record(session: Session, messages: Iterable[tuple[str, Any]]) -> dict[str, Position]:
    """Publishes these, and tells where the history of each upload has got to."""
    reached: dict[str, Position] = {}
    turn = iter(messages)
    while batch := list(islice(turn, AT_ONCE)):
        receipts = await asyncio.gather(
            *[publisher_of(session).publish_progress(*each, receipt=True) for each in batch]
        )
        for (upload_id, _), receipt in zip(batch, receipts, strict=True):
            if receipt.position is None:
                session.remarks.append(f"a message was not recorded: {receipt}")
            else:
                reached[upload_id] = receipt.position
    return reached
