"""The Task of a session's turn: its handlers, one after another."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

logger = logging.getLogger("fanwire")


class _Turn(Protocol):
    """What the native side offers a turn."""

    over: bool

    def next(self) -> tuple[Callable[[str, Any], Awaitable[None]], str, Any] | None:
        """The next call; None when the turn is over, or when the loop is to go on first."""

    def failed(self) -> str | None:
        """Counts a handler that raised; the session's id."""


async def run(turn: _Turn) -> None:
    """Call a session's handlers until nothing waits. One that raises disturbs nobody."""
    while True:
        call = turn.next()
        if call is None:
            if turn.over:
                return
            await asyncio.sleep(0)
            continue
        handler, topic, message = call
        try:
            await handler(topic, message)
        except asyncio.CancelledError as error:
            # Either this Task is cancelled, or something that the handler waited for was.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            _tell(turn, topic, error)
        except Exception as error:  # noqa: BLE001 - whatever the application's handler raises
            _tell(turn, topic, error)


def _tell(turn: _Turn, topic: str, error: BaseException) -> None:
    text = "the handler of session %r for topic %r raised"
    logger.error(text, turn.failed(), topic, exc_info=error)
