"""What the publishing workloads have in common: messages, and the proof that Redis got them all.

The publisher is never started: this is the worker process that only publishes.
"""

import asyncio
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

from contract import Session
from meter import Meter, settle
from payloads import UploadProgress, progress, upload_ids


def models() -> list[tuple[str, UploadProgress]]:
    """Upload ids with a message each. They are made before the clock runs; encoding is measured."""
    return [
        (name, progress(name, number % 101)) for number, name in enumerate(upload_ids("mine", 500))
    ]


async def one_by_one(session: Session, messages: list[tuple[str, Any]], count: int) -> Meter:
    publish = session.contender.publisher.publish_progress
    await _warm_up(session, messages)
    before = await session.load.published()
    with Meter() as meter:
        for upload_id, message in _repeat(messages, count):
            await publish(upload_id, message)
    await _check(session, before, count)
    return meter


async def side_by_side(
    session: Session, messages: list[tuple[str, Any]], count: int, tasks: int
) -> Meter:
    """So many tasks, each publishing one message after another: an app with as many requests."""
    publish = session.contender.publisher.publish_progress
    await _warm_up(session, messages)
    before = await session.load.published()
    turn = _repeat(messages, count)

    async def task() -> None:
        for upload_id, message in turn:
            await publish(upload_id, message)

    with Meter() as meter:
        await asyncio.gather(*[task() for _ in range(tasks)])
    await _check(session, before, count)
    return meter


async def together(
    session: Session, messages: list[tuple[str, Any]], count: int, at_once: int
) -> Meter:
    publish = session.contender.publisher.publish_progress
    await _warm_up(session, messages)
    before = await session.load.published()
    with Meter() as meter:
        turn = _repeat(messages, count)
        while batch := list(islice(turn, at_once)):
            await asyncio.gather(*[publish(upload_id, message) for upload_id, message in batch])
    await _check(session, before, count)
    return meter


def _repeat(messages: list[tuple[str, Any]], count: int) -> Iterator[tuple[str, Any]]:
    return islice(cycle(messages), count)


async def _warm_up(session: Session, messages: list[tuple[str, Any]]) -> None:
    publish = session.contender.publisher.publish_progress
    await publish(*messages[0])  # alone: this is what opens the connection
    for batch in range(0, 500, 50):
        await asyncio.gather(*[publish(*message) for message in messages[batch : batch + 50]])
    settle()


async def _check(session: Session, before: int, count: int) -> None:
    reached = await session.load.published() - before
    if reached != count:
        session.remarks.append(f"{reached} of {count} messages reached Redis")
