"""A real PgBouncer between the clients and a test's PostgreSQL server."""

import functools
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psycopg

from tests.postgres_server import (
    DATABASE,
    GUEST,
    OWNER,
    PostgresServer,
    make_directory,
    own,
    owner,
)
from tests.redis_server import POLL_SECONDS, START_DEADLINE_SECONDS, free_port


@functools.cache
def binary() -> str:
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if found is None:
        raise RuntimeError("pgbouncer is not installed; `make test` installs it")
    return found


@dataclass
class PgBouncer:
    """A pool before ``server``. A context manager: it runs inside the block and is ended with it.

    Args:
        mode: when a server connection goes back to the pool.
        pool_size: how many connections to the server it has for one user and database.
        round_robin: whether it lends them in turn, and not the last one that came back.
    """

    server: PostgresServer
    mode: Literal["session", "transaction", "statement"] = "transaction"
    pool_size: int = 20
    round_robin: bool = False
    port: int = field(default_factory=free_port)
    directory: Path = field(init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        self.directory = make_directory("fanwire-pgbouncer-")
        try:
            self._configure()
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()  # at once, without waiting for its clients
            self._process.wait()
        shutil.rmtree(self.directory)

    @property
    def url(self) -> str:
        return f"postgresql://{OWNER}@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def _configuration(self) -> Path:
        return self.directory / "pgbouncer.ini"

    def _configure(self) -> None:
        users = self.directory / "users.txt"
        users.write_text(f'"{OWNER}" ""\n"{GUEST}" ""\n')
        # Everything else is as it comes: an address that needs more is not one that users have.
        self._configuration.write_text(
            f"[databases]\n* = host={self.server.directory} port={self.server.port}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {users}\n"
            f"pool_mode = {self.mode}\ndefault_pool_size = {self.pool_size}\n"
            f"server_round_robin = {int(self.round_robin)}\n"
        )
        own(users, self._configuration)

    def _start(self) -> None:
        log = self.directory / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [binary(), str(self._configuration)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                **owner(),
            )
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                time.sleep(POLL_SECONDS)
        raise RuntimeError(f"pgbouncer does not start: {log.read_text()}")
