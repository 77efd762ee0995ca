"""Who begins to watch an upload is given its current state, and then exactly what follows it."""

import asyncio
import itertools
from typing import Any

import pytest

import fanwire
from tests import histories
from tests.broker_proxy import broker_proxy
from tests.conftest import Broker, Unique
from tests.deadlines import bounded, until
from tests.histories import (
    FINAL,
    RESYNC,
    Client,
    InstanceFactory,
    SlowClient,
    commands,
    note,
    notes,
    progress,
    publish,
)
from tests.redis_server import RedisServer
from tests.servers import AnyServer

make_instance = histories.make_instance

DONE = fanwire.CoalesceRule("/kind", ("done",))


# What the current state is


@pytest.mark.parametrize(
    ("history", "messages", "state"),
    [
        ({}, [progress(1), note(1), progress(2), note(2), note(3)], [3, 4, 5]),
        ({}, [progress(1), progress(2)], [2]),
        ({}, [progress(1), note(1), FINAL], [3]),
        ({}, [progress(1), FINAL, note(1)], [2, 3]),
        ({}, [progress(1), {"action": "upload_failed"}], [2]),
        ({}, notes(3), [1, 2, 3]),
        ({"size": 3}, notes(10), [8, 9, 10]),
        ({"size": 3}, [progress(1), *notes(10)], [1, 9, 10, 11]),
        ({"final": DONE}, [progress(1), {"kind": "done"}], [2]),
        ({"final": DONE}, [progress(1), FINAL], [1, 2]),
    ],
    ids=[
        "progress and what came after it",
        "progress alone",
        "final",
        "what came after the final message",
        "failed",
        "no progress at all",
        "more than is kept",
        "progress that is older than what is kept",
        "final by a rule",
        "not final by a rule",
    ],
)
async def test_the_current_state(
    broker: Broker,
    make_instance: InstanceFactory,
    unique: Unique,
    history: dict[str, Any],
    messages: list[Any],
    state: list[int],
) -> None:
    upload = unique("upload")
    instance = await make_instance(broker.url, history=fanwire.History(**history))
    await instance.publish(upload, *messages)
    client = await instance.watch(upload)
    await client.saw(*state)
    await instance.publish(upload, note(99))
    await client.saw(*state, len(messages) + 1)
    assert instance.figure("snapshots") == 1
    assert instance.figure("recovered") == len(state)
    assert instance.figure("resyncs") == 0


async def test_nothing_has_been_published_yet(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    await instance.publish(upload, progress(1), note(1))
    await client.saw(1, 2)
    assert instance.figure("recovered") == 0


async def test_the_state_is_the_payload_that_was_published(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    watching = await instance.watch(upload)
    await instance.publish(upload, progress(1, text="Größe “87 %” \n 検査 🚀"), note(1))
    await watching.saw(1, 2)
    late = await instance.watch(upload, user="bob")
    await late.saw(1, 2)
    assert late.texts == watching.texts


@pytest.mark.parametrize("name", ["", "{a}", "a}b{", "*", "größe 検査", "line\r\nbreak", "x" * 999])
async def test_any_name(
    broker: Broker, make_instance: InstanceFactory, unique: Unique, name: str
) -> None:
    upload, instance = unique(name) if name else "", await make_instance(broker.url)
    (first, *_) = await instance.publish(upload, progress(1))
    client = await instance.watch(upload)
    await client.saw(first[1])


# Who is given it


async def test_only_the_connection_that_is_named(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    await instance.publish(upload, note(1), progress(1))
    named, other = Client("named"), Client("other")
    for tab in (named, other):
        await instance.manager.connect("ada", tab)
    await instance.manager.subscribe_upload("ada", upload, connection=named)
    await named.saw(2)
    # The other one is a watcher too: what comes is for it, and it is given what came before.
    await instance.publish(upload, note(2))
    await named.saw(2, 3)
    await other.saw(RESYNC, 2, 3)
    assert (instance.figure("snapshots"), instance.figure("resyncs")) == (1, 1)


async def test_without_a_name_those_that_have_nothing(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    await instance.publish(upload, progress(1))
    tabs = [Client(f"tab {n}") for n in range(3)]
    for tab in tabs[:2]:
        await instance.manager.connect("ada", tab)
    await instance.manager.subscribe_upload("ada", upload)
    for tab in tabs[:2]:
        await tab.saw(1)
    await instance.manager.connect("ada", tabs[2])
    for _ in range(3):
        await instance.manager.subscribe_upload("ada", upload)
    await tabs[2].saw(1)
    await instance.publish(upload, note(1))
    for tab in tabs:
        await tab.saw(1, 2)
    assert instance.figure("snapshots") == 3


async def test_a_second_tab_is_given_it_with_the_next_message(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    await instance.publish(upload, note(1), progress(1), note(2))
    first = await instance.watch(upload)
    await first.saw(2, 3)
    second = Client("second")
    await instance.manager.connect("ada", second)
    await instance.publish(upload, note(3))
    await first.saw(2, 3, 4)
    # It did not ask, and may be the new connection of a client that has some of it.
    await second.saw(RESYNC, 2, 3, 4)


async def test_subscribed_before_connected(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, client = unique("upload"), Client()
    instance = await make_instance(broker.url)
    await instance.publish(upload, progress(1), note(1))
    await instance.manager.subscribe_upload("ada", upload)
    await instance.manager.connect("ada", client)
    await client.saw(RESYNC, 1, 2)


async def test_a_connection_that_is_not_registered_is_nobodys(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    await instance.publish(upload, progress(1))
    await until(lambda: instance.publisher.stats()["received"], "it came before anybody was there")
    tab, gone = Client("tab"), Client("gone")
    await instance.manager.connect("ada", tab)
    await instance.manager.subscribe_upload("ada", upload, connection=gone)
    assert instance.manager.get_upload_subscriber_ids(upload) == {"ada"}
    other = await instance.watch(upload, user="bob")
    await other.saw(1)
    assert (tab.texts, gone.texts) == ([], [])
    await instance.publish(upload, note(1))
    await tab.saw(RESYNC, 1, 2)
    assert gone.texts == []


async def test_a_connection_of_two_users_is_given_everything_once(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, shared = unique("upload"), Client()
    instance = await make_instance(broker.url)
    await instance.publish(upload, progress(1), note(1))
    for user in ("ada", "bob"):
        await instance.manager.connect(user, shared)
        await instance.manager.subscribe_upload(user, upload)
    await shared.saw(1, 2)
    await instance.publish(upload, note(2))
    await shared.saw(1, 2, 3)
    await instance.manager.unsubscribe_upload("ada", upload)
    await instance.publish(upload, note(3))
    await shared.saw(1, 2, 3, 4)
    await instance.manager.disconnect("ada", shared)
    await instance.publish(upload, note(4))
    await shared.saw(1, 2, 3, 4, 5)


# Asked for again


async def test_unsubscribed_and_subscribed_again(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    client = await instance.watch(upload)
    await instance.publish(upload, progress(1), note(1))
    await client.saw(1, 2)
    await instance.manager.unsubscribe_upload("ada", upload)
    await instance.publish(upload, progress(2), note(2))
    client.texts.clear()
    await instance.manager.subscribe_upload("ada", upload)
    await client.saw(3, 4)


async def test_who_disconnects_is_forgotten(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    client, other = await instance.watch(upload), await instance.watch(upload, user="bob")
    await instance.publish(upload, progress(1), note(1))
    await client.saw(1, 2)
    for _ in range(2):
        await instance.manager.disconnect("ada", client)
        client.texts.clear()
        await instance.watch(upload, client=client)
        await client.saw(1, 2)
    await other.saw(1, 2)
    assert instance.figure("resyncs") == 0


async def test_a_connection_that_has_something_and_asks_again(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    client, other = await instance.watch(upload), await instance.watch(upload, user="bob")
    await instance.until_figure("snapshots", 2)
    await instance.publish(upload, note(1), progress(1), note(2))
    await client.saw(1, 2, 3)
    await instance.manager.subscribe_upload("ada", upload, connection=client)
    await client.saw(1, 2, 3, RESYNC, 2, 3)
    await instance.publish(upload, note(3))
    await client.saw(1, 2, 3, RESYNC, 2, 3, 4)
    await other.saw(1, 2, 3, 4)


@pytest.mark.parametrize("has_it", [True, False], ids=["with a position", "without"])
async def test_a_tab_that_was_given_it_unasked_and_asks(
    broker: Broker, make_instance: InstanceFactory, unique: Unique, has_it: bool
) -> None:
    """Its page may have made nothing of what came before it asked."""
    upload, instance = unique("upload"), await make_instance(broker.url)
    await instance.watch(upload)
    tab = Client("tab")
    await instance.manager.connect("ada", tab)
    positions = await instance.publish(upload, progress(1), note(1))
    await tab.saw(RESYNC, 1, 2)
    await instance.manager.subscribe_upload(
        "ada", upload, connection=tab, since=positions[-1] if has_it else None
    )
    await tab.saw(RESYNC, 1, 2, RESYNC, 1, 2)
    await instance.publish(upload, note(2))
    await tab.saw(RESYNC, 1, 2, RESYNC, 1, 2, 3)


# While messages pour in


@pytest.mark.parametrize("named", [True, False], ids=["named", "not named"])
async def test_no_gap_and_nothing_twice_while_messages_pour_in(
    broker: Broker, make_instance: InstanceFactory, unique: Unique, named: bool
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    worker = await make_instance(broker.url, start=False)
    clients: list[Client] = []
    last, enough = 0, asyncio.Event()

    async def pour() -> None:
        nonlocal last
        for number in itertools.count():
            message = progress(number) if number % 7 == 0 else note(number)
            _, last = await publish(worker.publisher, upload, message)
            if enough.is_set():
                return

    pouring = asyncio.create_task(pour())
    for number in range(40):
        client = Client() if number % 2 else SlowClient()
        clients.append(client)
        await instance.manager.connect(f"user {number}", client)
        await instance.manager.subscribe_upload(
            f"user {number}", upload, connection=client if named else None
        )
        if number == 0:
            # With nothing as yet, it would have to begin anew if another's read were ahead of it.
            await client.received(1)
        if number % 3:
            before = last
            await until(lambda before=before: last > before, "another message")  # type: ignore[misc]
    enough.set()
    await bounded(pouring)
    for client in clients:
        await client.reached(last)
        (first, *_) = client.seen
        assert isinstance(first, int)
        assert client.seen == list(range(first, last + 1))
    assert instance.figure("snapshots") == 40
    assert instance.figure("gaps") == 0


async def test_others_are_not_held_up_by_a_newcomer(
    own_server: AnyServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    """While the history does not answer, what comes is for those who are up to date."""
    upload = unique("upload")
    worker = await make_instance(own_server.url, start=False)
    async with broker_proxy(own_server) as proxy:
        instance = await make_instance(proxy.url)
        await worker.publish(upload, note(1), progress(1))
        watching = await instance.watch(upload)
        await watching.saw(2)
        proxy.hold_answers()
        newcomer = await bounded(instance.watch(upload, user="bob"))
        await worker.publish(upload, note(2), progress(2), note(3))
        await watching.saw(2, 3, 4, 5)
        assert newcomer.texts == []
        proxy.release_answers()
        await newcomer.reached(5)
        # The read may have been made before any of them or after all of them.
        assert newcomer.seen in ([2, 3, 4, 5], [3, 4, 5], [4, 5])
        await worker.publish(upload, note(4))
        await watching.saw(2, 3, 4, 5, 6)
        await newcomer.reached(6)
        await instance.publisher.stop()


async def test_one_round_trip_for_each_subscription(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(own_redis.url)
    await instance.publish(upload, progress(1), note(1))
    await (await instance.watch(upload)).saw(1, 2)
    own_redis.client.config_resetstat()
    await (await instance.watch(upload, user="bob")).saw(1, 2)
    others = {"config|resetstat", "config", "info", "ping"}
    told = {name: n for name, n in commands(own_redis).items() if name not in others}
    assert told == {"evalsha": 1, "hmget": 1, "hget": 1, "xrange": 1}


async def test_many_subscriptions_are_read_together(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(own_redis.url)
    await instance.publish(upload, progress(1), note(1))
    clients = [Client() for _ in range(500)]
    for number, client in enumerate(clients):
        await instance.manager.connect(f"user {number}", client)
    own_redis.client.config_resetstat()
    for number, client in enumerate(clients):
        await instance.manager.subscribe_upload(f"user {number}", upload, connection=client)
    for client in clients:
        await client.saw(1, 2)
    assert commands(own_redis)["evalsha"] < 100
