"""What the workloads that receive have in common: people who are connected, and a live listener."""

import asyncio
from typing import Any

from connections import RecordingConnection
from contract import Session
from load_client import Burst

WARM_UP_USER = "warm-up"
DELIVERY_SECONDS = 30.0


async def connect_watchers(
    session: Session, uploads: list[str], connections: list[Any], kind: str = "user"
) -> None:
    """User i has connection i and watches upload i (modulo their number)."""
    manager = session.contender.manager
    for number, connection in enumerate(connections):
        user_id = f"{kind}-{number:08d}"
        await manager.connect(user_id, connection)
        await manager.subscribe_upload(user_id, uploads[number % len(uploads)])


async def start_listening(session: Session) -> None:
    """Starts the listener and waits for its first message, which must be the text as published."""
    manager = session.contender.manager
    recorder = RecordingConnection()
    await manager.connect(WARM_UP_USER, recorder)
    await session.contender.publisher.start()
    await session.load.until_heard(f"user:{WARM_UP_USER}")
    text = await asyncio.wait_for(recorder.received.get(), DELIVERY_SECONDS)
    if f'"upload_id":"{WARM_UP_USER}"' not in text:
        raise RuntimeError(f"the listener forwarded something else than was published: {text}")
    await manager.disconnect(WARM_UP_USER, recorder)


def check_burst(session: Session, burst: Burst, *, published: int, watched: int) -> None:
    """Redis says how many clients the messages reached: each exactly one, the contender's listener.

    Who subscribes to each channel is reached by those alone that somebody here watches.
    """
    expected = published if session.contender.hears_all else watched
    if burst.heard != expected:
        session.remarks.append(f"Redis passed on {burst.heard} of {expected} messages")


def check_deliveries(session: Session, missing: int, expected: int) -> None:
    if missing > 0:
        session.remarks.append(f"lost {missing} of {expected} deliveries")
    elif missing < 0:
        session.remarks.append(f"{-missing} deliveries too many of {expected}")
