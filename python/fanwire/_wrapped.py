"""Streams that advance a tracker while they are iterated."""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol, TypeVar

__all__ = ["AsyncReader", "Reader", "size_of", "wrap"]

_Advance = Callable[[Any], None]
_Size = Callable[[Any], Any]

_CHUNK_SIZE = 65_536

_T_co = TypeVar("_T_co", covariant=True)


class Reader(Protocol[_T_co]):
    """A file."""

    def read(self, size: int, /) -> _T_co:
        """Read up to so many bytes; what is empty is the end."""


class AsyncReader(Protocol[_T_co]):
    """A file such as Starlette's ``UploadFile``."""

    async def read(self, size: int, /) -> _T_co:
        """Read up to so many bytes; what is empty is the end."""


def wrap(
    stream: Any, advance: _Advance, size: _Size, chunk_size: int | None, *, prefer_async: bool
) -> Any:
    """Return an iterator, or an asynchronous one: whichever fits the stream.

    It is never both, because others look at what it is, such as HTTP clients that send it.
    """
    if chunk_size is None:
        is_async, is_sync = hasattr(stream, "__aiter__"), hasattr(stream, "__iter__")
        if is_async and (prefer_async or not is_sync):
            return _AsyncWrapped(aiter(stream), advance, size)
        if is_sync:
            return _wrapped(iter(stream), advance, size)
        chunk_size = _CHUNK_SIZE
    read = getattr(stream, "read", None)
    if not callable(read):
        kind = type(stream).__name__
        raise TypeError(f"wrap() takes what can be iterated, or has read(), not {kind}")
    if inspect.iscoroutinefunction(read):
        return _AsyncWrapped(_AsyncChunks(read, chunk_size), advance, size)
    return _wrapped(_chunks(read, chunk_size), advance, size)


def size_of(chunk: Any) -> int:
    """Return the bytes of what is bytes, and 1 of anything else."""
    if isinstance(chunk, (bytes, bytearray)):
        return len(chunk)
    if isinstance(chunk, memoryview):
        return chunk.nbytes
    return 1


def _wrapped(chunks: Iterator[Any], advance: _Advance, size: _Size) -> Iterator[Any]:
    for chunk in chunks:
        yield chunk
        advance(size(chunk))  # it has been dealt with, for the next one is asked for


def _chunks(read: Callable[[int], Any], chunk_size: int) -> Iterator[Any]:
    while chunk := read(chunk_size):
        yield chunk


class _AsyncWrapped:
    """As :func:`_wrapped`. A class: an asynchronous generator that is left early has to be closed
    by its event loop."""

    __slots__ = ("_advance", "_chunks", "_last", "_size")

    def __init__(self, chunks: AsyncIterator[Any], advance: _Advance, size: _Size) -> None:
        self._chunks = chunks
        self._advance = advance
        self._size = size
        self._last: tuple[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._last is not None:
            (chunk,), self._last = self._last, None
            self._advance(self._size(chunk))
        chunk = await anext(self._chunks)
        self._last = (chunk,)
        return chunk


class _AsyncChunks:
    __slots__ = ("_chunk_size", "_read")

    def __init__(self, read: Callable[[int], Any], chunk_size: int) -> None:
        self._read = read
        self._chunk_size = chunk_size

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        chunk = await self._read(self._chunk_size)
        if not chunk:
            raise StopAsyncIteration
        return chunk
