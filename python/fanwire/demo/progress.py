"""The uploads that this instance has received: what each one publishes, and where it stands."""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from fanwire import get_publisher

from .messages import (
    FilePayload,
    FileProgress,
    ProgressPayload,
    Stage,
    UploadCompleted,
    UploadFailed,
    UploadProgress,
)

# A person cannot tell 20 updates a second from 2,000, and the browser has better things to do.
_SECONDS_BETWEEN_MESSAGES = 0.05

# The part of the whole bar that each stage fills: from, to.
_SHARES: dict[Stage, tuple[int, int]] = {
    "queued": (0, 0),
    "receiving": (0, 50),
    "hashing": (50, 75),
    "counting_lines": (75, 99),  # 100 is for the completed upload alone
}
_LABELS: dict[Stage, str] = {
    "queued": "Waiting for",
    "receiving": "Received",
    "hashing": "Hashed",
    "counting_lines": "Counted the lines of",
}


def readable_size(size: int) -> str:
    """``3145728`` as ``3.1 MB``."""
    value = float(size)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.1f} {unit}" if unit != "bytes" else f"{size} bytes"
        value /= 1000
    return f"{value:.1f} GB"


def _short(file_name: str) -> str:
    """A name for the middle of a sentence: in one line, and without the middle of a long one."""
    name = " ".join(file_name.split())
    return name if len(name) <= 40 else f"{name[:26]}…{name[-13:]}"


class UploadStoppedError(Exception):
    """The upload ends before it is through; the text says why, to a person."""


class Upload:
    """One upload, and its voice: everything that its watchers see is published here."""

    def __init__(self, user_id: str, file_name: str, size: int) -> None:
        self.upload_id = str(uuid.uuid4())
        self.user_id = user_id
        self.file_name = file_name
        self.size = size
        self.begun = False
        self._stop_reason: str | None = None
        self._deadline: asyncio.Timeout | None = None
        self._published_at = 0.0
        self._stage: Stage = "queued"

    async def announce(self) -> None:
        """Tell every tab of the uploader, on every instance, that this upload exists."""
        # First what it is, for those who begin to watch it because of the announcement.
        await get_publisher().publish_progress(self.upload_id, self._progress_message("queued", 0))
        await self._publish_to_user("processing", 0)

    def progress(self, stage: Stage, done: int) -> None:
        """Publish that `stage` has dealt with `done` bytes: each stage, and else 20 a second.

        It does not wait: a slow broker must not slow the upload down, and if a message of progress
        finds the queue full, the next one says more than it did.
        """
        now = time.monotonic()
        if stage == self._stage and now - self._published_at < _SECONDS_BETWEEN_MESSAGES:
            return
        self._stage = stage
        self._published_at = now
        get_publisher().publish_nowait(self.upload_id, self._progress_message(stage, done))

    async def completed(self, description: str) -> None:
        """Publish the result. Awaited, unlike progress: this message must not be lost."""
        message = UploadCompleted(upload_id=self.upload_id, description=description)
        await get_publisher().publish_progress(self.upload_id, message)
        await self._publish_to_user("completed", 100)

    async def failed(self, reason: str) -> None:
        """Publish why there will be no result, in words for the person who waits for it."""
        message = UploadFailed(upload_id=self.upload_id, error_message=reason)
        await get_publisher().publish_progress(self.upload_id, message)
        await self._publish_to_user("failed", 0)

    @asynccontextmanager
    async def until_stopped(self) -> AsyncIterator[None]:
        """Run the body; `UploadStoppedError` as soon as `stop` is called, whatever it waits for."""
        if self._stop_reason is not None:
            raise UploadStoppedError(self._stop_reason)
        try:
            async with asyncio.timeout(None) as self._deadline:
                yield
        except TimeoutError:
            if self._stop_reason is None:
                raise
            raise UploadStoppedError(self._stop_reason) from None
        finally:
            self._deadline = None

    def stop(self, reason: str) -> None:
        self._stop_reason = reason
        if self._deadline is not None:
            self._deadline.reschedule(asyncio.get_running_loop().time())

    def _progress_message(self, stage: Stage, done: int) -> UploadProgress:
        start, end = _SHARES[stage]
        fraction = min(done / self.size, 1.0) if self.size else 1.0
        # With the file's name, because a watcher may know nothing but the id.
        name = _short(self.file_name)
        text = f"{_LABELS[stage]} {name}"
        if stage != "queued":
            done_of_it = f"{readable_size(done)} of {name}"
            text = f"{_LABELS[stage]} {done_of_it} ({readable_size(self.size)})"
        return UploadProgress(
            payload=ProgressPayload(
                upload_id=self.upload_id,
                status="pending" if stage == "queued" else "processing",
                stage=stage,
                progress_percent=start + int((end - start) * fraction),
                message=text,
            )
        )

    async def _publish_to_user(
        self, status: Literal["processing", "completed", "failed"], percent: int
    ) -> None:
        payload = FilePayload(
            batch_id=self.upload_id,  # a batch of one
            upload_id=self.upload_id,
            file_name=self.file_name,
            file_size=self.size,
            progress_percentage=percent,
            status=status,
        )
        await get_publisher().publish_to_user(self.user_id, FileProgress(payload=payload))


class Uploads:
    """The newest uploads of this instance. Those of other instances are not known here."""

    def __init__(self, keep: int = 1000) -> None:
        self._keep = keep
        self._by_id: OrderedDict[str, Upload] = OrderedDict()

    def add(self, upload: Upload) -> None:
        self._by_id[upload.upload_id] = upload
        while len(self._by_id) > self._keep:
            self._by_id.popitem(last=False)

    def get(self, upload_id: str) -> Upload | None:
        return self._by_id.get(upload_id)

    def stop(self, reason: str) -> None:
        """End the uploads that are running."""
        for upload in self._by_id.values():
            upload.stop(reason)
