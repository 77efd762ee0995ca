"""One instance of the demo's app, with settings that a test chooses and a look at its insides.

Arguments: the descriptor of a listening socket, and the settings as JSON.
"""

import asyncio
import json
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvicorn

from fanwire import get_manager
from fanwire.demo.app import Settings, create_app


def open_temporary_files() -> int:
    """How many files of the temporary directory this process holds, those without a name too."""
    directory = tempfile.gettempdir()
    held = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            held += str(descriptor.readlink()).startswith(directory + "/")
        except FileNotFoundError:
            continue  # that of the listing itself
    return held


def main(descriptor: str, settings: str) -> None:
    app = create_app(Settings(**json.loads(settings)))

    @app.get("/state")
    async def state() -> dict[str, Any]:
        manager = get_manager()
        return {
            "connections": sorted(manager.user_connections),
            "watched": sorted(manager.upload_subscribers),
            "heartbeats": sum("heartbeat" in task.get_name() for task in asyncio.all_tasks()),
            "temporary_files": open_temporary_files(),
        }

    @app.post("/cut")
    async def cut() -> None:
        """Closes the sockets of all browsers, which may come back at once."""
        await get_manager().disconnect_all()

    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(descriptor))])


if __name__ == "__main__":
    main(*sys.argv[1:])
