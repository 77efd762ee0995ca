"""Run by `make wheel` in an environment that holds nothing but the wheel.

Shows that the wheel needs no other package, that everything is in it, and that a message travels.
"""

import asyncio
import importlib.metadata
import importlib.resources
import json

import fanwire


class Connection:
    """What fanwire asks of a connection, and no more."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[str] = asyncio.Queue()
        self.closed_with: int | None = None

    async def send_text(self, data: str) -> None:
        await self.received.put(data)

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        self.closed_with = code


def check_contents() -> None:
    requires = importlib.metadata.requires("fanwire") or []
    needed = [line for line in requires if "extra ==" not in line]
    assert not needed, f"the wheel must not need other packages: {needed}"
    for name in ("py.typed", "_core.pyi", "demo/page.html"):
        assert importlib.resources.files(fanwire).joinpath(name).is_file(), f"{name} is missing"
    # A development install would have the checkout's python/ on sys.path instead.
    assert "site-packages" in fanwire.__file__, fanwire.__file__


async def round_trip() -> None:
    manager = fanwire.ConnectionManager()
    publisher = fanwire.UploadProgressPublisher("memory://", manager=manager)
    connection = Connection()
    await publisher.start()
    await manager.connect("ada", connection)
    await manager.subscribe_upload("ada", "u1")
    message = {"action": "upload_progress", "payload": {"upload_id": "u1", "progress_percent": 42}}
    await publisher.publish_progress("u1", message)
    text = await asyncio.wait_for(connection.received.get(), 10)
    assert json.loads(text) == message, text
    await manager.disconnect_all()
    assert connection.closed_with == 1012, connection.closed_with
    await publisher.stop()


check_contents()
asyncio.run(round_trip())
print(f"fanwire {importlib.metadata.version('fanwire')}: the wheel works in an empty environment")
