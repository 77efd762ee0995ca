"""The upload itself: receive the file, hash it, count its lines, and say so all along.

The body of the request is the file, not a form: FastAPI hands an ``UploadFile`` over only when all
of it has arrived, and then there is no progress left to report.
"""

import asyncio
import hashlib
import tempfile
import time
from collections.abc import AsyncIterator
from typing import IO, Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from .auth import CurrentUser
from .progress import Upload, Uploads, UploadStoppedError, readable_size

router = APIRouter()

_CHUNK_BYTES = 1024 * 1024


class NewUpload(BaseModel):
    file_name: str = Field(min_length=1, max_length=255)
    size: int = Field(ge=0)


class UploadCreated(BaseModel):
    upload_id: str


class UploadResult(BaseModel):
    upload_id: str
    file_name: str
    size: int
    sha256: str
    lines: int

    def description(self) -> str:
        name = " ".join(self.file_name.splitlines())  # one line for each fact
        exact = f" ({self.size:,} bytes)" if self.size >= 1000 else ""
        return (
            f"Name: {name}\n"
            f"Size: {readable_size(self.size)}{exact}\n"
            f"SHA-256: {self.sha256}\n"
            f"Lines: {self.lines:,}"
        )


class FileTooLargeError(Exception):
    """The file is larger than this demo accepts."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The file is larger than the limit of {readable_size(limit)}.")


def uploads_of(request: Request) -> Uploads:
    uploads: Uploads = request.app.state.uploads
    return uploads


def max_upload_bytes(request: Request) -> int:
    limit: int = request.app.state.settings.max_upload_bytes
    return limit


@router.post("/uploads", status_code=201)
async def create_upload(
    new: NewUpload,
    user_id: CurrentUser,
    uploads: Annotated[Uploads, Depends(uploads_of)],
    limit: Annotated[int, Depends(max_upload_bytes)],
) -> UploadCreated:
    """Give a coming file its id, so that watchers can subscribe before its first byte is sent."""
    if new.size > limit:
        raise HTTPException(413, str(FileTooLargeError(limit)))
    upload = Upload(user_id, new.file_name, new.size)
    uploads.add(upload)
    await upload.announce()
    return UploadCreated(upload_id=upload.upload_id)


@router.put("/uploads/{upload_id}", response_model=UploadResult)
async def receive_upload(
    upload_id: str,
    request: Request,
    user_id: CurrentUser,
    uploads: Annotated[Uploads, Depends(uploads_of)],
    limit: Annotated[int, Depends(max_upload_bytes)],
    bytes_per_second: Annotated[int | None, Query(ge=1)] = None,
) -> UploadResult | Response:
    """Receive the file and work on it. However that ends, the watchers are told."""
    upload = _own_upload(uploads, upload_id, user_id)
    if upload.begun:
        raise HTTPException(409, "This upload has begun already.")
    upload.begun = True
    try:
        async with upload.until_stopped():
            result = await _receive_and_inspect(upload, request, limit, bytes_per_second)
    except FileTooLargeError as error:
        await upload.failed(str(error))
        raise HTTPException(413, str(error)) from error
    except ClientDisconnect:
        await upload.failed("The connection broke before the whole file had arrived.")
        return Response(status_code=499)  # nobody is left to read it
    except UploadStoppedError as error:
        await upload.failed(str(error))
        raise HTTPException(503, str(error)) from error
    except Exception:
        await upload.failed("The server failed to process this file.")
        raise
    await upload.completed(result.description())
    return result


@router.delete("/uploads/{upload_id}", status_code=204)
async def cancel_upload(
    upload_id: str,
    user_id: CurrentUser,
    uploads: Annotated[Uploads, Depends(uploads_of)],
) -> None:
    """Cancel a running upload. Told in words: a broken connection may go unnoticed for long."""
    upload = _own_upload(uploads, upload_id, user_id)
    upload.stop("The upload was cancelled.")
    if not upload.begun:
        upload.begun = True
        await upload.failed("The upload was cancelled.")


def _own_upload(uploads: Uploads, upload_id: str, user_id: str) -> Upload:
    upload = uploads.get(upload_id)
    if upload is None or upload.user_id != user_id:
        raise HTTPException(404, "There is no such upload.")
    return upload


async def _receive_and_inspect(
    upload: Upload, request: Request, limit: int, bytes_per_second: int | None
) -> UploadResult:
    # Told before the first byte is read, where the client says how much is to come.
    if int(request.headers.get("content-length", 0)) > limit:
        raise FileTooLargeError(limit)
    # A file without a name: it vanishes with its handle, even if this process is killed.
    with tempfile.TemporaryFile() as file:
        size = await _receive(upload, _paced(request.stream(), bytes_per_second), file, limit)
        upload.size = size  # counted, where the client had only declared it
        sha256 = await _hash(upload, _paced(_chunks(file), bytes_per_second))
        lines = await _count_lines(upload, _paced(_chunks(file), bytes_per_second))
    return UploadResult(
        upload_id=upload.upload_id,
        file_name=upload.file_name,
        size=size,
        sha256=sha256,
        lines=lines,
    )


async def _receive(
    upload: Upload, chunks: AsyncIterator[bytes], file: IO[bytes], limit: int
) -> int:
    size = 0
    upload.progress("receiving", 0)
    async for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise FileTooLargeError(limit)
        await asyncio.to_thread(file.write, chunk)  # a disk may block, the event loop must not
        upload.progress("receiving", size)
    return size


async def _hash(upload: Upload, chunks: AsyncIterator[bytes]) -> str:
    digest = hashlib.sha256()
    done = 0
    upload.progress("hashing", 0)
    async for chunk in chunks:
        await asyncio.to_thread(digest.update, chunk)
        done += len(chunk)
        upload.progress("hashing", done)
    return digest.hexdigest()


async def _count_lines(upload: Upload, chunks: AsyncIterator[bytes]) -> int:
    lines = 0
    done = 0
    last = b"\n"
    upload.progress("counting_lines", 0)
    async for chunk in chunks:
        lines += await asyncio.to_thread(chunk.count, b"\n")
        done += len(chunk)
        last = chunk[-1:]
        upload.progress("counting_lines", done)
    return lines if last == b"\n" else lines + 1  # a last line need not end in a newline


async def _chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    await asyncio.to_thread(file.seek, 0)
    while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
        yield chunk


async def _paced(
    chunks: AsyncIterator[bytes], bytes_per_second: int | None
) -> AsyncIterator[bytes]:
    """Pass `chunks` on, at most that fast: the page's slow motion.

    Nothing is faked. Who reads a socket slowly makes its sender wait, as a slow network would.
    """
    if bytes_per_second is None:
        async for chunk in chunks:
            if chunk:  # the end of a request's stream is an empty chunk
                yield chunk
        return
    piece_bytes = max(1, bytes_per_second // 10)
    due = time.monotonic()
    async for chunk in chunks:
        for start in range(0, len(chunk), piece_bytes):
            piece = chunk[start : start + piece_bytes]
            due += len(piece) / bytes_per_second
            await asyncio.sleep(due - time.monotonic())
            yield piece
