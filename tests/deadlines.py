"""Waiting for a condition. Deadlines are for failures alone: no test measures how long one takes.

Most are generous. What fanwire promises to have done by a certain time has that time as deadline.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

_T = TypeVar("_T")

DEADLINE_SECONDS = 20.0
# The promises: `stop()` returns, whatever the broker does; after the broker's return, or a lost
# connection, everything wanted is subscribed again.
STOP_SECONDS = 2.0
SUBSCRIBED_AGAIN_SECONDS = 5.0
# An interpreter whose publishers nobody closed or stopped ends within a second. What it would wait
# for otherwise are timeouts of two seconds.
EXIT_SECONDS = 1.8
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


async def bounded(awaitable: Awaitable[_T], *, deadline_seconds: float = DEADLINE_SECONDS) -> _T:
    """For what must return by itself, though the broker does not answer."""
    return await asyncio.wait_for(awaitable, deadline_seconds)
