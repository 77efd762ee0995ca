"""Progress of a job, told while it runs: what ``UploadProgressPublisher.track`` returns."""

import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from math import inf
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from fanwire import _arguments
from fanwire._telling import Telling, must_be_encodable
from fanwire._throttled import running_loop
from fanwire._tracker_event import TrackerEvent, upload_message
from fanwire._wrapped import AsyncReader, Reader, Wrapped, size_of, wrap

__all__ = ["Tracker", "TrackerEvent", "upload_message"]

logger = logging.getLogger("fanwire")

_T = TypeVar("_T")
_RESERVED = frozenset({"action", "upload_id", "timestamp"})


class Tracker(Telling):
    """Tells an upload's watchers how a job gets on. ``UploadProgressPublisher.track`` makes it.

    A context manager, with ``async with`` or ``with``. It publishes when the block is entered, at
    every new stage, and when the block is left: that the job has completed, or what it failed of;
    cancellation is a failure too. Of what ``retrying=`` says that it is no end nothing final is
    told. In between it publishes at most once in ``min_interval`` seconds. Where an event loop runs
    what is held back goes out when that time is over. Where none runs it goes out with the next
    call after that time, or with the end.

    ``async with`` awaits the broker's word on the last message, and ``with`` blocks until there is
    one, both for ``exit_timeout_seconds`` at most; what has not gone out by then is sent all the
    same, as long as the process lives. ``with`` does not wait again for a broker that has taken
    nothing since it was waited for in vain, nor in the thread of a running event loop. Trouble with
    the broker is never raised, and no exception of the block is hidden.

    One thread at a time may use it; that need not be the one that has entered it.
    """

    __slots__ = ()

    @property
    def upload_id(self) -> str:
        """The upload."""
        return self._upload_id

    @property
    def done(self) -> float:
        """How much has been advanced."""
        return self._done

    def advance(self, n: float = 1) -> None:
        """Say that more is done.

        More than the total is no error; the percentage stays at 100.

        Raises:
            TypeError, ValueError: ``n`` is no number of at least 0.
            RuntimeError: the block has not been entered, or was left.
        """
        if not self._open:
            raise self._not_open()
        if type(n) not in (int, float) or not 0 <= n < inf:
            n = _arguments.number("n", n)
        self._done += n
        self._changed()

    def stage(self, name: str, message: str = "") -> None:
        """Say that a stage begins, which is published at once.

        Args:
            name: its name. That of the present stage changes only the text, if there is one.
            message: its text, in place of the former one.

        Raises:
            TypeError: one of them is no str.
            RuntimeError: the block has not been entered, or was left.
        """
        name, message = _arguments.text("name", name), _arguments.text("message", message)
        if not self._open:
            raise self._not_open()
        if name != self._stage:
            self._stage, self._message = name, message
            self._changed(at_once=True)
        elif message:
            self.message(message)

    def message(self, text: str) -> None:
        """Say something in words, which is published with the progress.

        Raises:
            TypeError: it is no str.
            RuntimeError: the block has not been entered, or was left.
        """
        self._message = _arguments.text("text", text)
        self.advance(0)

    def result(self, **members: Any) -> None:
        """Say what the message of completion is to have besides, such as ``description``.

        Args:
            members: what JSON can hold; those of earlier calls stay. A ``to_message`` of one's own
                may be given anything.

        Raises:
            TypeError, ValueError: one of them cannot be encoded.
            ValueError: the message has a member of that name already.
            RuntimeError: the block has not been entered, or was left.
        """
        if not self._open:
            raise self._not_open()
        if taken := sorted(_RESERVED & members.keys()):
            raise ValueError(f"result() cannot set {', '.join(taken)}: these are the message's own")
        if self._to_message is upload_message:
            must_be_encodable(members)
        self._result.update(members)

    @overload
    def wrap(
        self,
        stream: AsyncIterable[_T],
        *,
        size: Callable[[_T], float] | None = None,
        chunk_size: None = None,
    ) -> AsyncIterator[_T]: ...
    @overload
    def wrap(
        self,
        stream: Iterable[_T],
        *,
        size: Callable[[_T], float] | None = None,
        chunk_size: None = None,
    ) -> Wrapped[_T]: ...
    @overload
    def wrap(  # type: ignore[overload-overlap] # what returns an awaitable is an AsyncReader
        self,
        stream: AsyncReader[_T],
        *,
        size: Callable[[_T], float] | None = None,
        chunk_size: int | None = None,
    ) -> AsyncIterator[_T]: ...
    @overload
    def wrap(
        self,
        stream: Reader[_T],
        *,
        size: Callable[[_T], float] | None = None,
        chunk_size: int | None = None,
    ) -> Wrapped[_T]: ...
    def wrap(
        self,
        stream: Any,
        *,
        size: Callable[[Any], float] | None = None,
        chunk_size: int | None = None,
    ) -> Any:
        """Iterate over a stream, and advance by each item when the next one is asked for.

        Args:
            stream: what can be iterated, by ``for`` or by ``async for``; or what has a ``read``,
                such as Starlette's ``UploadFile``. Where it is both, ``async with`` has it iterated
                by ``async for``, and ``with`` by ``for``. What is iterated by ``for`` may be
                iterated by ``async for`` as well, but not the other way round.
            size: how much an item is. Default: the length of bytes, and 1 of anything else.
            chunk_size: read it in chunks of so many bytes, even where it could be iterated, as
                files can: by lines. Default of what can only be read: 65,536.

        Raises:
            TypeError: it is neither, or has no ``read`` for a ``chunk_size``.
            ValueError: ``chunk_size`` is not positive.
        """
        if chunk_size is not None and not _arguments.number("chunk_size", chunk_size):
            raise ValueError("chunk_size must be positive")
        size = _arguments.function("size", size) or size_of
        return wrap(stream, self.advance, size, chunk_size, prefer_async=self._is_async)

    def __enter__(self) -> Self:
        """Publish that the job begins."""
        self._enter(is_async=False)
        return self

    async def __aenter__(self) -> Self:
        """Publish that the job begins. It waits for nothing."""
        self._enter(is_async=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Publish how the job has ended."""
        self._end()
        try:
            # A generator that was left half-way is closed by anybody, in the middle of anything.
            may_wait = running_loop() is None and not isinstance(error, GeneratorExit)
            self._send_last(self._last_message(error), may_wait=may_wait)
        except Exception as trouble:
            if error is None:
                self._tell_of(trouble)
                raise
            logger.exception("fanwire: the end of a tracked job could not be told")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Publish how the job has ended."""
        self._end()
        try:
            message = self._last_message(error)
            if isinstance(error, GeneratorExit):
                # A coroutine that is being closed can await nothing, and may be closed by anybody.
                self._send_last(message, may_wait=False)
            else:
                await self._send_last_async(message)
        except Exception as trouble:
            if error is None:
                self._tell_of(trouble)
                raise
            logger.exception("fanwire: the end of a tracked job could not be told")

    def __repr__(self) -> str:
        percent = self.percent
        return f"<Tracker of {self._upload_id!r}: {'?' if percent is None else percent} %>"

    def _enter(self, *, is_async: bool) -> None:
        if self._used:
            raise RuntimeError("a tracker is for one job: call track() again for the next")
        self._used, self._is_async = True, is_async
        self._begin()

    def _not_open(self) -> RuntimeError:
        if self._used:
            return RuntimeError("the block of this tracker was left")
        return RuntimeError(
            "a tracker is to be entered first: with publisher.track(...) as tracker"
        )
