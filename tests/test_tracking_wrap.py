"""Streams that advance a tracker while they are iterated."""

import io
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any

import pytest
from starlette.datastructures import UploadFile

import fanwire

Publisher = fanwire.UploadProgressPublisher
CHUNKS = [b"abc", bytearray(b"de"), memoryview(b"fghi"), b""]


@pytest.fixture
def publisher() -> Publisher:
    return fanwire.UploadProgressPublisher("memory://")


async def stream(chunks: Iterable[Any]) -> AsyncIterator[Any]:
    for chunk in chunks:
        yield chunk


def test_bytes_count_by_their_length_once_they_are_dealt_with(publisher: Publisher) -> None:
    with publisher.track("u1", 9) as tracker:
        seen = [(bytes(chunk), tracker.done) for chunk in tracker.wrap(CHUNKS)]
        assert (tracker.done, tracker.percent) == (9, 100)
    assert seen == [(b"abc", 0), (b"de", 3), (b"fghi", 5), (b"", 9)]


async def test_so_they_do_in_an_asynchronous_stream(publisher: Publisher) -> None:
    async with publisher.track("u1", 9) as tracker:
        seen = [(bytes(chunk), tracker.done) async for chunk in tracker.wrap(stream(CHUNKS))]
        assert (tracker.done, tracker.percent) == (9, 100)
    assert seen == [(b"abc", 0), (b"de", 3), (b"fghi", 5), (b"", 9)]


def test_memoryviews_count_by_their_bytes(publisher: Publisher) -> None:
    with publisher.track("u1") as tracker:
        list(tracker.wrap([memoryview(b"12345678").cast("I")]))
        assert tracker.done == 8


async def test_everything_else_counts_as_one_or_as_one_says(publisher: Publisher) -> None:
    rows: list[Any] = ["three", {"n": 1}, None, 4]
    with publisher.track("u1") as tracker:
        assert list(tracker.wrap(rows)) == rows
        assert tracker.done == 4
        assert list(tracker.wrap(["ab", "c"], size=len)) == ["ab", "c"]
        assert tracker.done == 7
        assert [text async for text in tracker.wrap(stream(["ab", "c"]), size=len)] == ["ab", "c"]
        assert tracker.done == 10
        with pytest.raises(ValueError, match="n must be finite and at least 0, not -1"):
            list(tracker.wrap([1], size=lambda _: -1))


async def test_files_that_can_only_be_read(publisher: Publisher) -> None:
    content = bytes(range(256)) * 600
    # Rolled over to the disk, where it reads in a thread.
    spool = tempfile.SpooledTemporaryFile(max_size=1_000)  # noqa: SIM115 (the UploadFile closes it)
    spool.write(content)
    spool.seek(0)
    file = UploadFile(spool, size=len(content), filename="cat.jpg")  # type: ignore[arg-type]
    async with publisher.track("u1", file.size) as tracker:
        chunks = [chunk async for chunk in tracker.wrap(file)]
        assert (tracker.done, tracker.percent) == (len(content), 100)
        await file.seek(0)
        small = [chunk async for chunk in tracker.wrap(file, chunk_size=100_000)]
    await file.close()
    assert b"".join(chunks) == b"".join(small) == content
    assert [len(chunk) for chunk in chunks] == [65_536, 65_536, 22_528]
    assert [len(chunk) for chunk in small] == [100_000, 53_600]


class Pipe:
    """A file without lines."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def read(self, size: int) -> bytes:
        return self._file.read(size)


def test_files_are_read_in_lines_or_in_chunks(publisher: Publisher) -> None:
    with publisher.track("u1", 6) as tracker:
        assert list(tracker.wrap(io.BytesIO(b"ab\ncd\n"))) == [b"ab\n", b"cd\n"]
        assert list(tracker.wrap(io.BytesIO(b"ab\ncd\n"), chunk_size=4)) == [b"ab\nc", b"d\n"]
        assert list(tracker.wrap(Pipe(b"abcdef"))) == [b"abcdef"]
        assert list(tracker.wrap(Pipe(b"abcdef"), chunk_size=5)) == [b"abcde", b"f"]
        assert tracker.done == 24


class Both:
    """As HTTP clients have them: bodies for whoever comes."""

    def __iter__(self) -> Iterator[str]:
        yield "by for"

    async def __aiter__(self) -> AsyncIterator[str]:
        yield "by async for"


async def test_of_a_stream_that_is_both_the_form_of_the_block_decides(publisher: Publisher) -> None:
    both: Any = Both()
    with publisher.track("u1") as tracker:
        assert list(tracker.wrap(both)) == ["by for"]
    async with publisher.track("u1") as tracker:
        assert [item async for item in tracker.wrap(both)] == ["by async for"]


async def test_what_blocks_is_iterable_and_what_does_not_is_never(publisher: Publisher) -> None:
    """HTTP clients look at that."""
    async with publisher.track("u1") as tracker:
        files: list[Any] = [UploadFile(io.BytesIO()), stream([]), Both()]
        for file in files:
            wrapped: Any = tracker.wrap(file)
            assert isinstance(wrapped, AsyncIterable) and not isinstance(wrapped, Iterable)
        files = [Pipe(b""), [1], io.BytesIO()]
        for file in files:
            assert isinstance(tracker.wrap(file), Iterable)


async def test_lists_and_files_by_async_for(publisher: Publisher) -> None:
    async with publisher.track("u1") as tracker:
        seen = [(row, tracker.done) async for row in tracker.wrap(["a", "b"])]
        assert (seen, tracker.done) == ([("a", 0), ("b", 1)], 2)
        assert [part async for part in tracker.wrap(Pipe(b"abc"))] == [b"abc"]
        numbers = tracker.wrap(range(4))
        assert (next(numbers), await anext(numbers)) == (0, 1)
        assert ([n async for n in numbers], list(numbers)) == ([2, 3], [])
        assert tracker.done == 9


def by_for(items: Any) -> None:
    for _ in items:
        raise AssertionError("there are none")


@pytest.mark.parametrize("form", [by_for, list, b"".join])
def test_what_cannot_block_says_how_it_is_iterated(publisher: Publisher, form: Any) -> None:
    """As in an endpoint that is a plain ``def``."""
    with publisher.track("u1") as tracker:
        file: Any = UploadFile(io.BytesIO(b"abc"))
        with pytest.raises(TypeError, match=r"^UploadFile is .* 'async for', or wrap its .file$"):
            form(tracker.wrap(file))
        with pytest.raises(TypeError, match=r"^async_generator is .*: use 'async for'$"):
            form(tracker.wrap(stream([b"a"])))
        assert list(tracker.wrap(file.file, chunk_size=2)) == [b"ab", b"c"]
        assert (type(tracker.done), tracker.done) == (int, 3)


def test_a_loop_that_is_left_counts_what_it_has_dealt_with(publisher: Publisher) -> None:
    with publisher.track("u1") as tracker:
        for item in tracker.wrap(range(10)):
            if item == 5:
                break
        assert tracker.done == 5
        numbers = tracker.wrap(iter(range(3)))
        assert (next(numbers), next(numbers), list(numbers)) == (0, 1, [2])
        assert tracker.done == 8


async def test_errors_of_a_stream_are_the_block_s(publisher: Publisher) -> None:
    def breaks() -> Iterator[bytes]:
        yield b"abc"
        raise OSError("the disk is full")

    async def breaks_too() -> AsyncIterator[bytes]:
        yield b"abc"
        raise OSError("the disk is full")

    tracker = publisher.track("u1")
    with pytest.raises(OSError, match="full"), tracker:
        list(tracker.wrap(breaks()))
    assert tracker.done == 3
    tracker = publisher.track("u1")
    with pytest.raises(OSError, match="full"):
        async with tracker:
            assert [chunk async for chunk in tracker.wrap(breaks_too())]
    assert tracker.done == 3


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"stream": 7}, TypeError, "iterated, or has read.., not int"),
        ({"stream": None}, TypeError, "not NoneType"),
        ({"stream": [1], "chunk_size": 10}, TypeError, "for what has read.., not list: l"),
        ({"stream": io.BytesIO(), "chunk_size": 0}, ValueError, "chunk_size must be positive"),
        ({"stream": io.BytesIO(), "chunk_size": -1}, ValueError, "chunk_size must be"),
        ({"stream": io.BytesIO(), "chunk_size": "1"}, TypeError, "chunk_size must be a number"),
        ({"stream": [1], "size": 3}, TypeError, "size must be callable, not int"),
    ],
)
def test_what_cannot_be_wrapped(
    publisher: Publisher, options: Any, error: type[Exception], text: str
) -> None:
    with publisher.track("u1") as tracker, pytest.raises(error, match=text):
        tracker.wrap(**options)
