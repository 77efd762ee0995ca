"""What a tracker tells: its messages, and the last of them."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache, partial
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from fanwire import _arguments
from fanwire._patience import Patience
from fanwire._throttled import Throttled, running_loop
from fanwire._tracker_event import Kind, TrackerEvent, error_text, upload_message
from fanwire.errors import PublishError

if TYPE_CHECKING:
    from fanwire._core import UploadProgressPublisher

__all__ = ["Retrying", "Telling", "must_be_encodable"]

logger = logging.getLogger("fanwire")

Retrying = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], object]

_LARGEST_VERSION = 2**53 - 1
_UNTIL_ROOM_SECONDS = 0.01


class Telling(Throttled):
    """Where a job stands, and who is told. What is said of it comes from ``Tracker``."""

    __slots__ = (
        "_describe",
        "_done",
        "_exit_timeout",
        "_is_async",
        "_message",
        "_publisher",
        "_result",
        "_retrying",
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
        retrying: Retrying | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(_arguments.number("min_interval", min_interval), clock)
        self._publisher = publisher
        self._upload_id = _arguments.text("upload_id", upload_id)
        self._user_id = None if user_id is None else _arguments.text("user_id", user_id)
        self._stage = _arguments.text("stage", stage)
        self._version = None if version is None else _version(version)
        self._to_message = _arguments.function("to_message", to_message) or upload_message
        self._describe = _arguments.function("describe", describe)
        self._exit_timeout = _arguments.number("exit_timeout_seconds", exit_timeout_seconds)
        self._retrying = None if retrying is None else _retrying(retrying)
        self._message = ""
        self._result: dict[str, Any] = {}
        self._done: float = 0
        self._total: float | None = None
        self.total = total
        self._used = self._is_async = False

    # What a TypeError of its arguments names: nobody has typed the name of this class.
    __init__.__qualname__ = "UploadProgressPublisher.track"

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
        if self._done >= total:
            return 100
        if isinstance(self._done, int) and isinstance(total, int):
            return self._done * 100 // total
        return min(99, int(self._done / total * 100))

    def _tell(self) -> bool:
        message = self._to_message(self._event("progress"))
        if message is None:
            return True
        room = [send() for send in self._sends(message)]  # all of them, whatever the first says
        return all(room)

    def _event(self, kind: Kind, error: BaseException | None = None) -> TrackerEvent:
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

    def _last_message(self, error: BaseException | None) -> Any:
        kind: Kind = "completed"
        if error is not None:
            kind = "retrying" if self._is_retried(error) else "failed"
        return self._to_message(self._event(kind, error))

    def _is_retried(self, error: BaseException) -> bool:
        """Say whether this is not the end; what the application does wrong is logged."""
        retrying = self._retrying
        if retrying is None:
            return False
        if isinstance(retrying, type | tuple):
            return isinstance(error, retrying)
        try:
            return bool(retrying(error))
        except Exception:
            logger.exception("fanwire: retrying() of a tracker failed")
            return False

    def _send_last(self, message: Any, *, may_wait: bool) -> None:
        if message is None:
            return
        patience = Patience(self._publisher, self._exit_timeout if may_wait else 0)
        sends = self._sends(message)
        while True:
            sends = [send for send in sends if not send()]
            if (left := patience.left()) <= 0:
                break
            is_empty = self._publisher.flush(left)
            if not sends and is_empty:
                return
            if not sends:
                break
            if is_empty:  # and yet there is no room: others fill it, or it is too small
                sleep(_UNTIL_ROOM_SECONDS)
        if may_wait:
            patience.in_vain()
        if sends:
            logger.warning("fanwire: too much waits already: the end of a job was not told")

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


def must_be_encodable(members: dict[str, Any]) -> None:
    """Raise now what publishing a message with these members would.

    Raises:
        TypeError, ValueError: one of them cannot be encoded.
    """
    _encoder().publish_to_user_nowait("", members)


@cache
def _encoder() -> "UploadProgressPublisher":
    """Return a publisher of which nobody hears: what it does is to encode."""
    from fanwire._core import UploadProgressPublisher  # noqa: PLC0415 (it imports this module)

    return UploadProgressPublisher("memory://")


def _version(version: object) -> int:
    if isinstance(version, bool) or not isinstance(version, int):
        raise TypeError(f"version must be an int, not {type(version).__name__}")
    if not 0 <= version <= _LARGEST_VERSION:
        raise ValueError(f"version must be from 0 to 2**53 - 1, not {version}")
    return version


def _retrying(retrying: Any) -> Retrying:
    kinds = retrying if isinstance(retrying, tuple) else (retrying,)
    for kind in kinds:
        if isinstance(kind, type):
            if not issubclass(kind, BaseException):
                raise TypeError(f"retrying must be of exceptions, not {kind.__name__}")
        elif kind is not retrying or not callable(kind):
            name = type(kind).__name__
            raise TypeError(f"retrying must be exception types or callable, not {name}")
    return retrying  # type: ignore[no-any-return] # checked just now
