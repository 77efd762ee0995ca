"""A worker runs one job after another, each with an event loop of its own, for weeks."""

import sys

import pytest

from tests.conftest import Broker
from tests.interpreters import output_of


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "kind", ["shared", "tracked", "tracked without a loop", "closed", "let go"]
)
def test_a_thousand_jobs_leave_nothing_behind(broker: Broker, kind: str) -> None:
    (line,) = output_of("worker_jobs", broker.url, kind)
    threads, descriptors, mib = line.split()
    # None per job, that is; one or two may still be on their way out.
    assert int(threads) <= 2 and int(descriptors) <= 8, line
    assert float(mib) < 4, line
