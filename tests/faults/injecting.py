"""Makes the faults of a plan happen, and counts them."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from tests.faults.broker_faults import BrokerFaults
from tests.faults.clock import Clock
from tests.faults.faults import Fault, FaultKind
from tests.faults.proxy import BOTH, Door, Passage, Towards
from tests.faults.world import World

SLOWEST_BYTES_PER_SECOND = 20_000
FASTEST_BYTES_PER_SECOND = 200_000
# So many times as long, until something came that a throttle or a blocked loop could hold up.
AGAIN_AT_MOST = 20
_STALLED = {
    FaultKind.STALL_BOTH: BOTH,
    FaultKind.STALL_TO_BROKER: (Towards.BROKER,),
    FaultKind.STALL_FROM_BROKER: (Towards.CLIENT,),
}


class Injector:
    """Injects the faults of one run.

    Args:
        broker: None for one without faults.
        told: waits until those whose listener was away while a history was lost have been told.
        safe: to be set when the broker will not be made to forget any more.
        permitted: to be set when it will not refuse anything for good any more.
        unblocked: to be set when no event loop will stand still any more.
    """

    def __init__(
        self,
        world: World,
        faults: Sequence[Fault],
        broker: BrokerFaults | None,
        told: Callable[[], Awaitable[None]],
        safe: asyncio.Event,
        permitted: asyncio.Event,
        unblocked: asyncio.Event,
    ) -> None:
        self._world = world
        self._faults = faults
        self._broker = broker
        self._told = told
        # One fault of the broker at a time: what a server that stands still is told, waits.
        self._turn = asyncio.Lock()
        self._truncated: list[Passage] = []
        self._throttled: set[Passage] = set()
        self._to_come = {
            safe: {fault for fault in faults if fault.kind.loses_history},
            permitted: {fault for fault in faults if fault.kind.is_of_permissions},
            unblocked: {fault for fault in faults if fault.kind is FaultKind.BLOCK},
        }
        self.injected: Counter[FaultKind] = Counter()
        self.effects: Counter[str] = Counter()
        """What shows that faults did something."""

    async def inject(self, clock: Clock) -> None:
        """Returns when all faults are over."""
        self._tell_what_is_over()
        try:
            async with asyncio.TaskGroup() as injecting:
                for fault in self._faults:
                    injecting.create_task(self._at_its_time(fault, clock))
        finally:
            self._world.release()
            self.injected[FaultKind.TRUNCATE] += sum(
                passage.was_truncated for passage in self._truncated
            )
            self.effects["bytes throttled"] += sum(p.slowed_bytes for p in self._throttled)
        if self._broker is not None:
            self._broker.count_errors()
            self.effects += self._broker.effects

    async def _at_its_time(self, fault: Fault, clock: Clock) -> None:
        await clock.until(fault.at_seconds)
        if fault.door is None:
            async with self._turn:
                await self._of_broker(fault)
        elif fault.kind is FaultKind.BLOCK:
            for _ in range(AGAIN_AT_MOST):
                received = await self._world.instances[fault.door].block(fault.lasts_seconds)
                if received:
                    break
            self.effects["received while a loop stood still"] += received
            self.injected[fault.kind] += 1
            self._is_over(fault)
        else:
            self.injected[fault.kind] += await self._network(fault, self._world.doors[fault.door])

    async def _of_broker(self, fault: Fault) -> None:
        assert self._broker is not None, "a plan for another world"
        self.injected[fault.kind] += await self._broker.inject(fault)
        if fault.kind.loses_history:
            await self._told()
        self._is_over(fault)

    def _is_over(self, fault: Fault) -> None:
        for faults in self._to_come.values():
            faults.discard(fault)
        self._tell_what_is_over()

    def _tell_what_is_over(self) -> None:
        for event, faults in self._to_come.items():
            if not faults:
                event.set()

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
            case FaultKind.THROTTLE:
                rate = chance.uniform(SLOWEST_BYTES_PER_SECOND, FASTEST_BYTES_PER_SECOND)
                await self._throttle(door, hit, rate, fault.lasts_seconds)
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

    async def _throttle(
        self, door: Door, hit: Sequence[Passage], rate: float, lasts: float
    ) -> None:
        throttled: set[Passage] = set()
        for _ in range(AGAIN_AT_MOST):
            for passage in {*hit} - throttled:
                passage.throttle(rate)
                throttled.add(passage)
            await asyncio.sleep(lasts)
            if any(passage.slowed_bytes for passage in throttled):
                break
            # On a busy machine nothing came, or the connection was replaced meanwhile.
            hit = door.passages
        for passage in throttled:
            passage.throttle(None)
        self._throttled |= throttled

    async def _stall(self, fault: Fault, door: Door, hit: Sequence[Passage]) -> None:
        directions = _STALLED[fault.kind]
        if fault.every:
            door.stalled = directions  # connecting anew does not help
        for passage in hit:
            passage.stall(directions)
        await asyncio.sleep(fault.lasts_seconds)
        door.release()
