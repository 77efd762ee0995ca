"""Progress of a job, told while it runs: what ``UploadProgressPublisher.track`` returns."""

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from math import inf
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from fanwire import _arguments
from fanwire._throttled import Throttled, running_loop
from fanwire._tracker_event import TrackerEvent, error_text, upload_message
from fanwire._wrapped import AsyncReader, Reader, size_of, wrap
from fanwire.errors import PublishError

if TYPE_CHECKING:
    from fanwire._core import UploadProgressPublisher

__all__ = ["Tracker", "TrackerEvent", "upload_message"]

logger = logging.getLogger("fanwire")

_T = TypeVar("_T")
_RESERVED = frozenset({"action", "upload_id", "timestamp"})


class Tracker(Throttled):
    """Tells an upload's watchers how a job gets on. ``UploadProgressPublisher.track`` makes it.

    A context manager, with ``async with`` or ``with``. It publishes when the block is entered, at
    every new stage, and when the block is left: that the job has completed, or what it failed of;
    cancellation is a failure too. In between it publishes at most once in ``min_interval``
    seconds. Where an event loop runs what is held back goes out when that time is over. Where none
    runs it goes out with the next call after that time, or with the end.

    ``async with`` awaits the broker's word on the last message, and ``with`` blocks until there is
    one, both for ``exit_timeout_seconds`` at most; what has not gone out by then is sent all the
    same, as long as the process lives. ``with`` in the thread of a running event loop does not
    wait. Trouble with the broker is never raised, and no exception of the block is hidden.

    One thread at a time may use it; that need not be the one that has entered it.
    """

    __slots__ = (
        "__weakref__",
        "_describe",
        "_done",
        "_exit_timeout",
        "_is_async",
        "_message",
        "_publisher",
        "_result",
        "_stage",
        "_to_message",
        "_total",
        "_upload_id",
        "_used",
        "_user_id",
        "_version",
    )

    def __init__(
        self,
        publisher: "UploadProgressPublisher",
        upload_id: str,
        total: float | None = None,
        *,
        user_id: str | None = None,
        min_interval: float = 0.1,
        stage: str = "queued",
        version: int | None = None,
        to_message: Callable[[TrackerEvent], Any] | None = None,
        describe: Callable[[BaseException], str] | None = None,
        exit_timeout_seconds: float = 2.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(_arguments.number("min_interval", min_interval), clock)
        self._publisher = publisher
        self._upload_id = _arguments.text("upload_id", upload_id)
        self._user_id = None if user_id is None else _arguments.text("user_id", user_id)
        self._stage = _arguments.text("stage", stage)
        self._version = version
        self._to_message = _arguments.function("to_message", to_message) or upload_message
        self._describe = _arguments.function("describe", describe)
        self._exit_timeout = _arguments.number("exit_timeout_seconds", exit_timeout_seconds)
        self._message = ""
        self._result: dict[str, Any] = {}
        self._done: float = 0
        self._total: float | None = None
        self.total = total

        self._used = self._is_async = False

    @property
    def upload_id(self) -> str:
        """The upload."""
        return self._upload_id

    @property
    def done(self) -> float:
        """How much has been advanced."""
        return self._done

    @property
    def total(self) -> float | None:
        """How much there is to do; None where that is not known. It may be set at any time.

        Raises:
            TypeError, ValueError: it is set to what is no number of at least 0.
        """
        return self._total

    @total.setter
    def total(self, total: float | None) -> None:
        # 0: what an empty upload has, or a request without a length.
        self._total = None if total is None else _arguments.number("total", total) or None

    @property
    def percent(self) -> int | None:
        """From 0 to 100, rounded down; None where the total is not known."""
        total = self._total
        if total is None:
            return None
        return 100 if self._done >= total else int(self._done * 100 / total)

    def advance(self, n: float = 1) -> None:
        """Say that more is done.

        More than the total is no error; the percentage stays at 100.

        Raises:
            TypeError, ValueError: ``n`` is no number of at least 0.
            RuntimeError: the block has not been entered, or was left.
        """
        if not self._open:
            raise self._not_open()
        try:
            fits = 0 <= n < inf
        except TypeError:
            fits = False
        if not fits:
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
            members: what JSON can hold; those of earlier calls stay.

        Raises:
            ValueError: the message has a member of that name already.
            RuntimeError: the block has not been entered, or was left.
        """
        if not self._open:
            raise self._not_open()
        if taken := sorted(_RESERVED & members.keys()):
            raise ValueError(f"result() cannot set {', '.join(taken)}: these are the message's own")
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
    ) -> Iterator[_T]: ...
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
    ) -> Iterator[_T]: ...
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
                by ``async for``, and ``with`` by ``for``.
            size: how much an item is. Default: the length of bytes, and 1 of anything else.
            chunk_size: read it in chunks of so many bytes, even where it could be iterated, as
                files can: by lines. Default of what can only be read: 65,536.

        Raises:
            TypeError: it is neither.
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
            self._send_last(self._last_message(error), may_wait=running_loop() is None)
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

    def _tell(self) -> bool:
        message = self._to_message(self._event("progress"))
        if message is None:
            return True
        room = [send() for send in self._sends(message)]  # all of them, whatever the first says
        return all(room)

    # Messages

    def _event(
        self, kind: Literal["progress", "completed", "failed"], error: BaseException | None = None
    ) -> TrackerEvent:
        return TrackerEvent(
            kind=kind,
            upload_id=self._upload_id,
            user_id=self._user_id,
            done=self._done,
            total=self._total,
            percent=self.percent,
            stage=self._stage,
            message=self._message,
            result=dict(self._result),
            exception=error,
            error_message=None if error is None else error_text(error, self._describe),
            timestamp=datetime.now(UTC),
        )

    def _sends(self, message: Any) -> list[Callable[[], bool]]:
        """Return what publishes a message, and says whether there was room for it."""
        publisher, options = self._publisher, self._options()
        sends: list[Callable[[], bool]]
        sends = [partial(publisher.publish_nowait, self._upload_id, message, **options)]
        if self._user_id is not None:
            sends.append(partial(publisher.publish_to_user_nowait, self._user_id, message))
        return sends

    def _options(self) -> dict[str, Any]:
        version = self._version
        if version is None:
            return {}
        self._version = version + 1
        return {"version": version}

    # The end

    def _last_message(self, error: BaseException | None) -> Any:
        kind: Literal["completed", "failed"] = "completed" if error is None else "failed"
        return self._to_message(self._event(kind, error))

    def _send_last(self, message: Any, *, may_wait: bool) -> None:
        if message is None:
            return
        sends = self._sends(message)
        deadline = monotonic() + self._exit_timeout
        while True:
            sends = [send for send in sends if not send()]
            left = deadline - monotonic()
            if may_wait and left > 0:
                self._publisher.flush(left)
            elif sends:
                logger.warning("fanwire: too much waits already: the end of a job was not told")
                return
            if not sends:
                return

    async def _send_last_async(self, message: Any) -> None:
        if message is None:
            return
        publisher, user_id = self._publisher, self._user_id
        told = user_id is None or publisher.publish_to_user_nowait(user_id, message)
        try:
            async with asyncio.timeout(self._exit_timeout):
                await publisher.publish_progress(self._upload_id, message, **self._options())
                if user_id is not None and not told:
                    await publisher.publish_to_user(user_id, message)
        except (PublishError, TimeoutError):
            return  # which the publisher counts and logs; it may still be on its way

    def _tell_of(self, trouble: Exception) -> None:
        """Say of a job whose completion cannot be told that it has failed, for now it raises."""
        try:
            self._send_last(self._last_message(trouble), may_wait=running_loop() is None)
        except Exception:
            logger.exception("fanwire: the end of a tracked job could not be told")
