"""What tests of ``track`` need: a clock that stands still, and somebody who hears everything."""

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

from tests.deadlines import DEADLINE_SECONDS, until
from tests.redis_server import RedisServer

_marks = itertools.count()


class Clock:
    """Time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.looked = 0

    def __call__(self) -> float:
        self.looked += 1
        return self.now


class Ear:
    """Hears what is published for uploads and users."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._pubsub = server.client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._pubsub.psubscribe("upload:*", "user:*")
        self.texts()  # once a mark comes back it is subscribed

    def texts(self) -> list[tuple[str, str]]:
        """Channels and payloads since the last call.

        To be called when the broker has taken everything that is to be heard.
        """
        mark = f"mark {next(_marks)}"
        found: list[tuple[str, str]] = []
        end = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < end:
            self._server.publish("upload:mark", mark)
            message: dict[str, Any] | None = self._pubsub.get_message(timeout=0.1)
            while message is not None:
                data = message["data"].decode()
                if data == mark:
                    return found
                if message["channel"] != b"upload:mark":
                    found.append((message["channel"].decode(), data))
                message = self._pubsub.get_message(timeout=0.1)
        raise AssertionError(f"the mark has not come, but {found}")

    def messages(self, channel: str | None = None) -> list[Any]:
        """As ``texts``, decoded: those of one channel, or all."""
        return [json.loads(text) for name, text in self.texts() if channel in (None, name)]

    async def until(self, channel: str, condition: Callable[[list[Any]], object]) -> list[Any]:
        """The messages of a channel since the last call, as soon as they fulfil a condition."""
        heard: list[Any] = []

        def there() -> object:
            heard.extend(self.messages(channel))
            return condition(heard)

        await until(there, f"what is to be heard on {channel}, after {heard}")
        return heard

    def close(self) -> None:
        self._pubsub.close()


def percents(messages: list[Any]) -> list[int]:
    return [message["payload"]["progress_percent"] for message in messages]


def brief(messages: list[Any]) -> list[Any]:
    """Of progress the percentage and the stage, of what comes last its action."""
    return [
        (message["payload"]["progress_percent"], message["payload"]["stage"])
        if message["action"] == "upload_progress"
        else message["action"].removeprefix("upload_")
        for message in messages
    ]
