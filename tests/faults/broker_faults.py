"""The faults of the broker: what a redis-server does to those who use it, or its operator."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

from tests.deadlines import until
from tests.faults.clock import Clock
from tests.faults.faults import INSTANCES, Fault, FaultKind
from tests.faults.proxy import Door, Towards
from tests.faults.record import Ledger, Loss, Position
from tests.redis_server import RedisServer

OUTPUT_BUFFER_LIMIT = "client-output-buffer-limit"
NOBODY_LISTENS_THERE = "1"
FLUSH_AGAIN_AFTER_SECONDS = 0.005
# What is set, and how it is set back.
_NO_WRITES = {
    FaultKind.OUT_OF_MEMORY: ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
    FaultKind.READ_ONLY: (f"REPLICAOF 127.0.0.1 {NOBODY_LISTENS_THERE}", "REPLICAOF NO ONE"),
    FaultKind.NO_REPLICAS: (
        "CONFIG SET min-replicas-to-write 1",
        "CONFIG SET min-replicas-to-write 0",
    ),
}
_PERMISSIONS = {
    FaultKind.NO_CHANNELS: ("resetchannels", "&upload:* &user:* &fanwire:probe:*"),
    FaultKind.NO_SCRIPTS: ("-evalsha", "+evalsha"),
    FaultKind.NO_LISTENING: ("-psubscribe", "+psubscribe"),
    FaultKind.NO_USER: ("off", "on"),
}


class BrokerFaults:
    """Makes them happen in one run, and notes what they did.

    Args:
        uploads: the ids of those that are published.
        burst: publishes much at once.
    """

    def __init__(
        self,
        server: RedisServer,
        doors: dict[str, Door],
        uploads: Sequence[str],
        burst: Callable[[], Awaitable[None]],
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._server = server
        self._doors = doors
        self._uploads = uploads
        self._burst = burst
        self._ledger = ledger
        self._clock = clock
        self.effects: Counter[str] = Counter()
        server.client.config_resetstat()

    async def inject(self, fault: Fault) -> int:
        """Returns when it is over. How often it happened."""
        server = self._server
        match fault.kind:
            case FaultKind.KILL_LISTENERS:
                return int(server.client.client_kill_filter(_type="pubsub"))
            case FaultKind.KILL_OTHERS:
                return int(server.client.client_kill_filter(_type="normal", skipme=True))
            case FaultKind.OUTPUT_BUFFER:
                return await self._fill_output_buffers(fault)
            case FaultKind.SCRIPT_FLUSHES:
                return await self._flush_scripts(fault)
            case FaultKind.SCRIPT_FLUSH:
                server.client.script_flush()
            case FaultKind.RESTART:
                await self._restart(fault)
            case FaultKind.FLUSH_ALL:
                self._lose(self._uploads, away=())
                server.client.flushall()
            case _ if fault.kind.listeners_are_away:
                await self._lose_while_away(fault)
            case _:
                await self._for_a_while(fault)
        return 1

    async def _for_a_while(self, fault: Fault) -> None:
        begin, end = self._switch(fault.kind)
        began = self._clock.now
        begin()
        try:
            await asyncio.sleep(fault.lasts_seconds)
        finally:
            end()
            if fault.kind in (FaultKind.NO_SCRIPTS, FaultKind.NO_USER):
                self._ledger.unreadable.append((began, self._clock.now))
            self._ledger.uses_up_offsets |= fault.kind is FaultKind.NO_CHANNELS

    def _switch(self, kind: FaultKind) -> tuple[Callable[[], None], Callable[[], None]]:
        """What begins it, and what ends it."""
        server = self._server
        if kind is FaultKind.PAUSE:
            return server.pause, server.resume
        if kind in _NO_WRITES:
            refuse, take = _NO_WRITES[kind]
            return partial(self._tell, refuse), partial(self._tell, take)
        revoked, granted = _PERMISSIONS[kind]

        def revoke() -> None:
            self._tell(f"ACL SETUSER {server.acl_user} {revoked}")
            # Connections keep what they have until they are made anew.
            if kind is FaultKind.NO_LISTENING:
                server.drop_listeners()
            elif kind is FaultKind.NO_USER:
                server.drop_clients()

        return revoke, partial(self._tell, f"ACL SETUSER {server.acl_user} {granted}")

    def count_errors(self) -> None:
        """Adds what the server has refused since it was started, or since the run began."""
        for name, stat in self._server.client.info("errorstats").items():
            code = name.removeprefix("errorstat_")
            self.effects[code] += int(stat["count"])

    def _tell(self, command: str) -> None:
        self._server.client.execute_command(*command.split())  # type: ignore[no-untyped-call]

    # What it has is lost

    def _lose(self, uploads: Iterable[str], away: Iterable[str]) -> None:
        self.effects["histories lost"] += sum(
            bool(self._server.client.exists(_key(upload, "meta"))) for upload in uploads
        )
        self._ledger.losses.append(Loss(self._clock.now, frozenset(uploads), frozenset(away)))
        self._cut_what_is_late()

    def _cut_what_is_late(self) -> None:
        """What was published before and arrives after nobody could tell from what is new."""
        for door in self._doors.values():
            for passage in door.passages:
                if passage.is_late:
                    passage.cut(reset=True)

    async def _restart(self, fault: Fault) -> None:
        self._lose(self._uploads, away=INSTANCES)
        self.count_errors()
        await asyncio.to_thread(self._server.kill)
        await asyncio.sleep(fault.lasts_seconds)
        await asyncio.to_thread(self._server.start)

    async def _lose_while_away(self, fault: Fault) -> None:
        chance = random.Random(fault.chance)
        away = INSTANCES if fault.every else (chance.choice(INSTANCES),)
        doors = [self._doors[name] for name in away]
        for door in doors:
            door.refusing = True
            for passage in door.passages:
                passage.cut(reset=True)
        try:
            await until(lambda: not any(door.passages for door in doors), "they are cut off")
            await asyncio.sleep(fault.lasts_seconds / 2)
            self._forget(fault.kind, chance, away)
            await asyncio.sleep(fault.lasts_seconds / 2)
        finally:
            for door in doors:
                door.refusing = False

    def _forget(self, kind: FaultKind, chance: random.Random, away: Iterable[str]) -> None:
        client = self._server.client
        some = chance.sample(self._uploads, chance.randint(1, len(self._uploads)))
        match kind:
            case FaultKind.FLUSH_AWAY:
                self._lose(self._uploads, away)
                client.flushall()
            case FaultKind.DELETE_AWAY:
                self._lose(some, away)
                parts = chance.choice((("meta",), ("meta", "log", "keys")))
                client.delete(*(_key(upload, part) for upload in some for part in parts))
            case _:
                for upload in some:
                    self._delete_log(upload)

    def _delete_log(self, upload: str) -> None:
        with self._server.client.pipeline(transaction=True) as together:
            together.hgetall(_key(upload, "meta"))
            together.delete(_key(upload, "log"))
            meta, deleted = together.execute()
        if deleted:
            self.effects["logs lost"] += 1
            epoch = meta[b"e"]
            self._ledger.lost_logs[upload].append(Position(epoch.decode(), int(meta[epoch])))

    # Others

    async def _flush_scripts(self, fault: Fault) -> int:
        end = self._clock.now + fault.lasts_seconds
        times = 0
        while self._clock.now < end:
            self._server.client.script_flush()
            times += 1
            await asyncio.sleep(FLUSH_AGAIN_AFTER_SECONDS)
        return times

    async def _fill_output_buffers(self, fault: Fault) -> int:
        """The listeners do not read while much is published, and the server gives them up."""
        client = self._server.client
        usual = str(client.config_get(OUTPUT_BUFFER_LIMIT)[OUTPUT_BUFFER_LIMIT])
        listeners = self._server.listeners()
        client.config_set(OUTPUT_BUFFER_LIMIT, "pubsub 32kb 0 0")
        stalled = [passage for name in INSTANCES for passage in self._doors[name].passages]
        for passage in stalled:
            passage.stall((Towards.CLIENT,))
        try:
            await self._burst()
            await asyncio.sleep(fault.lasts_seconds)
        finally:
            for passage in stalled:
                passage.release()
            client.config_set(OUTPUT_BUFFER_LIMIT, usual)
        return len(listeners - self._server.listeners())


def _key(upload: str, part: str) -> str:
    """As docs/recovery.md has them."""
    return f"fanwire:{{{upload}}}:{part}"
