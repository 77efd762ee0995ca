"""What the workloads that receive have in common: people who are connected, and a live listener."""

import asyncio
import json
from typing import Any

from connections import RecordingConnection
from contract import Session
from load_client import Burst

WARM_UP_USER = "warm-up"
DELIVERY_SECONDS = 30.0


async def connect_watchers(session: Session, uploads: list[str], connections: list[Any]) -> None:
    """User i has connection i and watches upload i (modulo their number)."""
    manager = session.contender.manager
    for number, connection in enumerate(connections):
        user_id = f"user-{number:08d}"
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
    if json.loads(text)["payload"]["upload_id"] != WARM_UP_USER:
        raise RuntimeError(f"the listener forwarded something else than was published: {text}")
    await manager.disconnect(WARM_UP_USER, recorder)


def check_burst(session: Session, burst: Burst, published: int) -> None:
    """Redis says how many clients each message reached: exactly one, the contender's listener."""
    if burst.heard != published:
        session.remarks.append(f"Redis passed on {burst.heard} of {published} messages")


def check_deliveries(session: Session, missing: int, expected: int) -> None:
    if missing > 0:
        session.remarks.append(f"lost {missing} of {expected} deliveries")
    elif missing < 0:
        session.remarks.append(f"{-missing} deliveries too many of {expected}")
