"""Makes the faults of a plan happen, and counts them."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from tests.faults.clock import Clock
from tests.faults.plan import INSTANCES, Fault, FaultKind
from tests.faults.proxy import BOTH, Door, Passage, Towards
from tests.faults.world import World

OUTPUT_BUFFER_LIMIT = "client-output-buffer-limit"
_STALLED = {
    FaultKind.STALL_BOTH: BOTH,
    FaultKind.STALL_TO_BROKER: (Towards.BROKER,),
    FaultKind.STALL_FROM_BROKER: (Towards.CLIENT,),
}


class Injector:
    """Injects the faults of one run.

    Args:
        burst: publishes much at once.
        on_loss: called before the broker is made to forget what it has.
        safe: to be set when it will not be made to forget any more.
    """

    def __init__(
        self,
        world: World,
        faults: Sequence[Fault],
        burst: Callable[[], Awaitable[None]],
        on_loss: Callable[[], None],
        safe: asyncio.Event,
    ) -> None:
        self._world = world
        self._faults = faults
        self._burst = burst
        self._on_loss = on_loss
        # One fault of the broker at a time: what a server that stands still is told, waits.
        self._turn = asyncio.Lock()
        self._truncated: list[Passage] = []
        self._losses = sum(fault.kind.loses_history for fault in faults)
        self._safe = safe
        self.injected: Counter[FaultKind] = Counter()

    async def inject(self, clock: Clock) -> None:
        """Returns when all faults are over."""
        if not self._losses:
            self._safe.set()
        try:
            async with asyncio.TaskGroup() as injecting:
                for fault in self._faults:
                    injecting.create_task(self._at_its_time(fault, clock))
        finally:
            self._world.release()
            self.injected[FaultKind.TRUNCATE] += sum(
                passage.was_truncated for passage in self._truncated
            )

    async def _at_its_time(self, fault: Fault, clock: Clock) -> None:
        await clock.until(fault.at_seconds)
        if fault.door is not None:
            self.injected[fault.kind] += await self._network(fault, self._world.doors[fault.door])
            return
        async with self._turn:
            self.injected[fault.kind] += await self._broker(fault)
            if fault.kind.loses_history:
                self._losses -= 1
                if not self._losses:
                    self._safe.set()

    async def _network(self, fault: Fault, door: Door) -> int:
        """How many connections it hit."""
        chance = random.Random(fault.chance)
        hit = list(door.passages)
        if hit and not fault.every:
            hit = [chance.choice(hit)]
        match fault.kind:
            case FaultKind.RESET | FaultKind.FIN:
                for passage in hit:
                    passage.cut(reset=fault.kind is FaultKind.RESET)
            case FaultKind.TRUNCATE:
                for passage in hit:
                    direction = chance.choice(BOTH)
                    passage.truncate(direction, chance, reset=chance.random() < 0.5)
                self._truncated += hit
                return 0  # those that come about are counted in the end
            case FaultKind.DELAY:
                await self._delay(hit, chance.uniform(0.01, 0.1), fault.lasts_seconds)
            case FaultKind.REFUSE:
                door.refusing = True
                for passage in hit:
                    passage.cut(reset=True)
                await asyncio.sleep(fault.lasts_seconds)
                door.refusing = False
                return 1
            case _:
                await self._stall(fault, door, hit)
        return len(hit)

    async def _delay(self, hit: Sequence[Passage], each: float, lasts: float) -> None:
        for passage in hit:
            passage.delay(each)
        await asyncio.sleep(lasts)
        for passage in hit:
            passage.delay(0.0)

    async def _stall(self, fault: Fault, door: Door, hit: Sequence[Passage]) -> None:
        directions = _STALLED[fault.kind]
        if fault.every:
            door.stalled = directions  # connecting anew does not help
        for passage in hit:
            passage.stall(directions)
        await asyncio.sleep(fault.lasts_seconds)
        door.release()

    async def _broker(self, fault: Fault) -> int:
        """How often it happened."""
        server = self._world.server
        match fault.kind:
            case FaultKind.KILL_LISTENERS:
                return int(server.client.client_kill_filter(_type="pubsub"))
            case FaultKind.KILL_OTHERS:
                return int(server.client.client_kill_filter(_type="normal", skipme=True))
            case FaultKind.OUTPUT_BUFFER:
                return await self._fill_output_buffers(fault)
            case FaultKind.PAUSE:
                server.pause()
                try:
                    await asyncio.sleep(fault.lasts_seconds)
                finally:
                    server.resume()
            case FaultKind.SCRIPT_FLUSH:
                server.client.script_flush()
            case FaultKind.FLUSH_ALL:
                self._on_loss()
                self._cut_what_is_late()
                server.client.flushall()
            case _:
                self._on_loss()
                await asyncio.to_thread(server.kill)
                await asyncio.sleep(fault.lasts_seconds)
                await asyncio.to_thread(server.start)
        return 1

    def _cut_what_is_late(self) -> None:
        """What was published before and arrives after nobody could tell from what is new."""
        for door in self._world.doors.values():
            for passage in door.passages:
                if passage.is_stalled:
                    passage.cut(reset=True)

    async def _fill_output_buffers(self, fault: Fault) -> int:
        """The listeners do not read while much is published, and the server gives them up."""
        client = self._world.server.client
        usual = str(client.config_get(OUTPUT_BUFFER_LIMIT)[OUTPUT_BUFFER_LIMIT])
        listeners = self._world.server.listeners()
        client.config_set(OUTPUT_BUFFER_LIMIT, "pubsub 32kb 0 0")
        stalled = [passage for name in INSTANCES for passage in self._world.doors[name].passages]
        for passage in stalled:
            passage.stall((Towards.CLIENT,))
        try:
            await self._burst()
            await asyncio.sleep(fault.lasts_seconds)
        finally:
            for passage in stalled:
                passage.release()
            client.config_set(OUTPUT_BUFFER_LIMIT, usual)
        return len(listeners - self._world.server.listeners())
