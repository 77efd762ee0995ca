"""Memory stays within bounds while a client stalls, or while the event loop is behind."""

import pytest

from tests.interpreters import output_of

# A lane may hold 4 MiB by default; what else grows is buffers, and the allocators' ways.
BOUND_MIB = 24
# Of 400 MB that are published: 16 MiB may wait there, the embedded broker holds some batches for
# the listener, and the lane has what was read at once.
OUTRUN_BOUND_MIB = 128


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("overflow", ["drop-oldest", "coalesce", "disconnect"])
def test_a_stalled_client_costs_no_more_than_its_lane(overflow: str, loop: str) -> None:
    """100,000 messages, together 100 MB, and one connection takes none of them."""
    # The connection is given up under "disconnect", and under "coalesce" when only notes wait.
    grown, connected = _run(overflow, loop)
    assert int(grown) < BOUND_MIB
    assert connected == ("['healthy', 'stalled']" if overflow == "drop-oldest" else "['healthy']")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_event_loop_that_is_behind_costs_no_more_than_the_buffers(loop: str) -> None:
    """What waits to be published has a limit, and the listener does not read ahead of the loop."""
    grown, connected = _run("outrun", loop)
    assert int(grown) < OUTRUN_BOUND_MIB
    assert connected == "['healthy']"


def _run(policy: str, loop: str) -> list[str]:
    return output_of("stalled_memory", policy, loop)
