"""The ends of blocking jobs while the broker is away: it is waited for, but not by each anew."""

import pytest

import fanwire
from tests.deadlines import until_blocking
from tests.redis_server import RedisServer
from tests.tracking import Clock

LONG = 20.0


class Patient(fanwire.UploadProgressPublisher):
    """Notes how long it is to wait. Of a wait that is in vain only the clock takes notice."""

    def __init__(self, url: str, clock: Clock) -> None:
        super().__init__(url, publish_timeout_seconds=LONG)
        self.clock = clock
        self.waited: list[float] = []
        self.healthy = True

    def flush(self, timeout_seconds: float = 2.0) -> bool:
        self.waited.append(timeout_seconds)
        if self.healthy:
            return super().flush(timeout_seconds)
        self.clock.now += timeout_seconds
        return super().flush(0)


def job(publisher: fanwire.UploadProgressPublisher, seconds: float) -> None:
    with publisher.track("u1", exit_timeout_seconds=seconds) as tracker:
        tracker.advance()


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_broker_that_is_away_is_waited_for_once(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    clock = Clock()
    monkeypatch.setattr("fanwire._patience.monotonic", clock)
    patient = Patient(own_redis.url, clock)
    assert patient.publish_nowait("u1", 1) and patient.flush(LONG)
    waited = patient.waited
    waited.clear()
    patient.healthy = False
    getattr(own_redis, how)()
    if how == "kill":
        # What is under way when the connection breaks may have come: it is not waited for.
        patient.publish_nowait("u1", 2)
        until_blocking(lambda: patient.stats()["outages"], "it is known that the broker is away")
    try:
        job(patient, 0.05)
        assert len(waited) == 1 and 0 < waited[0] <= 0.05
        for _ in range(3):
            job(patient, 0.05)
        assert len(waited) == 1
        # Who would wait longer waits for the rest.
        job(patient, LONG)
        assert len(waited) == 2 and LONG - 1 < waited[1] < LONG
        assert patient.stats()["published"] == 1
    finally:
        own_redis.start() if how == "kill" else own_redis.resume()
    until_blocking(lambda: not patient.stats()["pending_messages"], "what waited is out")
    waited.clear()
    patient.healthy = True
    job(patient, LONG)
    assert len(waited) == 1 and waited[0] > LONG - 1, "there is all the time again"
