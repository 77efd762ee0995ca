"""A manager, a publisher and a connection, and every awaitable that they have to offer."""

from collections.abc import Callable, Coroutine
from typing import Any

import fanwire
from tests.connections import RecordingConnection

Make = Callable[[], Coroutine[Any, Any, Any]]

OPERATIONS = [
    "connect",
    "disconnect",
    "subscribe_upload",
    "unsubscribe_upload",
    "send_to_user",
    "send_to_upload_subscribers",
    "disconnect_all",
    "start",
    "stop",
    "publish_progress",
    "publish_to_user",
]

# Done at the call: what comes back is ready, and may be awaited as often as one likes.
DONE_AT_THE_CALL = ["disconnect", "subscribe_upload", "unsubscribe_upload"]


class App:
    """One of everything, with an awaitable for every operation."""

    def __init__(self, url: str) -> None:
        self.manager = fanwire.ConnectionManager()
        self.publisher = fanwire.UploadProgressPublisher(url, manager=self.manager)
        self.connection = RecordingConnection()

    def make(self, operation: str) -> Coroutine[Any, Any, Any]:
        manager, publisher = self.manager, self.publisher
        made: dict[str, Make] = {
            "connect": lambda: manager.connect("ada", self.connection),
            "disconnect": lambda: manager.disconnect("ada", self.connection),
            "subscribe_upload": lambda: manager.subscribe_upload("ada", "u1"),
            "unsubscribe_upload": lambda: manager.unsubscribe_upload("ada", "u1"),
            "send_to_user": lambda: manager.send_to_user("ada", {"n": 1}),
            "send_to_upload_subscribers": lambda: manager.send_to_upload_subscribers("u1", 1),
            "disconnect_all": manager.disconnect_all,
            "start": publisher.start,
            "stop": publisher.stop,
            "publish_progress": lambda: publisher.publish_progress("u1", {"n": 1}),
            "publish_to_user": lambda: publisher.publish_to_user("ada", {"n": 1}),
        }
        return made[operation]()

    async def prepare(self) -> None:
        """Connected and watching, so that no operation has an easy way out."""
        await self.manager.connect("ada", self.connection)
        await self.manager.subscribe_upload("ada", "u1")
