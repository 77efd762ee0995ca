"""A client with a WebSocket, as a browser has one. It records all that it gets."""

import asyncio
import json
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.faults.clock import Clock
from tests.faults.plan import Departure, Manner
from tests.faults.plan import Watcher as WatcherPlan
from tests.faults.proxy import make_narrow, reset
from tests.faults.record import (
    RESYNC,
    Event,
    Got,
    Kind,
    Loss,
    Opened,
    Position,
    Resynced,
    View,
)

AGAIN_AFTER_SECONDS = 0.05
# Behind what it has not read, one that leaves does not see the answer to its goodbye.
CLOSE_SECONDS = 0.5


class Watcher:
    """Watches some uploads; leaves, comes back and rests as planned.

    When the server closes the connection it comes back and says what it had.

    Args:
        addresses: of the instances, host and port by name.
        uploads: the ids of those it watches.
        is_alone: whether its user has no other tab.
    """

    def __init__(
        self,
        name: str,
        user_id: str,
        plan: WatcherPlan,
        addresses: Mapping[str, tuple[str, int]],
        uploads: Sequence[str],
        clock: Clock,
        *,
        is_alone: bool,
    ) -> None:
        self.name = name
        self.user_id = user_id
        self._plan = plan
        self._addresses = addresses
        self._where = plan.where
        self._clock = clock
        self._events: dict[str, list[Event]] = {upload: [] for upload in uploads}
        self._positions: dict[str, Position | None] = dict.fromkeys(uploads)
        self._unfinished = set(uploads)
        self._is_alone = is_alone
        self._connections = 0
        self._staying: asyncio.Task[None] | None = None
        self._connection: ClientConnection | None = None
        self._abandoned: list[ClientConnection] = []
        self._is_signed_in = asyncio.Event()
        self._departing: Departure | None = None
        self._departed = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        self._plan_is_done = False
        self.is_ready = False
        self.closes: list[int] = []
        """The codes with which the server closed connections."""
        self.strays: list[str] = []
        """Messages that it should not have got."""
        self.barriers: set[str] = set()

    @property
    def views(self) -> list[View]:
        return [
            View(self.name, upload, events, self.is_steady)
            for upload, events in self._events.items()
        ]

    @property
    def is_steady(self) -> bool:
        """Whether it never leaves nor rests, and was never cut off."""
        leaves = bool(self._plan.departures or self._plan.rests)
        return self._is_alone and not leaves and self._connections <= 1

    def was_told(self, loss: Loss) -> bool:
        """Whether it knows of a loss, or need not: it had nothing, or was not there."""
        if not self.is_steady or self._where not in loss.away:
            return True
        return all(map(loss.was_told, self.views))

    @property
    def is_done(self) -> bool:
        """Whether it has the end of all its uploads, and is there to get more."""
        return self._plan_is_done and self.is_ready and not self._unfinished

    @property
    def state(self) -> str:
        """For people."""
        words = "ready" if self.is_ready else "not ready"
        plan = "" if self._plan_is_done else ", its plan is not done"
        closes = f", closed with {self.closes}" if self.closes else ""
        return f"{words}{plan}{closes}, without the end of {sorted(self._unfinished)}"

    @property
    def joins_late(self) -> bool:
        return self._plan.joins_seconds > 0

    async def watch(self) -> None:
        """Until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as living:
                living.create_task(self._follow_plan())
                living.create_task(self._stay_connected())
        finally:
            for connection in self._abandoned:
                reset(connection.transport)

    # The plan

    async def _follow_plan(self) -> None:
        if self._plan.rests is not None:
            begins, lasts = self._plan.rests
            await self._clock.until(begins)
            self._reading.clear()
            await asyncio.sleep(lasts)
            self._reading.set()
        for departure in self._plan.departures:
            await self._clock.until(departure.at_seconds)
            if self._staying is None or self._connection is None:
                continue  # it is on its way anyway
            self._departing = departure
            self._staying.cancel()
            await self._departed.wait()
            self._departed.clear()
        self._plan_is_done = True

    # Connections

    async def _stay_connected(self) -> None:
        if self.joins_late:
            await self._clock.until(self._plan.joins_seconds)
        hesitates = 0.0
        while True:
            self._staying = asyncio.create_task(self._stay(hesitates))
            try:
                await asyncio.wait({self._staying})
            finally:
                self._staying.cancel()
                await asyncio.wait({self._staying})
            if not self._staying.cancelled():
                self._staying.result()
            self.is_ready = False
            departure, self._departing = self._departing, None
            if departure is None:
                await asyncio.sleep(AGAIN_AFTER_SECONDS)
                continue
            self._departed.set()
            self._where, hesitates = departure.where, departure.hesitates_seconds
            if not departure.resumes:
                self._positions = dict.fromkeys(self._positions)
            await asyncio.sleep(departure.pause_seconds)

    async def _stay(self, hesitates: float) -> None:
        """One connection, from its opening to its end."""
        with suppress(OSError, ConnectionClosed, InvalidHandshake, TimeoutError):
            connection = await _connected(self._addresses[self._where])
            self._connection = connection
            self._connections += 1
            for upload, since in self._positions.items():
                if since is None:
                    self._events[upload].append(Opened(self._clock.now, self._where, None))
                    self._unfinished.add(upload)
            introducing = asyncio.create_task(self._introduce(connection, hesitates))
            try:
                while True:
                    await self._reading.wait()
                    self._receive(json.loads(await connection.recv()))
            except ConnectionClosed as closed:
                if closed.rcvd is not None:
                    self.closes.append(closed.rcvd.code)
            finally:
                self._connection = None
                introducing.cancel()
                await self._leave(connection)
                await asyncio.wait({introducing})
                if not introducing.cancelled():
                    introducing.result()

    async def _leave(self, connection: ClientConnection) -> None:
        manner = self._departing.manner if self._departing is not None else Manner.POLITE
        match manner:
            case Manner.POLITE:
                await connection.close()
            case Manner.RESET:
                reset(connection.transport)
            case Manner.SILENT:
                self._abandoned.append(connection)

    async def _introduce(self, connection: ClientConnection, hesitates: float) -> None:
        self._is_signed_in.clear()
        with suppress(ConnectionClosed):
            await connection.send(json.dumps({"type": "auth", "token": self.user_id}))
            await self._is_signed_in.wait()
            # What its user watches may come already, for the sake of another connection.
            await asyncio.sleep(hesitates)
            for upload in self._events:
                await connection.send(json.dumps(self._subscription(upload)))
            # Answered in turn, so then all have been heard.
            await connection.send(json.dumps({"action": "ping"}))

    def _subscription(self, upload: str) -> dict[str, Any]:
        since = self._positions[upload]
        told = since and {"epoch": since.epoch, "offset": since.offset}
        if since is not None:
            # Noted before it is sent: whatever comes from now on comes after it.
            self._events[upload].append(Opened(self._clock.now, self._where, since))
        return {"action": "subscribe_upload", "upload_id": upload, "since": told}

    def _receive(self, message: dict[str, Any]) -> None:
        match message:
            case {"action": "auth_success"}:
                self._is_signed_in.set()
            case {"action": "pong"}:
                self.is_ready = True
            case {"action": "barrier", "name": name}:
                self.barriers.add(name)
            case {"action": action, **rest}:
                upload = rest.get("upload_id") or rest.get("payload", {}).get("upload_id")
                if upload in self._events:
                    self._record(upload, action, message)
                else:
                    self.strays.append(json.dumps(message))

    def _record(self, upload: str, action: str, message: dict[str, Any]) -> None:
        if action == RESYNC:
            self._events[upload].append(Resynced(self._clock.now))
            self._positions[upload] = None
            self._unfinished.add(upload)
            return
        got = Got.of(self._clock.now, message)
        self._events[upload].append(got)
        self._positions[upload] = got.position
        if Kind(action).is_final:
            self._unfinished.discard(upload)


async def _connected(address: tuple[str, int]) -> ClientConnection:
    connecting = socket.socket()
    try:
        connecting.setblocking(False)
        make_narrow(connecting)
        await asyncio.get_running_loop().sock_connect(connecting, address)
        return await connect(
            f"ws://{address[0]}:{address[1]}/ws",
            sock=connecting,
            proxy=None,
            compression=None,
            ping_interval=None,
            max_queue=4,
            close_timeout=CLOSE_SECONDS,
        )
    except BaseException:
        connecting.close()
        raise
