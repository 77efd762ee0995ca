"""Waiting for a condition. Deadlines are for failures alone: no test counts on a duration."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

_T = TypeVar("_T")

DEADLINE_SECONDS = 20.0
POLL_SECONDS = 0.005


async def until(
    condition: Callable[[], object], what: str = "", *, deadline_seconds: float = DEADLINE_SECONDS
) -> None:
    """Returns as soon as the condition holds; at the deadline it fails, and says with what."""
    end = time.monotonic() + deadline_seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_seconds} s: {what or condition}")
        await asyncio.sleep(POLL_SECONDS)


def until_blocking(
    condition: Callable[[], object], what: str = "", *, deadline_seconds: float = DEADLINE_SECONDS
) -> None:
    """As ``until``, for a test without an event loop."""
    end = time.monotonic() + deadline_seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_seconds} s: {what or condition}")
        time.sleep(POLL_SECONDS)


async def bounded(awaitable: Awaitable[_T]) -> _T:
    """For what must return by itself, though the broker does not answer."""
    return await asyncio.wait_for(awaitable, DEADLINE_SECONDS)
