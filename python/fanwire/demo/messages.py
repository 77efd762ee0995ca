"""What travels to the browser: the message models, and how they read as JSON.

The shapes are those that clients of the pure-Python reference know. `Stage` shares its common names
(queued, completed, failed) and, in place of the stages of a media pipeline, names what this demo
does to a file. A client should show a stage that it does not know rather than refuse it.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

Stage = Literal["queued", "receiving", "hashing", "counting_lines", "completed", "failed"]
Percent = Annotated[int, Field(ge=0, le=100)]


def _now() -> datetime:
    return datetime.now(UTC)


class ProgressPayload(BaseModel):
    upload_id: str
    status: Literal["pending", "processing", "completed", "failed"]
    stage: Stage
    progress_percent: Percent
    message: str
    error_message: str | None = None
    description_audit_score: int | None = None


class UploadProgress(BaseModel):
    action: Literal["upload_progress"] = "upload_progress"
    payload: ProgressPayload
    timestamp: datetime = Field(default_factory=_now)


class UploadCompleted(BaseModel):
    action: Literal["upload_completed"] = "upload_completed"
    upload_id: str
    description: str
    audit_score: int | None = None
    timestamp: datetime = Field(default_factory=_now)


class UploadFailed(BaseModel):
    action: Literal["upload_failed"] = "upload_failed"
    upload_id: str
    error_message: str
    timestamp: datetime = Field(default_factory=_now)


class FilePayload(BaseModel):
    batch_id: str
    upload_id: str
    file_name: str
    file_size: int
    progress_percentage: Percent
    status: Literal["processing", "completed", "failed"]


class FileProgress(BaseModel):
    """Goes to a user, not to an upload: all of the user's tabs learn that there is a file."""

    action: Literal["file_progress"] = "file_progress"
    payload: FilePayload
    timestamp: datetime = Field(default_factory=_now)
