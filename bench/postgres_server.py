"""A PostgreSQL cluster of our own, on a free port, as `initdb` and its defaults make it."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis_server import free_port

START_SECONDS = 20.0
STANDARD_BINARIES = Path("/usr/lib/postgresql")  # Debian keeps them off the PATH
SUPERUSER = "postgres"


def binary(name: str) -> str:
    versions = [int(path.name) for path in STANDARD_BINARIES.glob("*") if path.name.isdecimal()]
    places = [str(STANDARD_BINARIES / str(version) / "bin") for version in sorted(versions)[::-1]]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise SystemExit(f"{name} is not installed: apt install postgresql (or make bench)")
    return found


def owner() -> dict[str, Any]:
    """What `subprocess` is told: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(SUPERUSER)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": "/"}


class PostgresServer:
    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="fanwire-bench-"))
        try:
            if options := owner():
                os.chown(self.folder, options["user"], options["group"])
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stop()

    def version(self) -> str:
        said = subprocess.run(
            [binary("postgres"), "--version"], stdout=subprocess.PIPE, text=True, check=True
        )
        return said.stdout.split()[2]

    def _start(self) -> None:
        data = self.folder / "data"
        subprocess.run(
            [
                *(binary("initdb"), "-D", str(data), "--username", SUPERUSER),
                *("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"),
            ],
            stdout=subprocess.DEVNULL,
            check=True,
            **owner(),
        )
        self._process = subprocess.Popen(
            [
                *(binary("postgres"), "-D", str(data), "-p", str(self.port)),
                *("-h", "127.0.0.1", "-k", str(self.folder)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **owner(),
        )
        self._wait_until_up(self._process)

    def _wait_until_up(self, process: subprocess.Popen[bytes]) -> None:
        ready = [binary("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(ready, check=False).returncode != 0:
            if process.poll() is not None:
                raise RuntimeError(f"postgres ended at once with status {process.returncode}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"postgres was not up within {START_SECONDS:g} s")
            time.sleep(0.005)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            self._process.wait()
            self._process = None
        shutil.rmtree(self.folder)


class Drain:
    """A listener that reads what PostgreSQL sends and throws it away, over a plain socket.

    It counts how often `mark` was in it. The server must let everybody in.
    """

    def __init__(self, port: int, channels: list[str], mark: bytes) -> None:
        self._mark = mark
        self._socket = socket.create_connection(("127.0.0.1", port))
        startup = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0"
        self._socket.sendall((len(startup) + 4).to_bytes(4) + startup)
        said = self._until_ready()
        # BackendKeyData: the process id that serves us, and a secret.
        at = said.index(b"K\0\0\0\x0c") + 5
        self.pid = int.from_bytes(said[at : at + 4])
        listens = ";".join(f'LISTEN "{channel}"' for channel in channels).encode() + b"\0"
        self._socket.sendall(b"Q" + (len(listens) + 4).to_bytes(4) + listens)
        self._until_ready()

    def read(self, count: int, seconds: float) -> int:
        """Until there were so many marks, or nothing came for so long. How many there were."""
        self._socket.settimeout(seconds)
        seen, rest = 0, b""
        while seen < count:
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                break
            if not data:
                raise RuntimeError("PostgreSQL has closed the connection")
            seen += (rest + data).count(self._mark)
            # What may be the beginning of a mark, but is not one already counted.
            rest = (rest + data)[-len(self._mark) + 1 :]
        return seen

    def close(self) -> None:
        self._socket.close()

    def _until_ready(self) -> bytes:
        said = b""
        while not said.endswith(b"Z\0\0\0\x05I"):
            data = self._socket.recv(1 << 16)
            if not data:
                raise RuntimeError(f"PostgreSQL does not let us in: {said!r}")
            said += data
        return said
