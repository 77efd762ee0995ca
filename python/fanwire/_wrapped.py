"""Streams that advance a tracker while they are iterated."""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, NoReturn, Protocol, Self, TypeVar

__all__ = ["AsyncReader", "Reader", "Wrapped", "size_of", "wrap"]

_Advance = Callable[[Any], None]
_Size = Callable[[Any], Any]

_CHUNK_SIZE = 65_536

_T = TypeVar("_T")
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
    """Return what is iterated by ``for`` or ``async for``, or only by the latter.

    What is asynchronous is not iterable: HTTP clients would take it for a body that blocks.
    """
    given = chunk_size is not None
    if chunk_size is None:
        is_async, is_sync = hasattr(stream, "__aiter__"), hasattr(stream, "__iter__")
        if is_async and (prefer_async or not is_sync):
            return _AsyncWrapped(stream, aiter(stream), advance, size)
        if is_sync:
            return Wrapped(_advancing(iter(stream), advance, size))
        chunk_size = _CHUNK_SIZE
    read = getattr(stream, "read", None)
    if not callable(read):
        kind = type(stream).__name__
        if given:
            raise TypeError(f"chunk_size is for what has read(), not {kind}: leave it out")
        raise TypeError(f"wrap() takes what can be iterated, or has read(), not {kind}")
    if inspect.iscoroutinefunction(read):
        return _AsyncWrapped(stream, _AsyncChunks(read, chunk_size), advance, size)
    return Wrapped(_advancing(_chunks(read, chunk_size), advance, size))


def size_of(chunk: Any) -> int:
    """Return the bytes of what is bytes, and 1 of anything else."""
    if isinstance(chunk, (bytes, bytearray)):
        return len(chunk)
    if isinstance(chunk, memoryview):
        return chunk.nbytes
    return 1


class Wrapped(Generic[_T]):
    """What ``Tracker.wrap`` returns of what is iterated by ``for``: an iterator, whose items
    ``async for`` has too. That waits for nothing; what blocks, blocks the event loop."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterator[_T]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[_T]:
        """Return an iterator over what is left."""
        return self._items

    def __next__(self) -> _T:
        """Return the next item."""
        return next(self._items)

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> _T:
        """Return the next item."""
        for item in self._items:
            return item
        raise StopAsyncIteration


def _advancing(chunks: Iterator[Any], advance: _Advance, size: _Size) -> Iterator[Any]:
    for chunk in chunks:
        yield chunk
        advance(size(chunk))  # it has been dealt with, for the next one is asked for


def _chunks(read: Callable[[int], Any], chunk_size: int) -> Iterator[Any]:
    while chunk := read(chunk_size):
        yield chunk


class _AsyncWrapped:
    """As :func:`_advancing`. A class: an asynchronous generator that is left early has to be closed
    by its event loop."""

    __slots__ = ("_advance", "_chunks", "_last", "_size", "_stream")

    def __init__(
        self, stream: Any, chunks: AsyncIterator[Any], advance: _Advance, size: _Size
    ) -> None:
        self._stream = stream
        self._chunks = chunks
        self._advance = advance
        self._size = size
        self._last: tuple[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    def __getitem__(self, _: object) -> NoReturn:
        # What `for` tries where there is no __iter__, which must not be there.
        kind = type(self._stream).__name__
        hint = ", or wrap its .file" if hasattr(self._stream, "file") else ""
        raise TypeError(f"{kind} is asynchronous: use 'async for'{hint}")

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
