"""Start and stop, subclasses, and the figures."""

import asyncio
import logging
import subprocess
import sys
import textwrap
import weakref
from typing import Any
from unittest.mock import patch

import pytest

import fanwire
from tests import pubsub
from tests.interpreters import TIMEOUT_SECONDS, environment
from tests.outages import troubles
from tests.pubsub import (
    Backend,
    Gated,
    Provider,
    PubSub,
    Recorder,
    brokered_kinds,
    every_kind,
    figures,
    served_kinds,
    settled,
    topic_kinds,
    until_figures,
)
from tests.test_pubsub_protocol import CLASSES, ignore

backend = pubsub.backend


@every_kind
async def test_start_and_stop_again_and_again(backend: Backend) -> None:
    instance, recorder = backend.make(), Recorder()
    await instance.stop()
    for n in range(3):
        for _ in range(2):
            await instance.start()
        await instance.subscribe_topic("s", f"t{n}", recorder)
        for m in range(n + 1):
            await instance.broadcast(f"t{m}", [n, m])
        await settled(instance, "s")
        for _ in range(2):
            await instance.stop()
    # Subscriptions outlive a stop.
    assert recorder.messages == [[n, m] for n in range(3) for m in range(n + 1)]
    assert figures(instance)["subscriptions"] == 3


@brokered_kinds
async def test_what_was_wanted_before_the_start(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    instance, recorder = backend.make(), Recorder()
    for n in range(5):
        await instance.subscribe_topic("s", f"t{n}", recorder)
    await instance.unsubscribe_topic("s", "t0")
    assert len(troubles(caplog)) == 1
    assert "start" in troubles(caplog)[0]
    await instance.start()
    other = await backend.started()
    for n in range(5):
        await other.broadcast(f"t{n}", n)
    await settled(instance, "s")
    assert recorder.messages == [1, 2, 3, 4]


@served_kinds
async def test_what_is_wanted_after_a_stop(backend: Backend) -> None:
    instance, recorder = await backend.started(), Recorder()
    await instance.subscribe_topic("s", "before", recorder)
    await instance.stop()
    await instance.subscribe_topic("s", "between", recorder)
    await instance.start()
    for topic in ("before", "between"):
        await instance.broadcast(topic, topic)
    await settled(instance, "s")
    assert recorder.messages == ["before", "between"]


@served_kinds
async def test_handlers_finish_what_they_began_when_it_stops(backend: Backend) -> None:
    instance, gated = await backend.started(), Gated()
    await instance.subscribe_topic("s", "t", gated)
    await instance.broadcast("t", 1)
    await gated.entered()
    await instance.stop()
    gated.release()
    assert await gated.received(1) == [1]
    assert gated.cancelled == 0


@topic_kinds
async def test_running(backend: Backend) -> None:
    instance: Any = backend.make()
    seen = [instance.running]
    for operation in (instance.start, instance.start, instance.stop, instance.stop):
        await operation()
        seen.append(instance.running)
    assert seen == [False, True, True, False, False]


async def test_memory_needs_no_start_and_a_stop_changes_nothing() -> None:
    instance, recorder = fanwire.MemoryPubSub(), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    await instance.broadcast("t", 1)
    await instance.stop()
    await instance.broadcast("t", 2)
    assert await recorder.received(2) == [1, 2]


# An application may extend and patch it


@every_kind
async def test_attributes_weak_references_and_patches(backend: Backend) -> None:
    instance = backend.make()
    instance.owner = "app"  # type: ignore[union-attr]
    assert vars(instance) == {"owner": "app"}
    assert weakref.ref(instance)() is instance
    said: list[Any] = []

    async def broadcast(topic: str, message: Any) -> None:
        said.append(message)

    with patch.object(instance, "broadcast", broadcast):
        await instance.broadcast("t", 1)
    assert said == [1]


@pytest.mark.parametrize("cls", CLASSES)
async def test_a_subclass_with_its_own_constructor(cls: Any) -> None:
    class Counting(cls):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            super().__init__(ordering="concurrent")
            self.name = name
            self.broadcasts = 0

        async def broadcast(self, topic: str, message: Any, **options: Any) -> None:
            self.broadcasts += 1

    instance = Counting("mine")
    await instance.broadcast("t", 1)
    assert (instance.name, instance.broadcasts) == ("mine", 1)
    assert isinstance(instance, Provider)


@pytest.mark.parametrize("cls", CLASSES)
async def test_a_subclass_that_forgot_its_base(cls: Any) -> None:
    class Forgetful(cls):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

    with pytest.raises(RuntimeError, match="__init__"):
        await Forgetful().subscribe_topic("s", "t", ignore)


MADE_WHILE_COLLECTING = textwrap.dedent(
    """
    import gc, sys
    import fanwire

    cls = getattr(fanwire, sys.argv[1])
    arguments = ["memory://"] if cls is fanwire.UploadProgressPublisher else []
    kept = []  # alive, so that what they need is not to be had from a free list
    for n in range(2_000):
        gc.set_threshold(n % 19 + 1)
        kept.append([cls(*arguments)])
    print(len(kept))
    """
)


@pytest.mark.parametrize("cls", [*CLASSES, fanwire.ConnectionManager])
def test_made_while_the_garbage_collector_runs(cls: Any) -> None:
    """An object is there for the collector before its constructor has begun."""
    done = subprocess.run(  # noqa: PLW1510 (the status is looked at below)
        [sys.executable, "-c", MADE_WHILE_COLLECTING, cls.__name__],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env=environment(),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2000\n", "")


# Figures

OF_SESSIONS = ["sessions", "subscribed_topics", "subscriptions", "delivered", "handler_failed"]
OF_SESSIONS += ["dropped", "queued_messages", "queued_bytes", "wakeups"]
OF_THE_BROKER = ["received", "unwatched", "not_json", "published", "publish_failed"]
OF_THE_BROKER += ["outages", "reconnects", "listening"]


@every_kind
async def test_figures_of_one_that_did_nothing(backend: Backend) -> None:
    stats = figures(backend.make())
    names = OF_SESSIONS if backend.kind.startswith("memory") else OF_SESSIONS + OF_THE_BROKER
    assert {int(stats[name]) for name in names} == {0}
    empty = {"count": 0, "p50": 0.0, "p99": 0.0, "buckets": {}}
    assert stats["delivery_latency_seconds"] == empty


@brokered_kinds
async def test_figures_of_the_broker(backend: Backend) -> None:
    here, there = await backend.started(), await backend.started()
    recorder = Recorder()
    await here.subscribe_topic("s1", "t", recorder)
    await here.subscribe_topic("s2", "t", recorder)
    for n in range(5):
        await there.broadcast("t", n)
    await recorder.received(10)
    await until_figures(here, received=5, delivered=10, published=0, listening=True)
    await until_figures(there, published=5, received=0, publish_failed=0)
    assert figures(here)["delivery_latency_seconds"]["count"] == 10
    assert 1 <= figures(here)["wakeups"] <= 5


@every_kind
async def test_figures_of_what_waits(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="fanwire")
    instance, gated = await backend.started(), Gated()
    await instance.subscribe_topic("s", "t", gated)
    await instance.broadcast("t", "in hand")
    await gated.entered()
    for _ in range(3):
        await instance.broadcast("t", "xx")
    size = 0 if backend.kind == "memory" else len('"xx"')
    await until_figures(instance, queued_messages=3, queued_bytes=3 * size, delivered=1)
    gated.release()
    await gated.received(4)
    await until_figures(instance, queued_messages=0, queued_bytes=0, delivered=4, dropped=0)
    assert troubles(caplog) == []


@every_kind
async def test_figures_can_be_read_from_any_thread(backend: Backend) -> None:
    instance, recorder = await backend.started(), Recorder()
    await instance.subscribe_topic("s", "t", recorder)

    def read() -> list[int]:
        return [figures(instance)["delivered"] for _ in range(200)]

    reading = [asyncio.create_task(asyncio.to_thread(read)) for _ in range(3)]
    for n in range(100):
        await instance.broadcast("t", n)
    for seen in await asyncio.gather(*reading):
        assert seen == sorted(seen) and seen[-1] <= 100
    await until_figures(instance, delivered=100)


def instance_of(cls: Any) -> PubSub:
    made: PubSub = cls("memory://") if cls is not fanwire.MemoryPubSub else cls()
    return made


@pytest.mark.parametrize("cls", CLASSES)
def test_outside_a_loop(cls: Any) -> None:
    """The coroutines may be made anywhere; they are run where a loop is."""
    instance, recorder = instance_of(cls), Recorder()

    async def main() -> None:
        await recorder.received(1)
        await instance.stop()

    asyncio.run(instance.broadcast("t", "to nobody"))
    with asyncio.Runner() as runner:
        runner.run(instance.start())
        runner.run(instance.subscribe_topic("s", "t", recorder))
        runner.run(instance.broadcast("t", 1))
        runner.run(main())
    assert recorder.messages == [1]
