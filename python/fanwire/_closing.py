"""Closing connections: user code that must neither hang a shutdown nor stop at the first error."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

logger = logging.getLogger("fanwire")

# asyncio keeps only weak references to tasks.
_closing: set[asyncio.Task[None]] = set()


async def close_all(
    connections: Iterable[Any], code: int, reason: str, timeout_seconds: float
) -> None:
    """Close connections side by side; errors and those that take too long are logged."""
    tasks = [
        asyncio.ensure_future(_close(connection, code, reason, timeout_seconds))
        for connection in connections
    ]
    if tasks:
        await asyncio.gather(*tasks)


def close_later(connection: Any, code: int, reason: str, timeout_seconds: float) -> None:
    """Close a connection in a task of its own, because nobody can wait for its peer."""
    task = asyncio.ensure_future(_close(connection, code, reason, timeout_seconds))
    _closing.add(task)
    task.add_done_callback(_closing.discard)


async def _close(connection: Any, code: int, reason: str, timeout_seconds: float) -> None:
    try:
        async with asyncio.timeout(timeout_seconds):
            await connection.close(code=code, reason=reason)
    except TimeoutError:
        logger.info("a connection did not close within %s s: left alone", timeout_seconds)
    except Exception as error:  # noqa: BLE001 - whatever the application's connection raises
        logger.debug("a connection could not be closed: %r", error)
