"""PUBLISH commands as bytes, and the body that each of them carries."""

from collections.abc import Callable, Iterable, Iterator

from payloads import progress

# From a channel (`upload:{id}`, `user:{id}`) and a body of JSON to what is really published.
Wire = Callable[[str, bytes], tuple[bytes, bytes]]


def body_of(channel: str, number: int) -> bytes:
    return progress(channel.partition(":")[2], number % 101).model_dump_json().encode()


def plain(channel: str, body: bytes) -> tuple[bytes, bytes]:
    return channel.encode(), body


def publish_commands(channels: Iterable[str], wire: Wire = plain) -> Iterator[bytes]:
    for number, channel in enumerate(channels):
        yield publish_command(*wire(channel, body_of(channel, number)))


def publish_command(name: bytes, body: bytes) -> bytes:
    return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(body), body)
