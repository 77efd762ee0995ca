"""What a tracker has to say, and how it reads as a message."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from fanwire import _arguments

__all__ = ["Kind", "TrackerEvent", "error_text", "upload_message"]

logger = logging.getLogger("fanwire")

# Of a text that `describe` returns; whole tracebacks and documents are not for a progress bar.
_LONGEST_TEXT = 2_000

Kind = Literal["progress", "completed", "failed", "retrying"]


@dataclass(frozen=True, slots=True)
class TrackerEvent:
    """Where a tracked job stands, for a ``to_message`` of one's own.

    Args:
        kind: "progress", or one of those that come last: "completed", "failed", and "retrying"
            of a job that failed and is tried again, as ``retrying=`` says.
        upload_id: the upload.
        user_id: what ``track`` was given.
        done: how much has been advanced.
        total: how much there is to do; None where that is not known.
        percent: from 0 to 100, rounded down; None where the total is not known. A job that has
            completed is not necessarily at 100.
        stage: the name of the stage.
        message: its text; "" where there is none.
        result: what ``Tracker.result`` was given.
        exception: what ended the job; None unless it failed, for good or not.
        error_message: what is to be said of that; None unless it failed, for good or not.
        timestamp: now, in UTC.
    """

    kind: Kind
    upload_id: str
    user_id: str | None
    done: float
    total: float | None
    percent: int | None
    stage: str
    message: str
    result: Mapping[str, Any]
    exception: BaseException | None
    error_message: str | None
    timestamp: datetime


def upload_message(event: TrackerEvent) -> dict[str, Any]:
    """Return the message of an upload app: ``upload_progress``, ``_completed`` or ``_failed``.

    Args:
        event: what it is about. Where its percent is not known the message says 0. Of "retrying" it
            is progress: the stage "queued", and that the job will be tried again.
    """
    if event.kind == "completed":
        message = {"action": "upload_completed", "upload_id": event.upload_id}
        defaults = {"description": "", "audit_score": None}
        return {**message, **defaults, **event.result, "timestamp": event.timestamp}
    if event.kind == "failed":
        return {
            "action": "upload_failed",
            "upload_id": event.upload_id,
            "error_message": event.error_message,
            "timestamp": event.timestamp,
        }
    stage, text = event.stage, event.message
    if event.kind == "retrying":
        stage, text = "queued", "will be tried again"
    payload = {
        "upload_id": event.upload_id,
        "status": "processing",
        "stage": stage,
        "progress_percent": event.percent or 0,
        "message": text,
        "error_message": None,
        "description_audit_score": None,
    }
    return {"action": "upload_progress", "payload": payload, "timestamp": event.timestamp}


def error_text(error: BaseException, describe: Callable[[BaseException], str] | None) -> str:
    """Return what may be shown of an exception; what ``describe`` does wrong is logged."""
    if describe is None:
        return _kind_of(error)
    try:
        described = _arguments.text("what describe() returns", describe(error))
    except Exception:
        logger.exception("fanwire: describe() of a tracker failed")
        return _kind_of(error)
    # The name of a file, say, can have what no JSON has.
    return described[:_LONGEST_TEXT].encode(errors="replace").decode()


def _kind_of(error: BaseException) -> str:
    """What an exception says can be a password, or the path of a file; its name is neither."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    return type(error).__name__
