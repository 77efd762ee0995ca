"""Hands files to the workers, and shows in the terminal how far they are.

    python send.py README.md jobs.py

A redis-server on its usual port is taken for granted; FANWIRE_URL names another one.
"""

import asyncio
import json
import sys
import uuid
from pathlib import Path

import fanwire
from jobs import digest, publisher


class Terminal:
    """Takes the place of a WebSocket: whatever has these two methods is a connection."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names
        self.done = asyncio.Event()

    async def send_text(self, text: str) -> None:
        message = json.loads(text)
        progress = message.get("payload", message)
        name = self.names[progress["upload_id"]]
        match message["action"]:
            case "upload_progress":
                print(f"{name}: {progress['stage']}, {progress['progress_percent']} %")
                return
            case "upload_completed":
                print(f"{name}: {message['description']}")
            case "upload_failed":
                print(f"{name}: failed, {message['error_message']}")
        del self.names[progress["upload_id"]]
        if not self.names:
            self.done.set()

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        pass


def send(upload_id: str, path: str) -> None:
    digest.delay(upload_id, str(Path(path).resolve()))


async def main(paths: list[str]) -> None:
    uploads = {str(uuid.uuid4()): path for path in paths}
    terminal = Terminal(dict(uploads))
    manager = fanwire.init_manager()
    await publisher.start()
    await manager.connect("me", terminal)
    for upload_id, path in uploads.items():
        await manager.subscribe_upload("me", upload_id)
        await asyncio.to_thread(send, upload_id, path)
    await terminal.done.wait()
    await publisher.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
