"""The short form of the fault suite; the long one is ``make test-faults``. See ``tests/faults``."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from tests.faults.faults import FaultKind
from tests.faults.plan import HISTORY_SIZES, Plan, Writing
from tests.faults.run import run
from tests.faults.tally import Tally
from tests.faults.world import World

# Few that have every kind of fault, and both sizes of a history.
SEEDS = (7, 10, 11, 69, 87, 102, 108)
# What shows that a fault did something, besides its being counted.
BITES = {
    FaultKind.THROTTLE: "bytes throttled",
    FaultKind.SCRIPT_FLUSHES: "NOSCRIPT",
    FaultKind.FLUSH_AWAY: "histories lost",
    FaultKind.DELETE_AWAY: "histories lost",
    FaultKind.DELETE_LOGS_AWAY: "logs lost",
    FaultKind.OUT_OF_MEMORY: "OOM",
    FaultKind.READ_ONLY: "READONLY",
    FaultKind.NO_REPLICAS: "NOREPLICAS",
    FaultKind.NO_SCRIPTS: "NOPERM",
    FaultKind.NO_LISTENING: "NOPERM",
    FaultKind.NO_USER: "WRONGPASS",
    FaultKind.BLOCK: "received while a loop stood still",
}
# How often a plan is run at most, until so much is delivered: a busy machine coalesces more.
ATTEMPTS = 4
# A run takes about five seconds; one that waits in vain for what is lost takes longer.
TIMEOUT_SECONDS = 150

Worlds = Callable[[int], Awaitable[World]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worlds() -> AsyncIterator[Worlds]:
    """One for each size of the history, made when it is needed."""
    made: dict[int, World] = {}
    async with AsyncExitStack() as stack:

        async def world(history_size: int) -> World:
            if history_size not in made or made[history_size].is_broken:
                created = World.created(history_size)
                made[history_size] = await stack.enter_async_context(created)
            return made[history_size]

        yield world


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.timeout(TIMEOUT_SECONDS)
@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_is_lost_or_it_is_told(worlds: Worlds, seed: int) -> None:
    plan = Plan.drawn(seed)
    kinds = {fault.kind for fault in plan.faults}
    bites = {what for kind, what in BITES.items() if kind in kinds}
    for _ in range(ATTEMPTS):
        outcome = await run(await worlds(plan.history_size), plan)
        assert not outcome.failed, outcome.report()
        # Something happened, or the verdict would be about nothing.
        assert outcome.injected.total() > 0
        assert outcome.ledger.accepted > 200
        assert {what for what in bites if not outcome.effects[what]} == set()
        assert outcome.verdict.delivered > 500
        if outcome.verdict.delivered > 2_000:
            return
    assert outcome.verdict.delivered > 2_000


@pytest.mark.timeout(TIMEOUT_SECONDS)
async def test_the_same_over_memory() -> None:
    plan = Plan.drawn_for_memory(3)
    async with World.created(plan.history_size, in_memory=True) as world:
        outcome = await run(world, plan)
    assert not outcome.failed, outcome.report()
    assert outcome.effects["received while a loop stood still"] > 0
    assert outcome.verdict.delivered > 2_000


def test_the_short_form_has_every_kind_of_fault() -> None:
    plans = [Plan.drawn(seed) for seed in SEEDS]
    assert {fault.kind for plan in plans for fault in plan.faults} == set(FaultKind)
    assert {plan.history_size for plan in plans} == set(HISTORY_SIZES)


def test_a_plan_is_drawn_from_its_seed_alone() -> None:
    assert Plan.drawn(7) == Plan.drawn(7)
    assert Plan.drawn(7).faults != Plan.drawn(8).faults


def test_further_faults_change_nothing_else_of_a_seed() -> None:
    for seed in range(20):
        plan, before = Plan.drawn(seed), Plan.drawn(seed, further=False)
        assert plan.watchers == before.watchers
        assert [upload.steps for upload in plan.uploads] == [u.steps for u in before.uploads]
        assert set(before.faults) <= set(plan.faults)
    # The first of them, as it has always been.
    assert [fault.kind for fault in Plan.drawn(0, further=False).faults] == [
        FaultKind.REFUSE,
        FaultKind.STALL_FROM_BROKER,
        FaultKind.STALL_FROM_BROKER,
        FaultKind.STALL_BOTH,
        FaultKind.STALL_TO_BROKER,
        FaultKind.KILL_LISTENERS,
    ]


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_is_what_the_issue_asks_for(seed: int) -> None:
    plan = Plan.drawn(seed)
    assert (len(plan.uploads), len(plan.watchers)) == (8, 40)
    assert {watcher.where for watcher in plan.watchers} == {"first", "second"}
    assert any(watcher.departures for watcher in plan.watchers)
    assert any(not watcher.departures and not watcher.rests for watcher in plan.watchers)
    assert any(watcher.rests for watcher in plan.watchers)
    assert {step.kind.is_final for upload in plan.uploads for step in upload.steps} == {False}
    assert Writing.STRICT in plan.writers and plan.faults


def test_a_tally_is_printed_as_a_table() -> None:
    tally = Tally()
    assert "| **lost silently**" in tally.table()
    assert tally.lost == 0
