"""One run, from its plan to its verdict."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.faults import history
from tests.faults.broker_faults import BrokerFaults
from tests.faults.clock import Clock
from tests.faults.faults import FaultKind
from tests.faults.injecting import Injector
from tests.faults.plan import HISTORY_SIZES, Plan
from tests.faults.publishing import Writers
from tests.faults.record import Ledger, View
from tests.faults.verdict import Verdict, judge
from tests.faults.watcher import Watcher
from tests.faults.world import World

DEADLINE_SECONDS = 30.0
POLL_SECONDS = 0.01
BARRIER_AGAIN_SECONDS = 0.2
HISTORIES_SHOWN = 3


@dataclass
class Outcome:
    plan: Plan
    seconds: float
    verdict: Verdict
    ledger: Ledger
    views: list[View]
    injected: Counter[FaultKind]
    effects: Counter[str]
    """What shows that faults did something."""
    given_up: int
    """Messages that their publisher has counted as not to be delivered."""
    published: Counter[str]
    """What the publishers counted."""
    delivered: Counter[str]
    """What the instances counted."""
    troubles: list[str]
    """What went wrong besides broken rules."""

    @property
    def failed(self) -> bool:
        return bool(self.troubles or self.verdict.violations)

    def report(self) -> str:
        """What went wrong, with the histories of the first watchers that show it."""
        violations = self.verdict.violations
        parts = [f"seed {self.plan.seed}: {len(violations)} violations", *self.troubles]
        parts += [str(violation) for violation in violations]
        shown: list[View] = []
        for violation in violations:
            if len(shown) < HISTORIES_SHOWN and violation.view not in shown:
                shown.append(violation.view)
                parts.append(history.seen(violation.view, self.ledger, violation.at))
        for upload in sorted({view.upload for view in shown}):
            parts.append(history.published(upload, self.ledger, self.views))
        parts += [str(fault) for fault in self.plan.faults]
        return "\n".join(parts)


async def run(world: World, plan: Plan) -> Outcome:
    began = time.monotonic()
    world.runs += 1
    uploads = [f"s{plan.seed}-{world.runs}-u{index}" for index in range(len(plan.uploads))]
    ledger = Ledger(
        recorded=world.history_size > 0,
        resyncs_have_reasons=not plan.refuses and plan.history_size == max(HISTORY_SIZES),
    )
    clock = Clock()
    safe, permitted, unblocked = asyncio.Event(), asyncio.Event(), asyncio.Event()
    watchers = _watchers(world, plan, uploads, clock)
    writers = Writers(plan, uploads, world.writers_url, ledger, clock, safe, permitted, unblocked)
    troubles: list[str] = []

    async def told() -> None:
        """Those whose listener was away are told, though nothing more be published."""
        if ledger.losses and ledger.recorded:
            loss = ledger.losses[-1]
            troubles.extend(
                await _all(watchers, lambda watcher: watcher.was_told(loss), "was not told")
            )

    broker = None
    if world.server is not None:
        broker = BrokerFaults(world.server, world.doors, uploads, writers.burst, ledger, clock)
    injector = Injector(world, plan.faults, broker, told, safe, permitted, unblocked)
    before = await world.figures()
    watching = [asyncio.create_task(watcher.watch()) for watcher in watchers]
    publishing = asyncio.create_task(writers.publish())
    try:
        async with _unless_broken(watching):
            early = [watcher for watcher in watchers if not watcher.joins_late]
            troubles += await _all(early, lambda watcher: watcher.is_ready, "is not connected")
            clock.start()
            await injector.inject(clock)
            troubles += await _ended(publishing)
            troubles += await _all(watchers, lambda watcher: watcher.is_done, "waits for more")
            troubles += await _pass_barrier(world, watchers)
            await writers.stop()
    finally:
        for task in (publishing, *watching):
            task.cancel()
        await asyncio.gather(publishing, *watching, return_exceptions=True)
    troubles += await world.settle()
    delivered: Counter[str] = Counter()
    if not world.is_broken:
        delivered = await world.figures()
        delivered.subtract(before)
    troubles += [f"{watcher.name} got {stray}" for watcher in watchers for stray in watcher.strays]
    troubles += ledger.complaints
    if writers.given_up and ledger.recorded and not plan.refuses:
        troubles.append(f"{writers.given_up} messages were given up without a reason")
    views = [view for watcher in watchers for view in watcher.views]
    return Outcome(
        plan=plan,
        seconds=time.monotonic() - began,
        verdict=judge(views, ledger),
        ledger=ledger,
        views=views,
        injected=injector.injected,
        effects=injector.effects,
        given_up=writers.given_up,
        published=writers.figures(),
        delivered=delivered,
        troubles=troubles,
    )


@asynccontextmanager
async def _unless_broken(watching: Sequence[asyncio.Task[None]]) -> AsyncIterator[None]:
    """Ends the block when a watcher ends, which is a fault of the suite: they go on for ever."""
    inside = asyncio.current_task()
    assert inside is not None
    broken: list[BaseException] = []

    def end(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            broken.append(error)
            inside.cancel()

    for task in watching:
        task.add_done_callback(end)
    try:
        yield
    except asyncio.CancelledError:
        if broken:
            raise RuntimeError("a watcher broke") from broken[0]
        raise


async def _all(
    watchers: Iterable[Watcher], is_so: Callable[[Watcher], bool], otherwise: str
) -> list[str]:
    """Waits until it is so of all of them. At the deadline it says of whom it is not."""
    end = time.monotonic() + DEADLINE_SECONDS
    late = list(watchers)
    while late := [watcher for watcher in late if not is_so(watcher)]:
        if time.monotonic() > end:
            return [f"{watcher.name} {otherwise}: {watcher.state}" for watcher in late]
        await asyncio.sleep(POLL_SECONDS)
    return []


async def _ended(publishing: asyncio.Task[None]) -> list[str]:
    try:
        await asyncio.wait_for(publishing, DEADLINE_SECONDS)
    except TimeoutError:
        return [f"publishing did not end within {DEADLINE_SECONDS} s of the last fault"]
    return []


async def _pass_barrier(world: World, watchers: Sequence[Watcher]) -> list[str]:
    """What is on its way to a watcher arrives before something that is published now."""
    name = f"barrier {world.runs}"
    end = time.monotonic() + DEADLINE_SECONDS
    again = 0.0
    while late := [watcher for watcher in watchers if name not in watcher.barriers]:
        if time.monotonic() > end:
            return [f"{watcher.name} hears nothing any more" for watcher in late]
        if time.monotonic() > again:
            # A barrier may be lost as long as a listener is not back.
            again = time.monotonic() + BARRIER_AGAIN_SECONDS
            for user in {watcher.user_id for watcher in late}:
                await world.tell_user(user, {"action": "barrier", "name": name})
        await asyncio.sleep(POLL_SECONDS)
    return []


def _watchers(world: World, plan: Plan, uploads: list[str], clock: Clock) -> list[Watcher]:
    addresses = {name: instance.address for name, instance in world.instances.items()}
    tabs = Counter(planned.user for planned in plan.watchers)
    return [
        Watcher(
            name=f"watcher {index}",
            user_id=f"s{plan.seed}-{world.runs}-user{planned.user}",
            plan=planned,
            addresses=addresses,
            uploads=[uploads[upload] for upload in planned.uploads],
            clock=clock,
            is_alone=tabs[planned.user] == 1,
        )
        for index, planned in enumerate(plan.watchers)
    ]
