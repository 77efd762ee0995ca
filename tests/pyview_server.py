"""uvicorn with the PyView app of the tests, in processes of its own."""

import http.client
import json
import sys
from contextlib import suppress
from typing import Any, Self

from tests.deadlines import until_blocking
from tests.demo import START_DEADLINE_SECONDS, Instance, Process
from tests.redis_server import free_port


class PyViewServer(Process):
    """``uvicorn`` on a free port. Inside the block it serves.

    Args:
        url: the broker's.
        options: more of uvicorn's command line.
        target: which app; that of the tests, unless it is told.
    """

    def __init__(
        self, url: str, *options: str, target: str = "tests.apps.pyview_app:create"
    ) -> None:
        self.port = free_port()
        self.instance = Instance(f"http://127.0.0.1:{self.port}")
        command = [sys.executable, "-m", "uvicorn", "--factory", target, *options]
        command += ["--port", str(self.port), "--log-level", "warning"]
        # Workers must agree on the secret: one signs a page that another is asked to join.
        super().__init__(command, PYVIEW_SECRET="of the tests", FANWIRE_URL=url)

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            until_blocking(self._serves, "it serves", deadline_seconds=START_DEADLINE_SECONDS)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _serves(self) -> bool:
        assert self.process.poll() is None, self.stderr
        with suppress(OSError):
            self.state()
            return True
        return False

    def state(self) -> dict[str, Any]:
        """Of one of the workers, if there are several."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/state")
            state: dict[str, Any] = json.loads(connection.getresponse().read())
            return state
        finally:
            connection.close()

    @property
    def complaints(self) -> list[str]:
        """What it said of trouble; uvicorn and its workers have other things to say as well."""
        words = ("fanwire", "ERROR", "Error", "Traceback", "never awaited")
        return [line for line in self.stderr.splitlines() if any(word in line for word in words)]
