"""The messages of the benchmark: progress of an upload, as an app sends it."""

from datetime import UTC, datetime

from pydantic import BaseModel

STAGES = (
    "queued",
    "extracting_frames",
    "vision_analysis",
    "description_audit",
    "embedding_generation",
    "indexing",
)
NOW = datetime(2026, 11, 21, 9, 30, 15, 123456, tzinfo=UTC)


class ProgressPayload(BaseModel):
    upload_id: str
    status: str
    stage: str
    progress_percent: int
    message: str
    error_message: str | None = None
    description_audit_score: float | None = None


class UploadProgress(BaseModel):
    action: str = "upload_progress"
    payload: ProgressPayload
    timestamp: datetime


def upload_ids(kind: str, count: int) -> list[str]:
    """Ids of the length of a UUID, the same in every process."""
    return [f"{kind:0<8.8}-0000-4000-8000-{number:012d}" for number in range(count)]


def progress(upload_id: str, percent: int) -> UploadProgress:
    stage = STAGES[percent * len(STAGES) // 101]
    return UploadProgress(
        payload=ProgressPayload(
            upload_id=upload_id,
            status="processing",
            stage=stage,
            progress_percent=percent,
            message=f"Working on {stage.replace('_', ' ')}, {percent} % of the way",
        ),
        timestamp=NOW,
    )
