"""A real PostgreSQL cluster that a test owns: its own directory, port and Unix socket.

PostgreSQL refuses to run as root. Then the cluster belongs to the user ``postgres``, whom Debian's
package makes; otherwise to whoever runs the tests.
"""

import functools
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, LiteralString, Self
from urllib.parse import quote, urlencode

import psycopg

from tests.certificates import Certificates
from tests.redis_server import POLL_SECONDS, START_DEADLINE_SECONDS, free_port

ROOT_STANDS_FOR = "postgres"
# The owner of the database that tests use; a role that may do nothing but connect; and one that
# has to give a password, over whatever it comes. Everybody else is trusted.
OWNER, GUEST, GUARDED = "app", "guest", "guarded"
DATABASE = "app"
PASSWORD = "pass word:/@%"
STANDARD_BINARIES = Path("/usr/lib/postgresql")  # Debian keeps them off the PATH


@functools.cache
def binary(name: str) -> str:
    """Where a program of the server is: on the PATH, or of the newest version Debian installed."""
    versions = [int(path.name) for path in STANDARD_BINARIES.glob("*") if path.name.isdecimal()]
    places = [str(STANDARD_BINARIES / str(version) / "bin") for version in sorted(versions)[::-1]]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise RuntimeError(f"{name} is not installed; `make test` installs it")
    return found


@functools.cache
def owner() -> dict[str, Any]:
    """What ``subprocess`` is told, so that a program does not run as root."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(ROOT_STANDS_FOR)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": "/"}


def own(*paths: Path) -> None:
    """Gives files to the user that the servers run as."""
    if options := owner():
        for path in paths:
            os.chown(path, options["user"], options["group"])


def make_directory(prefix: str) -> Path:
    """A directory of the servers' user. Short: a Unix socket's name has no more than 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    own(directory)
    return directory


class Template:
    """A cluster that was never started, to be copied: making one takes ten times as long."""

    def __init__(self) -> None:
        self._directory = make_directory("fanwire-template-")
        self.data = self._directory / "data"
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        shutil.rmtree(self._directory)

    def _make(self) -> None:
        command = [binary("initdb"), "-D", str(self.data), "--no-sync", "--username=postgres"]
        self._run([*command, "--auth=trust", "--encoding=UTF8", "--locale=C"])
        # A server in single-user mode: SQL from standard input, a statement a line.
        statements = (
            f"CREATE ROLE {OWNER} LOGIN",
            f"CREATE ROLE {GUEST} LOGIN",
            f"CREATE ROLE {GUARDED} LOGIN PASSWORD '{PASSWORD}'",
            f"CREATE DATABASE {DATABASE} OWNER {OWNER}",
        )
        single = [binary("postgres"), "--single", "-D", str(self.data), "-c", "fsync=off"]
        self._run([*single, "-j", "postgres"], ";\n\n".join(statements) + ";\n\n")
        (self.data / "pg_hba.conf").write_text(
            f"local all {GUARDED} scram-sha-256\n"
            f"host all {GUARDED} 127.0.0.1/32 scram-sha-256\n"
            "local all all trust\n"
            "host all all 127.0.0.1/32 trust\n"
        )

    @staticmethod
    def _run(command: Sequence[str], text: str = "") -> None:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, **owner()
        )
        # The single-user mode goes on after an error, and ends well.
        if done.returncode != 0 or "ERROR:" in done.stderr:
            raise RuntimeError(f"{command[0]} failed: {done.stdout}{done.stderr}")


@dataclass
class PostgresServer:
    """A PostgreSQL server. A context manager: it runs inside the block and is ended with it.

    Args:
        template: the cluster that it begins as a copy of.
        settings: what postgresql.conf would say.
        tls: it speaks TLS too, with a certificate that ``certificates.authority`` signed.
        tls_only: and over TCP nothing else.
        standby: a hot standby: it can be read, and takes no NOTIFY, no LISTEN and no write.
        synced: it waits for the disk, as PostgreSQL does. What a test kills is a process and never
            the machine, so a server that is to be killed need not: its recovery is far quicker.
        listening: False leaves the server down at first; ``start()`` brings it up.
    """

    template: Template
    settings: Mapping[str, str] = field(default_factory=dict)
    tls: bool = False
    tls_only: bool = False
    standby: bool = False
    synced: bool = False
    listening: bool = True
    port: int = field(default_factory=free_port)
    certificates: Certificates | None = None
    directory: Path = field(init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _client: "psycopg.Connection[tuple[Any, ...]] | None" = field(default=None, init=False)

    def __enter__(self) -> Self:
        self.directory = make_directory("fanwire-postgres-")
        try:
            copy = ["cp", "-a", str(self.template.data), str(self.data)]
            subprocess.run(copy, check=True, **owner())
            if self.tls or self.tls_only:
                self.certificates = Certificates.make(self.directory)
                own(self.certificates.certificate, self.certificates.key)
            if self.tls_only:
                rules = self.data / "pg_hba.conf"
                rules.write_text(
                    re.sub(r"^host ", "hostssl ", rules.read_text(), flags=re.MULTILINE)
                )
            if self.standby:
                (self.data / "standby.signal").touch()
            if self.listening:
                self.start()
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
        self.kill()
        shutil.rmtree(self.directory)

    # Addresses

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def url(self) -> str:
        return self.url_of(OWNER)

    @property
    def unix_url(self) -> str:
        """The socket, as libpq spells it."""
        where = urlencode({"host": str(self.directory), "port": self.port, "user": OWNER})
        return f"postgresql:///{DATABASE}?{where}"

    @property
    def tls_url(self) -> str:
        assert self.certificates is not None
        return self.url_of(
            OWNER, sslmode="verify-full", sslrootcert=str(self.certificates.authority)
        )

    @property
    def guarded_url(self) -> str:
        """Of the role that needs its password."""
        return self.url_of(f"{GUARDED}:{quote(PASSWORD, safe='')}")

    def url_of(self, who: str, database: str = DATABASE, **query: str) -> str:
        options = f"?{urlencode(query)}" if query else ""
        return f"postgresql://{who}@127.0.0.1:{self.port}/{database}{options}"

    # The process

    def start(self) -> None:
        """Starts the server on its port, and returns when it answers a query."""
        assert self._process is None, "already running"
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        while True:
            with (self.directory / "log").open("wb") as log:
                self._process = subprocess.Popen(
                    self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, **owner()
                )
            if self._answers(self._process, deadline):
                return
            # It ended by itself: its port may still be held by the connections of its predecessor.
            if time.monotonic() > deadline:
                raise RuntimeError(f"postgres does not start: {self.log}")

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
            "shared_buffers": "16MB",
            "fsync": "on" if self.synced else "off",
        }
        if self.certificates is not None:
            settings |= {"ssl": "on", "ssl_cert_file": str(self.certificates.certificate)}
            settings |= {"ssl_key_file": str(self.certificates.key)}
        settings |= self.settings
        options = [word for item in settings.items() for word in ("-c", "=".join(item))]
        return [binary("postgres"), "-D", str(self.data), *options]

    def _answers(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        while process.poll() is None:
            try:
                self.client.execute("SELECT")
                return True
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    break
                time.sleep(POLL_SECONDS)
        self.kill()
        return False

    def kill(self) -> None:
        """Ends the server at once and cuts its clients, as a crash would. If down, it stays down.

        The next start recovers what was committed.
        """
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        """Ends the server in order: it tells its clients so, and writes everything to disk."""
        self._end(signal.SIGINT)

    def _end(self, how: signal.Signals) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is None:
            return
        if self._process.poll() is None:
            self.resume()
            self._process.send_signal(how)
            self._process.wait()
        self._process = None

    def restart(self) -> None:
        """In order, as an administrator does it."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """All its processes stand still: connections stay open and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)  # first: no new child comes after that
        self._signal_children(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._signal_children(signal.SIGCONT)
        self._process.send_signal(signal.SIGCONT)

    def _signal_children(self, number: signal.Signals) -> None:
        assert self._process is not None
        pid = self._process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(ProcessLookupError):  # a client has left just now
                os.kill(int(child), number)

    @property
    def log(self) -> str:
        """What the server wrote since its last start."""
        return (self.directory / "log").read_text()

    # What a test asks of the server

    @property
    def client(self) -> "psycopg.Connection[tuple[Any, ...]]":
        """A connection of the test itself, as the superuser, over the Unix socket."""
        if self._client is None or self._client.closed:
            self._client = psycopg.connect(
                host=str(self.directory),
                port=self.port,
                user="postgres",
                dbname=DATABASE,
                application_name="test",
                autocommit=True,
            )
        return self._client

    def rows(self, query: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
        return self.client.execute(query, parameters or None).fetchall()

    def notify(self, channel: str, payload: str) -> None:
        """Notifies as any other program would."""
        self.client.execute("SELECT pg_notify(%s, %s)", (channel, payload))

    def publish(self, channel: str, payload: str) -> None:
        """Publishes as any other program would that knows how fanwire's channels are carried."""
        if channel.startswith(("upload:", "user:")):
            channel, payload = "fanwire", f"~m{len(channel.encode())}:{channel}{payload}"
        self.notify(channel, payload)

    def listeners(self) -> set[int]:
        """The process ids of the backends that serve fanwire's listeners."""
        return {pid for (pid,) in self.rows(f"SELECT pid {_OTHERS} AND {_LISTENS}")}

    def drop_listeners(self) -> set[int]:
        """Cuts the connection of every listener; returns their process ids."""
        return self._drop(_LISTENS)

    def backends(self) -> set[int]:
        """The process ids of all clients' backends but the test's own."""
        return {pid for (pid,) in self.rows(f"SELECT pid {_OTHERS}")}

    def drop_clients(self) -> set[int]:
        """Cuts every connection but that of the test itself; returns when their backends ended."""
        return self._drop("true")

    def terminate(self, pid: int) -> None:
        """Cuts one connection; returns when its backend ended."""
        self.rows("SELECT pg_terminate_backend(%s)", pid)
        self._wait_until_gone({pid})

    def _drop(self, condition: LiteralString) -> set[int]:
        dropped = self.rows(f"SELECT pid, pg_terminate_backend(pid) {_OTHERS} AND {condition}")
        pids = {pid for pid, _ in dropped}
        self._wait_until_gone(pids)
        return pids

    def _wait_until_gone(self, pids: set[int]) -> None:
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        while left := pids & self.backends():
            if time.monotonic() > deadline:
                raise RuntimeError(f"backends do not end: {left}")
            time.sleep(POLL_SECONDS)

    def save(self) -> None:
        """Every commit outlives the processes; this makes the next start the quicker one."""
        self.client.execute("CHECKPOINT")

    def forget(self) -> None:
        """Empties fanwire's tables, whichever are there, but leaves its schema's version."""
        tables = self.rows(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
            " WHERE tablename LIKE 'fanwire\\_%%' AND tablename <> 'fanwire_schema'"
        )
        for (table,) in tables:
            self.client.execute(f"TRUNCATE {table} CASCADE")


# By what they said last, as PostgreSQL does not tell who listens: LISTEN to a name in quotation
# marks (the trial of a new connection has none), or the empty statement for a sign of life, which
# is also what is shown of a new connection.
_LISTENS: LiteralString = (
    "state = 'idle' AND (query ~ '^(UN)?LISTEN \"'"
    " OR query = '' AND state_change > backend_start + interval '1 second')"
)
_OTHERS: LiteralString = (
    "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
)
