"""The messages of an app that shows progress, as pydantic models."""

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, Field


class ProgressPayload(BaseModel):
    upload_id: str
    status: str = "processing"
    stage: str = "vision_analysis"
    progress_percent: int = Field(ge=0, le=100)
    message: str = ""
    error_message: str | None = None
    description_audit_score: float | None = None


class UploadProgress(BaseModel):
    action: Literal["upload_progress"] = "upload_progress"
    payload: ProgressPayload
    timestamp: datetime


class UploadCompleted(BaseModel):
    action: Literal["upload_completed"] = "upload_completed"
    upload_id: str
    description: str
    audit_score: float
    timestamp: datetime


def progress(upload_id: str, percent: int, message: str = "Größe prüfen 検査") -> UploadProgress:
    return UploadProgress(
        payload=ProgressPayload(upload_id=upload_id, progress_percent=percent, message=message),
        timestamp=datetime(2026, 2, 20, 12, 52, 1, 250_000, tzinfo=UTC),
    )


def completed(upload_id: str) -> UploadCompleted:
    return UploadCompleted(
        upload_id=upload_id,
        description="Ein Satz “in Anführung” \n und \\ mehr",
        audit_score=87.5,
        timestamp=datetime(2026, 2, 20, 12, 53, tzinfo=UTC),
    )
