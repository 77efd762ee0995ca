"""Fixtures for the tests of an app. pytest finds this plugin where fanwire is installed.

The fixtures are ordinary functions: they need no plugin for asyncio, and a test of any kind can ask
for them. What they need is imported when one of them is asked for.
"""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fanwire import MemoryPubSub
    from fanwire.testing import RecordingPubSub

__all__ = ["fanwire_memory", "fanwire_recording", "fanwire_redis"]


@pytest.fixture
def fanwire_memory() -> "MemoryPubSub":
    """A fanwire.MemoryPubSub of this test's own, ready for use: it has nothing to start."""
    from fanwire import MemoryPubSub  # noqa: PLC0415 - see above

    return MemoryPubSub()


@pytest.fixture
def fanwire_recording() -> "RecordingPubSub":
    """A fanwire.testing.RecordingPubSub: records what the app does, and runs handlers at once."""
    from fanwire.testing import RecordingPubSub  # noqa: PLC0415 - see above

    return RecordingPubSub()


@pytest.fixture
def fanwire_redis() -> Iterator[str]:
    """The URL of a redis-server of this test's own; the test is skipped where there is none."""
    from fanwire.testing.redis import PROGRAM, PrivateRedis  # noqa: PLC0415 - see above

    program = shutil.which(PROGRAM)
    if program is None:
        pytest.skip(f"the fixture fanwire_redis needs {PROGRAM}, which is not on the PATH")
    with PrivateRedis(program) as server:
        yield server.url
