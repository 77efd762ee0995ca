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
    """Close connections side by side.

    Errors are logged. What does not close in time is cancelled, and left alone if that does not
    help.
    """
    tasks = {_start(connection, code, reason) for connection in connections}
    if not tasks:
        return
    late = tasks
    try:
        _, late = await asyncio.wait(tasks, timeout=timeout_seconds)
    finally:
        _cancel(late, timeout_seconds)


def close_later(connection: Any, code: int, reason: str, timeout_seconds: float) -> None:
    """Close a connection in a task of its own, because nobody can wait for its peer."""
    task = _start(connection, code, reason)
    asyncio.get_running_loop().call_later(timeout_seconds, _cancel, {task}, timeout_seconds)


def _start(connection: Any, code: int, reason: str) -> asyncio.Task[None]:
    task = asyncio.ensure_future(_close(connection, code, reason))
    _closing.add(task)
    task.add_done_callback(_closing.discard)
    return task


def _cancel(tasks: set[asyncio.Task[None]], timeout_seconds: float) -> None:
    late = [task for task in tasks if not task.done()]
    for task in late:
        task.cancel()
    if late:
        logger.info("fanwire: %d connections did not close in %s s", len(late), timeout_seconds)


async def _close(connection: Any, code: int, reason: str) -> None:
    try:
        await connection.close(code=code, reason=reason)
    except asyncio.CancelledError:
        # Either this task is cancelled, or something that the connection waited for was.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
    except Exception as error:  # noqa: BLE001 - whatever the application's connection raises
        logger.debug("fanwire: a connection could not be closed: %r", error)
