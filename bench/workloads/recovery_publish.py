"""Publishing with a history: one step at Redis numbers, keeps and publishes a message."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from contract import Row, Session
from meter import Meter
from publishing import models, one_by_one, side_by_side
from recovering import beside
from responding import own_cores

NAME = "recovery_publish"
TITLE = "recovery: publishing with a history, beside publishing without"
ROWS = (
    Row("ratio_50", "50 at a time: rate, with / without", "times", better="higher", limit=0.5),
    Row("ratio_serial", "one by one: rate, with / without", "times", better="higher", limit=0.5),
    Row("ratio_apart", "50 at a time, Redis on a core of its own", "times", better="higher"),
    Row("per_second_without", "50 at a time, without", "1/s", better="higher"),
    Row("per_second_with", "50 at a time, with", "1/s", better="higher"),
    Row("per_second_full", "50 at a time, to histories that are full", "1/s", better="higher"),
    Row("cpu_us_without", "50 at a time, without: CPU per publish", "µs"),
    Row("cpu_us_with", "50 at a time, with: CPU per publish", "µs"),
    Row("redis_us_without", "50 at a time, without: Redis's own CPU per publish", "µs"),
    Row("redis_us_with", "50 at a time, with: Redis's own CPU per publish", "µs"),
    Row("each_us_without", "one by one, without: time per publish", "µs"),
    Row("each_us_with", "one by one, with: time per publish", "µs"),
)
# As many as have messages to fill their histories, which keep 256, several times over.
FULL_UPLOADS = 8
TASKS = 50


async def run(session: Session) -> Mapping[str, float]:
    without, with_history = await _in_turns(session)
    full = await _full(session)
    async with own_cores(session.load):
        without_apart, with_apart = await _in_turns(session)
    await session.load.clear()
    return {
        "ratio_50": with_history.per_second / without.per_second,
        "ratio_serial": without.each_us / with_history.each_us,
        "ratio_apart": with_apart.per_second / without_apart.per_second,
        "per_second_full": full,
        **{f"{key}_without": figure for key, figure in without.figures().items()},
        **{f"{key}_with": figure for key, figure in with_history.figures().items()},
    }


@dataclass
class Side:
    """Publishing with a history or without, of all turns."""

    many: Meter = field(default_factory=Meter)
    one: Meter = field(default_factory=Meter)
    redis_seconds: float = 0.0
    many_count: int = 0
    one_count: int = 0

    @property
    def per_second(self) -> float:
        return self.many_count / self.many.wall_seconds

    @property
    def each_us(self) -> float:
        return self.one.wall_seconds / self.one_count * 1e6

    def figures(self) -> dict[str, float]:
        return {
            "per_second": self.per_second,
            "cpu_us": self.many.cpu_seconds / self.many_count * 1e6,
            "redis_us": self.redis_seconds / self.many_count * 1e6,
            "each_us": self.each_us,
        }


async def _in_turns(session: Session) -> tuple[Side, Side]:
    sides = {False: Side(), True: Side()}
    for number in range(session.size(4, 2)):
        # Each is the first as often as the other.
        for history in (False, True) if number % 2 else (True, False):
            await session.load.clear()
            async with beside(session, history=history) as side:
                await _publish(side, sides[history])
    return sides[False], sides[True]


async def _publish(session: Session, side: Side) -> None:
    many, one = session.size(16_000, 8_000), session.size(2_000, 1_000)
    side.one += await one_by_one(session, models(), one)
    before = await session.load.cpu_seconds()
    side.many += await side_by_side(session, models(), many, TASKS)
    side.redis_seconds += await session.load.cpu_seconds() - before
    side.many_count += many
    side.one_count += one


async def _full(session: Session) -> float:
    """Publishes a second while each message pushes an older one out."""
    count = session.size(16_000, 8_000)
    async with beside(session, history=True) as side:
        uploads = models()[:FULL_UPLOADS]
        await side_by_side(side, uploads, 256 * FULL_UPLOADS, TASKS)
        meter = await side_by_side(side, uploads, count, TASKS)
    return count / meter.wall_seconds
