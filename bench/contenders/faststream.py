"""FastStream: a pattern subscriber, messages in its own binary format."""

from collections.abc import Coroutine
from typing import Any

from contract import Contender
from faststream.redis import PubSub, RedisBroker  # type: ignore[import-not-found]
from faststream.redis.parser import BinaryMessageFormatV1  # type: ignore[import-not-found]
from listening import ListeningClient
from reference.manager import ConnectionManager


class FastStreamPublisher(ListeningClient):
    def __init__(self, url: str, manager: ConnectionManager) -> None:
        super().__init__(manager)
        self._broker = RedisBroker(url, apply_types=False, logger=None)
        # One pattern for uploads and users: each subscriber has a connection of its own, and
        # between two of them the order is lost.
        everything = PubSub("u*", pattern=True)
        self._broker.subscriber(channel=everything, decoder=_decode)(self._on_message)

    async def _on_message(self, message: tuple[str, str]) -> None:
        await self._manager.forward(*message)

    async def start(self) -> None:
        await self._ensure_open()
        await self._broker.start()

    async def open(self) -> None:
        await self._broker.connect()

    async def close(self) -> None:
        await self._broker.stop()

    async def publish(self, channel: str, payload: str) -> None:
        await self._broker.publish(payload, channel=channel)

    async def listen(self, manager: ConnectionManager) -> None:
        """The broker listens."""


async def _decode(message: Any) -> tuple[str, str]:
    return message.raw_message["channel"], message.body.decode()


def _wire(channel: str, body: bytes) -> tuple[bytes, bytes]:
    encoding: Coroutine[Any, Any, bytes] = BinaryMessageFormatV1.encode(
        message=body.decode(), reply_to=None, headers=None, correlation_id=channel
    )
    return channel.encode(), _finished(encoding)


def _finished(coroutine: Coroutine[Any, Any, bytes]) -> bytes:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: bytes = done.value
        return result
    raise RuntimeError("the coroutine did wait")


def build(url: str) -> Contender:
    manager = ConnectionManager()
    return Contender(manager, FastStreamPublisher(url, manager), wire=_wire)
