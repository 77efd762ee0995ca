"""``UploadProgressPublisher.track``: a method in Python of a class in Rust.

Before CPython 3.14 the end of the interpreter aborts the process where a daemon thread is in Python
code that native code has called, so what only makes a Python object is not native.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanwire._core import UploadProgressPublisher
    from fanwire.tracking import Tracker, TrackerEvent

    Retrying = (
        type[BaseException]
        | tuple[type[BaseException], ...]
        | Callable[[BaseException], object]
        | None
    )


def track(
    self: "UploadProgressPublisher",
    upload_id: str,
    total: float | None = None,
    *,
    user_id: str | None = None,
    min_interval: float = 0.1,
    stage: str = "queued",
    version: int | None = None,
    to_message: "Callable[[TrackerEvent], Any] | None" = None,
    describe: "Callable[[BaseException], str] | None" = None,
    exit_timeout_seconds: float = 2.0,
    retrying: "Retrying" = None,
) -> "Tracker":
    """Return a context manager that tells an upload's watchers how a job gets on.

    Args:
        upload_id: any str.
        total: how much there is to do, in any unit; None or 0 where that is not known.
        user_id: publish all messages to this user as well. A connection of that user that
            watches the upload too gets them twice.
        min_interval: seconds between two messages, but for the first one, a new stage's and the
            last one.
        stage: the name of the first stage.
        version: that of the first message; each has one more than the one before. So messages
            of an attempt that was given up are stale as soon as the next attempt, with higher
            ones, has begun. From 0 to 2**53 - 1. Needs a history.
        to_message: makes the message of a ``fanwire.TrackerEvent``; None publishes nothing.
            Default: ``upload_progress``, and ``upload_completed`` or ``upload_failed``.
        describe: says of an exception what the watchers may read, of which 2,000 characters
            are sent; ``str`` shows all that it says. Default: the name of its class, which
            gives nothing away, or "cancelled" or "interrupted".
        exit_timeout_seconds: how long leaving the block waits for the broker to take the last
            message. It is sent later where that is not enough. Blocking jobs of a broker that
            is away share this time, until it has taken anything.
        retrying: of which exceptions the job is tried again: their types, or a callable that is
            given the exception and says so. Nothing final is published of these, but progress:
            the stage "queued", and that the job will be tried again.

    Raises:
        TypeError, ValueError: an argument makes no sense.
    """
    from fanwire.tracking import Tracker  # noqa: PLC0415, not everybody has jobs

    return Tracker(
        self,
        upload_id,
        total,
        user_id=user_id,
        min_interval=min_interval,
        stage=stage,
        version=version,
        to_message=to_message,
        describe=describe,
        exit_timeout_seconds=exit_timeout_seconds,
        retrying=retrying,
    )


track.__qualname__ = "UploadProgressPublisher.track"  # for the texts of errors
