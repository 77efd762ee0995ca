"""How the handlers that PyView's hub takes are called: on the event loop, or in a thread."""

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fanwire.types import TopicHandler

__all__ = ["in_thread", "on_loop", "without_topic"]


def on_loop(handler: Callable[..., Any]) -> TopicHandler:
    """For the methods with ``_async``: called on the event loop, whatever it is."""
    if inspect.iscoroutinefunction(handler):
        return handler  # what PyView itself passes: nothing stands between it and the backend

    async def call(*arguments: Any) -> None:
        result = handler(*arguments)
        if inspect.isawaitable(result):
            await result

    return call


def in_thread(handler: Callable[..., Any]) -> TopicHandler:
    """For the methods without: a plain function is called in a thread of its own per message.

    The backend is told that a message is done when its thread is, so that a session's messages
    come one after another, and errors are logged and counted where all others are.
    """
    if inspect.iscoroutinefunction(handler):
        return handler

    async def call(*arguments: Any) -> None:
        result = await _result_of_thread(handler, arguments)
        if inspect.isawaitable(result):
            await result

    return call


def without_topic(handler: TopicHandler) -> TopicHandler:
    """For subscribers to no topic, whose handlers take the message alone."""

    async def call(_: str, message: Any) -> None:
        await handler(message)  # type: ignore[call-arg]

    return call


async def _result_of_thread(handler: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    context = contextvars.copy_context()
    results: list[Any] = []
    errors: list[BaseException] = []

    def end() -> None:
        if not ended.done():  # it is when the task that waits was cancelled
            ended.set_result(None)

    def run() -> None:
        try:
            results.append(context.run(handler, *arguments))
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(end)

    # Daemons, and not of a pool: the interpreter may end while a handler of the app still waits.
    threading.Thread(target=run, name="fanwire handler", daemon=True).start()
    await ended
    if not errors:
        return results[0]
    if isinstance(errors[0], Exception):
        raise errors[0]
    # Raised as it is, SystemExit would end the event loop; in a thread it ends the thread only.
    raise RuntimeError(f"a handler raised {errors[0]!r}") from errors[0]
