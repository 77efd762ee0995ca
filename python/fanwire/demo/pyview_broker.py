"""A redis-server that lives as long as the demo, for who has none at hand."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fanwire.testing import tethered

from .serve import DemoError

_START_DEADLINE_SECONDS = 10.0
_DIRECTORY = "fanwire-demo-"


@contextmanager
def own_redis() -> Iterator[str]:
    """The URL of a server that keeps nothing, and listens on a socket in a directory of its own."""
    if shutil.which("redis-server") is None:
        raise DemoError(
            "The instances share their counter through Redis, and there is no redis-server here.\n"
            "Install it (Debian: apt install redis-server), or name a broker: "
            "python -m fanwire demo pyview --redis redis://127.0.0.1:6379"
        )
    with tempfile.TemporaryDirectory(prefix=_DIRECTORY) as directory:
        path, log = Path(directory, "redis.sock"), Path(directory, "log")
        options = ["--port", "0", "--unixsocket", str(path), "--dir", directory]
        options += ["--save", "", "--logfile", str(log)]
        # The end of the block closes the server's input, which ends it, and waits for that.
        with tethered.start(["redis-server", *options], subprocess.DEVNULL) as server:
            _wait_until_it_answers(server, path, log)
            yield f"unix://{path}"


def is_own(url: str) -> bool:
    """Whether that is where a server of `own_redis` listens."""
    return url.startswith("unix://") and Path(url).parent.name.startswith(_DIRECTORY)


def _wait_until_it_answers(server: "subprocess.Popen[bytes]", path: Path, log: Path) -> None:
    deadline = time.monotonic() + _START_DEADLINE_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            if client.recv(16).startswith(b"+PONG"):
                return
        time.sleep(0.02)
    said = log.read_text() if log.exists() else ""
    raise DemoError(f"redis-server does not start.\n{said}".rstrip())
