"""A real redis-server that a test owns: its own directory, port and Unix socket."""

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.certificates import Certificates

START_DEADLINE_SECONDS = 20.0
POLL_SECONDS = 0.005
# Below Linux's range for outgoing connections, so that nobody is handed the port of a server that
# is down for a moment and comes back on it.
PORTS = range(20_000, 32_000)
# Not the global generator: a seed would hand the same port to two test runs.
_random = random.SystemRandom()
_not_given: list[int] = []


def _ports() -> list[int]:
    """Those of this process: none that another worker of the same test run gives."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return list(PORTS[worker % workers :: workers])


def free_port() -> int:
    """A TCP port on which nobody listens, and none that was given before while there are others.

    Whoever is given one may take its time until it listens.
    """
    while True:
        if not _not_given:
            _not_given.extend(_ports())
            _random.shuffle(_not_given)
        port = _not_given.pop()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@dataclass
class RedisServer:
    """A redis-server process. A context manager: it runs inside the block and is killed at its end.

    Args:
        password: what the server demands of everybody (``requirepass``).
        acl_user: a user besides the default one, with ``acl_rules``.
        tls: also listen on a TLS port, with a certificate that ``certificates.authority`` signed.
        listening: False leaves the server down at first; ``start()`` brings it up.
    """

    password: str | None = None
    acl_user: str | None = None
    acl_rules: str = "allcommands allkeys allchannels"
    tls: bool = False
    listening: bool = True
    port: int = field(default_factory=free_port)
    tls_port: int = field(default_factory=free_port)
    certificates: Certificates | None = None
    directory: Path = field(init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _client: "redis.Redis | None" = field(default=None, init=False)

    def __enter__(self) -> Self:
        # A short path of its own: a Unix socket's name may have no more than 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="fanwire-redis-"))
        try:
            if self.tls:
                self.certificates = Certificates.make(self.directory)
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
    def socket_path(self) -> Path:
        return self.directory / "redis.sock"

    @property
    def _credentials(self) -> str:
        if self.password is None:
            return ""
        return f"{quote(self.acl_user or '', safe='')}:{quote(self.password, safe='')}@"

    @property
    def url(self) -> str:
        return self.url_through(self.port)

    def url_through(self, port: int) -> str:
        """For who comes by another port, which a proxy listens on."""
        return f"redis://{self._credentials}127.0.0.1:{port}"

    @property
    def unix_url(self) -> str:
        """The socket in the spelling of the Rust redis crate."""
        query = []
        if self.password is not None:
            query.append(f"pass={quote(self.password, safe='')}")
        if self.acl_user is not None:
            query.append(f"user={quote(self.acl_user, safe='')}")
        return f"redis+unix://{self.socket_path}" + (f"?{'&'.join(query)}" if query else "")

    @property
    def tls_url(self) -> str:
        return f"rediss://{self._credentials}127.0.0.1:{self.tls_port}"

    # The process

    def start(self) -> None:
        """Starts the process on its port, and returns when it answers PING."""
        assert self._process is None, "already running"
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        while True:
            process = subprocess.Popen(
                self._command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            self._process = process
            if self._answers(process, deadline):
                return
            # It ended by itself: its port may still be held by the connections of its predecessor.
            output, _ = process.communicate()
            self._process = None
            if time.monotonic() > deadline:
                raise RuntimeError(f"redis-server does not start: {output.decode()}")

    def _command(self) -> list[str]:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--unixsocket", str(self.socket_path), "--dir", str(self.directory)]
        command += ["--save", "", "--appendonly", "no", "--loglevel", "warning"]
        if self.acl_user is not None:
            rules = self.acl_rules.split()
            command += ["--user", self.acl_user, "on", f">{self.password}", *rules]
        elif self.password is not None:
            command += ["--requirepass", self.password]
        if self.certificates is not None:
            command += ["--tls-port", str(self.tls_port), "--tls-auth-clients", "no"]
            command += ["--tls-cert-file", str(self.certificates.certificate)]
            command += ["--tls-key-file", str(self.certificates.key)]
            command += ["--tls-ca-cert-file", str(self.certificates.authority)]
        return command

    def _answers(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        while process.poll() is None:
            try:
                self.client.ping()
                return True
            except redis.ConnectionError:
                if time.monotonic() > deadline:
                    process.kill()
                    process.wait()
                    return False
                time.sleep(POLL_SECONDS)
        return False

    def kill(self) -> None:
        """Ends the process at once, as a crash would. A server that is down stays down."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is None:
            return
        self._process.kill()
        self._process.communicate()
        self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def pause(self) -> None:
        """The process stands still: connections stay open and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    # What a test asks of the server

    @property
    def client(self) -> "redis.Redis":
        """A redis-py client of the test itself, over the Unix socket."""
        if self._client is None:
            self._client = redis.Redis(
                unix_socket_path=str(self.socket_path),
                # With an ACL user besides it, the default user is open.
                password=None if self.acl_user is not None else self.password,
                retry=Retry(NoBackoff(), 0),
            )
        return self._client

    def save(self) -> None:
        """What was published so far outlives the process."""
        self.client.save()

    def forget(self) -> None:
        """A history would be the next test's upload's past."""
        self.client.flushall()

    def publish(self, channel: str | bytes, payload: str | bytes) -> int:
        """Publishes as any other program would; returns how many clients received it."""
        return int(self.client.publish(channel, payload))

    def tap(self, *channels: str, patterns: Iterable[str] = ()) -> Any:
        """A subscription of the test's own that the server has confirmed, as redis-py has it.

        ``get_message(timeout=…)`` gives what is published from now on; ``close()`` ends it.
        """
        pubsub: Any = self.client.pubsub()  # type: ignore[no-untyped-call]
        patterns = tuple(patterns)
        if channels:
            pubsub.subscribe(*channels)
        if patterns:
            pubsub.psubscribe(*patterns)
        for _ in (*channels, *patterns):
            confirmation = pubsub.get_message(timeout=START_DEADLINE_SECONDS)
            assert confirmation and confirmation["type"].endswith("subscribe"), confirmation
        return pubsub

    def listeners(self) -> set[int]:
        """The ids of the clients that hold a subscription, the test's own included."""
        clients: list[dict[str, Any]] = self.client.client_list(_type="pubsub")
        return {int(client["id"]) for client in clients}

    def drop_listeners(self) -> set[int]:
        """Cuts the connection of every client that holds a subscription; returns their ids."""
        dropped = self.listeners()
        self.client.client_kill_filter(_type="pubsub")
        return dropped

    def drop_clients(self) -> None:
        """Cuts every connection but that of the test itself, all of them at once."""
        self.client.client_kill_filter(skipme=True)
