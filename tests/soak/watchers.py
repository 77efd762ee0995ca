"""Those who watch uploads over WebSockets: they come, reconnect where they left off, and leave."""

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.soak.plan import Plan
from tests.soak.uploads import Upload, Uploads

UPLOADS_EACH = 3
STAY_SECONDS = (2.0, 10.0)
AWAY_SECONDS = (0.02, 1.0)
# The share of those who leave for good without having seen the end.
IMPATIENT = 0.2
# The share of connections that vanish, rather than being closed.
ABRUPT = 0.5
LOOK_SECONDS = 0.5


@dataclass
class Tally:
    """What became of all watchers together."""

    counts: Counter[str] = field(default_factory=Counter)
    # Final messages that did not come, and messages that came when they should not have.
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Progress:
    """How far a watcher has seen an upload."""

    upload: Upload
    position: tuple[str, int] | None = None
    step: int = 0

    def take(self, message: Any, *, history: bool) -> str | None:
        """Notes a message; returns what is wrong with it, if anything."""
        if message["action"] == "resync":
            self.position, self.step = None, 0
            return None if history else "resync without history"
        before, self.step = self.step, message["step"]
        if self.step <= before:
            return f"step {self.step} after {before}"
        if not history:
            return None
        old = self.position
        self.position = (message["_fanwire"]["epoch"], message["_fanwire"]["offset"])
        if old is not None and (self.position[0] != old[0] or self.position[1] <= old[1]):
            return f"{self.position} after {old}"
        return None


class Watcher:
    """One user with one connection at a time."""

    def __init__(self, user_id: str, uploads: list[Upload], plan: Plan, tally: Tally) -> None:
        self.user_id = user_id
        self._plan = plan
        self._tally = tally
        self._random = random.Random(f"{plan.seed} {user_id}")
        self._awaited = {upload.upload_id: Progress(upload) for upload in uploads}
        self._impatient = self._random.random() < IMPATIENT

    async def watch(self, port: int) -> None:
        """Returns when every final message has come or must have, or the watcher has left."""
        while self._awaited:
            await self._visit(f"ws://127.0.0.1:{port}/ws/{self.user_id}")
            if self._impatient:
                self._tally.counts["left early"] += bool(self._awaited)
                for upload_id in list(self._awaited):
                    self._forget(upload_id)
            elif self._awaited:
                await asyncio.sleep(self._random.uniform(*AWAY_SECONDS))

    async def _visit(self, url: str) -> None:
        until = time.monotonic() + self._random.uniform(*STAY_SECONDS)
        self._tally.counts["connections"] += 1
        async with connect(url, compression=None, ping_interval=None, proxy=None) as socket:
            try:
                await self._subscribe(socket)
                while self._awaited and (left := until - time.monotonic()) > 0:
                    await self._listen(socket, min(left, LOOK_SECONDS))
                    self._give_up()
            except ConnectionClosed as closed:
                self._tally.wrong.append(f"{self.user_id} was closed: {closed}")
            if self._random.random() < ABRUPT:
                socket.transport.abort()

    async def _subscribe(self, socket: ClientConnection) -> None:
        for upload_id, progress in self._awaited.items():
            message: dict[str, Any] = {"action": "subscribe_upload", "upload_id": upload_id}
            if progress.position is not None:
                epoch, offset = progress.position
                message["since"] = {"epoch": epoch, "offset": offset}
                self._tally.counts["resumed"] += 1
            await socket.send(json.dumps(message))

    async def _listen(self, socket: ClientConnection, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                text = await socket.recv()
        except TimeoutError:
            return  # nothing came, which is for the caller to judge
        message = json.loads(text)
        self._tally.counts["messages"] += 1
        upload_id = message.get("upload_id") or message["payload"]["upload_id"]
        progress = self._awaited.get(upload_id)
        if progress is None:
            return  # its end was seen on this connection
        self._tally.counts["resyncs"] += message["action"] == "resync"
        wrong = progress.take(message, history=self._plan.history)
        if wrong is not None:
            self._tally.wrong.append(f"{self.user_id}, {upload_id}: {wrong}")
        if message["action"] == "upload_completed":
            self._tally.counts["finals"] += 1
            self._forget(upload_id)

    def _give_up(self) -> None:
        """What has not come long after it was published does not come any more."""
        too_late = time.monotonic() - self._plan.grace_seconds
        for upload_id, progress in list(self._awaited.items()):
            final_at = progress.upload.final_at
            if final_at is not None and final_at < too_late:
                self._tally.missing.append(f"{self.user_id}, {upload_id} at {progress.position}")
                self._forget(upload_id)

    def _forget(self, upload_id: str) -> None:
        self._awaited.pop(upload_id).upload.awaited_by.remove(self.user_id)


class Crowd:
    """A fixed number of watchers at a time: where one has left, another one comes."""

    def __init__(self, plan: Plan, uploads: Uploads) -> None:
        self._plan = plan
        self._uploads = uploads
        self._numbers = itertools.count(1)
        self.tally = Tally()

    async def run(self, port: int) -> None:
        """Returns when no more uploads begin and everybody has left."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._plan.watchers):
                tasks.create_task(self._one_after_another(port))

    async def _one_after_another(self, port: int) -> None:
        while not self._uploads.closing:
            user_id = f"user-{next(self._numbers)}"
            chosen = self._uploads.choose(UPLOADS_EACH, user_id)
            if chosen:
                await Watcher(user_id, chosen, self._plan, self.tally).watch(port)
            else:
                await asyncio.sleep(LOOK_SECONDS)  # all have just ended; the next ones begin
