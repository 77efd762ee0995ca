"""A redis-server that lives as long as the demo, for who has none at hand."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .serve import DemoError

_START_DEADLINE_SECONDS = 10.0

# The shell ends the server when its standard input ends, and that ends with this process, however
# that comes. Their own session keeps Ctrl-C away from them: the broker ends after the demo.
_SERVE_UNTIL_INPUT_ENDS = """
exec 3<&0
redis-server "$@" & server=$!
{ read -r _ <&3; kill "$server"; } & reader=$!
wait "$server"
kill "$reader"
"""


@contextmanager
def own_redis() -> Iterator[str]:
    """The URL of a server that keeps nothing, and listens on a socket in a directory of its own."""
    if shutil.which("redis-server") is None:
        raise DemoError(
            "The instances share their counter through Redis, and there is no redis-server here.\n"
            "Install it (Debian: apt install redis-server), or name a broker: "
            "python -m fanwire demo pyview --redis redis://127.0.0.1:6379"
        )
    with tempfile.TemporaryDirectory(prefix="fanwire-demo-") as directory:
        path, log = Path(directory, "redis.sock"), Path(directory, "log")
        options = ["--port", "0", "--unixsocket", str(path), "--dir", directory]
        options += ["--save", "", "--logfile", str(log)]
        with subprocess.Popen(  # noqa: S603 - nothing of it comes from outside
            ["/bin/sh", "-c", _SERVE_UNTIL_INPUT_ENDS, "sh", *options],
            stdin=subprocess.PIPE,  # closed at the end of the block, which waits for the shell then
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as shell:
            _wait_until_it_answers(shell, path, log)
            yield f"unix://{path}"


def _wait_until_it_answers(shell: "subprocess.Popen[bytes]", path: Path, log: Path) -> None:
    deadline = time.monotonic() + _START_DEADLINE_SECONDS
    while time.monotonic() < deadline and shell.poll() is None:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            if client.recv(16).startswith(b"+PONG"):
                return
        time.sleep(0.02)
    said = log.read_text() if log.exists() else ""
    raise DemoError(f"redis-server does not start.\n{said}".rstrip())
