"""What the broker sees: one subscription per topic and process, taken in time, and given back."""

import asyncio
import gc
import random
import weakref
from typing import Any

import pytest

import fanwire
from tests import pubsub
from tests.deadlines import until
from tests.pubsub import (
    Backend,
    Gated,
    PubSub,
    Recorder,
    brokered_kinds,
    every_kind,
    figures,
    redis_kinds,
    served_kinds,
    settled,
    until_figures,
)
from tests.redis_server import RedisServer

backend = pubsub.backend


def server_of(backend: Backend) -> RedisServer:
    """PostgreSQL does not tell who listens to what."""
    assert isinstance(backend.server, RedisServer)
    return backend.server


def subscribers(backend: Backend, *topics: str) -> list[int]:
    """How many connections the broker has for each topic."""
    channels = [backend.prefix + topic for topic in topics]
    return [int(count) for _, count in server_of(backend).client.pubsub_numsub(*channels)]


def subscribed_channels(backend: Backend) -> set[str]:
    channels: list[Any] = server_of(backend).client.pubsub_channels()
    names = {channel.decode() for channel in channels}
    return {name for name in names if name.startswith(backend.prefix)}


async def nothing_is_subscribed(backend: Backend) -> None:
    """Returns when the broker has no channel of a topic left, as far as it tells."""
    if isinstance(backend.server, RedisServer):
        await until(lambda: subscribed_channels(backend) == set())


def commands(backend: Backend, *names: str) -> int:
    """How often the server was given these commands since it started."""
    statistics: dict[str, dict[str, Any]] = server_of(backend).client.info("commandstats")
    return sum(int(statistics.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in names)


async def ignore(topic: str, message: Any) -> None:
    """A handler of whom nothing is expected."""


# One per topic


@redis_kinds
async def test_one_subscription_for_a_thousand_sessions(backend: Backend) -> None:
    instance, recorders = await backend.started(), [Recorder(f"s{n}") for n in range(1_000)]
    before = commands(backend, "subscribe")
    await asyncio.gather(
        *(instance.subscribe_topic(recorder.name, "t", recorder) for recorder in recorders)
    )
    assert subscribers(backend, "t") == [1]
    assert commands(backend, "subscribe") - before == 1
    assert len(server_of(backend).listeners()) == 1
    await instance.broadcast("t", "to all")
    for recorder in recorders:
        assert await recorder.received(1) == ["to all"]
    for recorder in recorders[1:]:
        await instance.unsubscribe_topic(recorder.name, "t")
    assert subscribers(backend, "t") == [1]
    await instance.unsubscribe_topic("s0", "t")
    await until(lambda: subscribers(backend, "t") == [0], "the last one has left")
    assert commands(backend, "unsubscribe") >= 1


@redis_kinds
async def test_one_subscription_per_instance(backend: Backend) -> None:
    instances = [await backend.started() for _ in range(3)]
    for count, instance in enumerate(instances, 1):
        for session in ("s1", "s2"):
            await instance.subscribe_topic(session, "t", ignore)
        assert subscribers(backend, "t") == [count]
    for left, instance in zip((2, 1, 0), instances, strict=True):
        await instance.unsubscribe_all("s1")
        await instance.unsubscribe_all("s2")
        await until(lambda left=left: subscribers(backend, "t") == [left])  # type: ignore[misc]


@redis_kinds
async def test_stop_gives_every_subscription_back(backend: Backend) -> None:
    instance = await backend.started()
    for topic in ("t1", "t2"):
        await instance.subscribe_topic("s", topic, ignore)
    await instance.stop()
    await until(lambda: subscribers(backend, "t1", "t2") == [0, 0])
    assert server_of(backend).listeners() == set()


@redis_kinds
async def test_no_connection_holds_a_pattern_for_topics(backend: Backend) -> None:
    instance = await backend.started()
    await instance.subscribe_topic("s", "*", ignore)
    # A publisher has two patterns of its own, for uploads and users.
    assert server_of(backend).client.pubsub_numpat() == (0 if backend.kind == "redis" else 2)


# Acknowledged


@brokered_kinds
async def test_what_is_broadcast_right_after_subscribing_arrives(backend: Backend) -> None:
    here, there = await backend.started(), await backend.started()
    for n in range(300):
        recorder = Recorder(f"round {n}")
        await here.subscribe_topic("s", f"t{n}", recorder)
        await there.broadcast(f"t{n}", n)
        assert await recorder.received(1) == [n]
        if n % 3:
            await here.unsubscribe_topic("s", f"t{n}")


@brokered_kinds
async def test_a_topic_that_is_left_and_taken_again_at_once(backend: Backend) -> None:
    """A late UNSUBSCRIBE must not undo the SUBSCRIBE that came after it."""
    here, there = await backend.started(), await backend.started()
    for n in range(300):
        recorder = Recorder(f"round {n}")
        await here.subscribe_topic("s", "t", recorder)
        await there.broadcast("t", n)
        assert await recorder.received(1) == [n]
        await here.unsubscribe_topic("s", "t")


@brokered_kinds
async def test_whoever_subscribes_waits_also_if_another_asked_already(backend: Backend) -> None:
    here, there = await backend.started(), await backend.started()
    for n in range(100):
        recorders = [Recorder(f"round {n}, {i}") for i in range(5)]

        async def subscribe_and_speak(recorder: Recorder, n: int = n) -> None:
            await here.subscribe_topic(recorder.name, f"t{n}", recorder)
            await there.broadcast(f"t{n}", recorder.name)

        await asyncio.gather(*map(subscribe_and_speak, recorders))
        for recorder in recorders:
            await until(lambda r=recorder: r.name in r.messages, f"its own at {recorder}")  # type: ignore[misc]


@redis_kinds
async def test_the_broker_has_it_when_subscribe_returns(backend: Backend) -> None:
    instance = await backend.started()
    for n in range(100):
        await instance.subscribe_topic("s", f"t{n}", ignore)
        assert subscribers(backend, f"t{n}") == [1]


@served_kinds
async def test_subscribing_that_is_cancelled_leaves_nothing_half_done(backend: Backend) -> None:
    instance, recorder = await backend.started(), Recorder()
    for turns in range(20):
        topic = f"t{turns}"
        subscribing = asyncio.create_task(instance.subscribe_topic("s", topic, recorder))
        for _ in range(turns):
            await asyncio.sleep(0)
        subscribing.cancel()
        await asyncio.wait([subscribing])
        # Subscribed or not: what is asked for next is what counts.
        await instance.subscribe_topic("s", topic, recorder)
        await instance.broadcast(topic, turns)
        await settled(instance, "s")
        assert recorder.messages == list(range(turns + 1))
        await instance.unsubscribe_topic("s", topic)
    await instance.unsubscribe_all("s")
    await nothing_is_subscribed(backend)
    assert figures(instance)["subscriptions"] == 0


# Many at once


@redis_kinds
async def test_a_thousand_topics_in_few_round_trips(backend: Backend) -> None:
    instance, recorder = await backend.started(), Recorder()
    before = commands(backend, "subscribe")
    names = [f"t{n}" for n in range(1_000)]
    await asyncio.gather(*(instance.subscribe_topic("s", name, recorder) for name in names))
    assert subscribers(backend, *names) == [1] * 1_000
    assert commands(backend, "subscribe") - before <= 50
    await asyncio.gather(*(instance.broadcast(name, name) for name in names))
    assert sorted(await recorder.received(1_000)) == sorted(names)
    before = commands(backend, "unsubscribe")
    await instance.unsubscribe_all("s")
    await until(lambda: subscribed_channels(backend) == set())
    assert commands(backend, "unsubscribe") - before <= 50


@redis_kinds
async def test_topics_wanted_before_the_start_are_taken_together(backend: Backend) -> None:
    instance, recorder = backend.make(), Recorder()
    names = [f"t{n}" for n in range(1_000)]
    for name in names:
        await instance.subscribe_topic("s", name, recorder)
    before = commands(backend, "subscribe")
    await instance.start()
    assert subscribers(backend, *names) == [1] * 1_000
    assert commands(backend, "subscribe") - before <= 50


# Nothing is left behind


@every_kind
async def test_ten_thousand_sessions_leave_nothing_behind(backend: Backend) -> None:
    instance = await backend.started()
    handlers: list[weakref.ref[Recorder]] = []
    for batch in range(20):
        recorders = {f"s{batch}-{n}": Recorder() for n in range(500)}
        handlers += map(weakref.ref, recorders.values())
        await asyncio.gather(
            *(
                instance.subscribe_topic(session, topic, recorder)
                for session, recorder in recorders.items()
                for topic in ("shared", f"room {session[-1]}")
            )
        )
        await instance.broadcast("shared", batch)
        for recorder in recorders.values():
            await recorder.received(1)
        assert figures(instance)["sessions"] == 500
        leaving = list(recorders)
        for session in leaving[::2]:
            await instance.unsubscribe_all(session)
        for session in leaving[1::2]:
            for topic in ("shared", f"room {session[-1]}"):
                await instance.unsubscribe_topic(session, topic)
        del recorders, recorder
    await until_figures(
        instance, sessions=0, subscribed_topics=0, subscriptions=0, queued_messages=0
    )
    await nothing_is_subscribed(backend)

    def alive() -> int:
        gc.collect()
        return sum(handler() is not None for handler in handlers)

    await until(lambda: alive() == 0, "every handler is gone")


async def until_gone(*references: weakref.ref[Any]) -> None:
    def alive() -> list[Any]:
        gc.collect()
        return [reference() for reference in references if reference() is not None]

    await until(lambda: alive() == [], "nothing holds them any more")


@every_kind
async def test_a_handler_is_let_go_though_its_session_is_busy(backend: Backend) -> None:
    instance = await backend.started()
    gated, waiting = Gated(), Recorder()
    gone = weakref.ref(waiting)
    await instance.subscribe_topic("s", "gate", gated)
    await instance.subscribe_topic("s", "t", waiting)
    await instance.broadcast("gate", 0)
    await gated.entered()
    for n in range(20):
        await instance.broadcast("t", n)
    await until_figures(instance, queued_messages=20)
    await instance.unsubscribe_topic("s", "t")
    del waiting
    await until_gone(gone)
    gated.release()
    await gated.received(1)
    await until_figures(instance, queued_messages=0, queued_bytes=0, delivered=1)


@every_kind
async def test_a_handler_that_was_replaced_is_let_go(backend: Backend) -> None:
    instance, old = await backend.started(), Recorder()
    gone = weakref.ref(old)
    await instance.subscribe_topic("s", "t", old)
    await instance.broadcast("t", 1)
    await old.received(1)
    await instance.subscribe_topic("s", "t", Recorder())
    await settled(instance, "s")
    del old
    await until_gone(gone)


async def dropped(backend: Backend, *, with_a_circle: bool) -> list[weakref.ref[Any]]:
    """An instance that was used, stopped and let go with a session that never left."""

    class Session(Recorder):
        knows: PubSub | None = None

    instance, session = await backend.started(), Session()
    if with_a_circle:
        session.knows = instance
    await instance.subscribe_topic("s", "t", session)
    await instance.broadcast("t", 1)
    await session.received(1)
    await instance.stop()
    backend.made.clear()
    return [weakref.ref(session), weakref.ref(instance)]


@every_kind
async def test_an_instance_that_is_let_go_lets_its_handlers_go(backend: Backend) -> None:
    await until_gone(*await dropped(backend, with_a_circle=False))


@every_kind
async def test_an_instance_that_its_handlers_know_is_let_go_too(backend: Backend) -> None:
    """As PyView's do: a handler is a method of a socket, which knows where it subscribed."""
    await until_gone(*await dropped(backend, with_a_circle=True))


@redis_kinds
async def test_broker_and_figures_agree_after_any_history(backend: Backend) -> None:
    instance = await backend.started()
    chance = random.Random(4)
    held: set[tuple[str, str]] = set()
    for _ in range(1_500):
        pair = f"s{chance.randrange(8)}", f"t{chance.randrange(8)}"
        action = chance.random()
        if action < 0.5:
            await instance.subscribe_topic(*pair, ignore)
            held.add(pair)
        elif action < 0.9:
            await instance.unsubscribe_topic(*pair)
            held.discard(pair)
        else:
            await instance.unsubscribe_all(pair[0])
            held = {kept for kept in held if kept[0] != pair[0]}
    topics = {topic for _, topic in held}
    await until(lambda: subscribed_channels(backend) == {backend.prefix + each for each in topics})
    await until_figures(
        instance,
        subscriptions=len(held),
        subscribed_topics=len(topics),
        sessions=len({session for session, _ in held}),
    )


@served_kinds
async def test_the_same_from_many_tasks_at_once(backend: Backend) -> None:
    instance = await backend.started()

    async def come_and_go(session: str, chance: random.Random) -> None:
        for _ in range(100):
            topic = f"t{chance.randrange(5)}"
            recorder = Recorder(f"{session} {topic}")
            await instance.subscribe_topic(session, topic, recorder)
            await instance.broadcast(topic, session)
            await until(lambda r=recorder: session in r.messages, f"its own at {recorder}")  # type: ignore[misc]
            await (
                instance.unsubscribe_all(session)
                if chance.random() < 0.5
                else instance.unsubscribe_topic(session, topic)
            )

    await asyncio.gather(*(come_and_go(f"s{n}", random.Random(n)) for n in range(10)))
    await until_figures(instance, sessions=0, subscribed_topics=0, subscriptions=0)
    await nothing_is_subscribed(backend)


@pytest.mark.parametrize("backend", ["publisher-redis", "publisher-postgres"], indirect=True)
async def test_an_app_of_both_kinds_has_one_listening_connection(backend: Backend) -> None:
    instance = await backend.started()
    for n in range(100):
        await instance.subscribe_topic(f"s{n}", f"t{n % 10}", ignore)
    assert backend.server is not None
    assert len(backend.server.listeners()) == 1
    assert isinstance(instance, fanwire.UploadProgressPublisher)
