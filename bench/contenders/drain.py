"""Redis alone: a plain socket that reads what comes, and knows the last message of a burst."""

import asyncio
import re
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

from contract import Contender

CHUNK_BYTES = 1 << 18
USER = re.compile(rb"\nuser:([^*\r]+)\r")  # the channel, not the pattern


class Drain:
    """Delivers what is for a user, and throws away the rest. One message of a user in a chunk."""

    def __init__(self, url: str) -> None:
        self._port = urlsplit(url).port
        self._connections: dict[str, Any] = {}

    async def connect(self, user_id: str, websocket: Any) -> None:
        self._connections[user_id] = websocket

    async def disconnect(self, user_id: str, websocket: Any) -> None:  # noqa: ARG002
        self._connections.pop(user_id, None)

    async def subscribe_upload(self, user_id: str, upload_id: str) -> None:
        """Nobody's uploads are delivered."""

    async def unsubscribe_upload(self, user_id: str, upload_id: str) -> None:
        """Nobody's uploads are delivered."""

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), daemon=True).start()

    async def stop(self) -> None:
        """Its thread ends with the process."""

    async def publish_progress(self, upload_id: str, message: Any) -> None:
        raise NotImplementedError("it only listens")

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        """A thread that waits in the kernel, and looks at the end of what it has read."""
        with socket.create_connection(("127.0.0.1", self._port)) as sock:
            sock.sendall(b"*3\r\n$10\r\nPSUBSCRIBE\r\n$8\r\nupload:*\r\n$6\r\nuser:*\r\n")
            buffer, tail = bytearray(CHUNK_BYTES), b""
            while size := sock.recv_into(buffer):
                seen = tail + buffer[max(size - 1_000, 0) : size]
                tail = b""
                found = USER.search(seen)
                if found is None:
                    tail = bytes(seen[-100:])
                    continue
                user_id = found[1].decode()
                if user_id in self._connections:
                    sending = self._connections[user_id].send_text(seen.decode(errors="replace"))
                    asyncio.run_coroutine_threadsafe(sending, loop)


def build(url: str) -> Contender:
    drain = Drain(url)
    return Contender(drain, drain)
