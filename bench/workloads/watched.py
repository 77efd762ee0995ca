"""Messages for uploads with one person and one local connection each: all, or one in fifty."""

from collections.abc import Mapping

from contract import Row, Session
from firehose import measure


class Watched:
    """A firehose of which each `every`-th message is for somebody here."""

    def __init__(
        self, name: str, *, every: int, target: float, bursts: tuple[int, int], burst_messages: int
    ) -> None:
        self.NAME = name
        self.TITLE = (
            f"firehose, {100 // every} % watched: 1,000 uploads with one local connection each"
        )
        self.ROWS = (
            Row("cpu_us", "CPU per message", "µs", target=target),
            Row("per_second", "messages a second", "1/s", better="higher"),
            Row("redis_busy", "Redis busy meanwhile", "%", better="higher"),
            Row("paced_cpu_us", "CPU per message at 10,000/s", "µs"),
        )
        self._every = every
        self._bursts = bursts
        self._burst_messages = burst_messages

    async def run(self, session: Session) -> Mapping[str, float]:
        return await measure(
            session,
            every=self._every,
            bursts=session.size(*self._bursts),
            burst_messages=self._burst_messages,
            paced_messages=session.size(10_000, 5_000),
        )


# 20 messages a connection wait at most: no queue comes near its limit.
WORKLOADS = (
    Watched("watched_2", every=50, target=20.0, bursts=(4, 1), burst_messages=50_000),
    Watched("watched", every=1, target=8.0, bursts=(6, 2), burst_messages=20_000),
)
