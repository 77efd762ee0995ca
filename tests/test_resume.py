"""Who comes back says what it has, and is given what it missed, or told that this cannot be had."""

import asyncio
import json
import random
import time
from typing import Any

import pytest

import fanwire
from tests import histories
from tests.conftest import Broker, Unique
from tests.deadlines import until
from tests.histories import (
    RESYNC,
    Client,
    InstanceFactory,
    Position,
    SlowClient,
    commands,
    note,
    notes,
    progress,
)
from tests.redis_server import RedisServer

make_instance = histories.make_instance

GARBAGE = ["", "nonsense", "0" * 16, "ABCDEF0123456789", "0123456789abcdef0", "größe", "\x00" * 16]


# What follows


async def test_exactly_what_follows(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    positions = await instance.publish(upload, *notes(3), progress(1), *notes(3))
    for at, position in enumerate(positions):
        client = await instance.watch(upload, user=f"user {at}", since=position)
        following = [offset for _, offset in positions[at + 1 :]]
        if following:
            await client.saw(*following)
        await instance.manager.disconnect(f"user {at}", client)
    await instance.until_figure("recovered", 6 + 5 + 4 + 3 + 2 + 1)
    assert (instance.figure("resyncs"), instance.figure("snapshots")) == (0, 0)


async def test_nothing_if_there_is_nothing(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    *_, newest = await instance.publish(upload, *notes(2), progress(1))
    alone = await instance.watch(upload, since=newest)
    another = await instance.watch(upload, user="bob", since=newest)
    await instance.publish(upload, note(3))
    for client in (alone, another):
        await client.saw(4)


async def test_from_the_beginning(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    ((epoch, _), *_) = await instance.publish(upload, note(1), progress(1), note(2))
    await (await instance.watch(upload, since=(epoch, 0))).saw(1, 2, 3)


async def test_for_all_connections_of_a_user_that_have_nothing(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    positions = await instance.publish(upload, *notes(5))
    tabs = [Client(), Client()]
    for tab in tabs:
        await instance.manager.connect("ada", tab)
    await instance.manager.subscribe_upload("ada", upload, since=positions[2])
    for tab in tabs:
        await tab.saw(4, 5)


async def test_while_messages_pour_in(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    worker = await make_instance(broker.url, start=False)
    known = await worker.publish(upload, *notes(20))
    clients: list[tuple[Position, Client]] = []
    enough = asyncio.Event()

    async def pour() -> None:
        while not enough.is_set():
            known.extend(await worker.publish(upload, note(len(known))))

    pouring = asyncio.create_task(pour())
    chance = random.Random(5)
    for number in range(40):
        since = chance.choice(known[-20:])
        client = await instance.watch(
            upload,
            user=f"user {number}",
            since=since,
            client=Client() if number % 2 else SlowClient(),
        )
        clients.append((since, client))
        before = len(known)
        await until(lambda before=before: len(known) > before, "another message")  # type: ignore[misc]
    enough.set()
    await pouring
    last = known[-1][1]
    for (_, offset), client in clients:
        await client.reached(last)
        assert client.seen == list(range(offset + 1, last + 1))
    assert (instance.figure("resyncs"), instance.figure("gaps")) == (0, 0)


async def test_who_says_again_what_it_has_been_given(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    """A client that is told of its subscription late asks twice."""
    upload, instance = unique("upload"), await make_instance(broker.url)
    positions = await instance.publish(upload, *notes(5))
    client = await instance.watch(upload, since=positions[1])
    await client.saw(3, 4, 5)
    for since in positions[1:]:
        await instance.manager.subscribe_upload("ada", upload, connection=client, since=since)
    await instance.publish(upload, note(6))
    await client.saw(3, 4, 5, 6)


async def test_who_says_that_it_has_less_than_it_was_given(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    positions = await instance.publish(upload, *notes(2), progress(1), note(3))
    client = await instance.watch(upload)
    await client.saw(3, 4)
    await instance.manager.subscribe_upload("ada", upload, connection=client, since=positions[0])
    await client.saw(3, 4, RESYNC, 3, 4)


# What cannot be had


async def test_as_far_back_as_it_reaches_and_no_further(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload = unique("upload")
    instance = await make_instance(broker.url, history=fanwire.History(size=5))
    positions = await instance.publish(upload, progress(1), *notes(19))
    just = await instance.watch(upload, user="just", since=positions[14])
    await just.saw(16, 17, 18, 19, 20)
    late = await instance.watch(upload, user="late", since=positions[13])
    await late.saw(RESYNC, 1, 16, 17, 18, 19, 20)
    very = await instance.watch(upload, user="very", since=positions[0])
    await very.saw(RESYNC, 1, 16, 17, 18, 19, 20)
    for client in (late, very):
        assert json.loads(client.texts[0]) == {"action": "resync", "upload_id": upload}
    assert instance.figure("resyncs") == 2


@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside others"])
@pytest.mark.parametrize("what", ["ahead", "another epoch", *GARBAGE])
async def test_a_position_that_the_history_does_not_know(
    broker: Broker, make_instance: InstanceFactory, unique: Unique, what: str, others: bool
) -> None:
    """Others are up to date, and so the history is not asked for what they have."""
    upload, instance = unique("upload"), await make_instance(broker.url)
    positions = await instance.publish(upload, *notes(2), progress(1), note(3))
    epoch, _ = positions[0]
    another = f"{int(epoch, 16) ^ 1:016x}"
    since = {"ahead": (epoch, 5), "another epoch": (another, 2)}.get(what, (what, 2))
    if others:
        other = await instance.watch(upload, user="other")
        await other.saw(3, 4)
    client = await instance.watch(upload, since=since)
    await client.saw(RESYNC, 3, 4)
    await instance.publish(upload, note(4))
    await client.saw(RESYNC, 3, 4, 5)
    if others:
        await other.saw(3, 4, 5)


async def test_several_at_once_and_each_gets_its_own(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    """One read serves them all: it has to reach back as far as the one with the least needs it."""
    upload, instance = unique("upload"), await make_instance(broker.url)
    positions = await instance.publish(upload, *notes(2), progress(1), *notes(3))
    epoch, _ = positions[0]
    sinces: list[tuple[Position | None, list[int | str]]] = [
        (positions[5], []),
        (positions[3], [5, 6]),
        (positions[0], [2, 3, 4, 5, 6]),
        (None, [3, 4, 5, 6]),
        ((epoch, 99), [RESYNC, 3, 4, 5, 6]),
        (("garbage", 1), [RESYNC, 3, 4, 5, 6]),
    ]
    for order in range(12):
        random.Random(order).shuffle(sinces)
        some = sinces[: 2 + order % 5]
        clients: list[tuple[Client, list[int | str]]] = []
        for number, (since, expected) in enumerate(some):
            watching = await instance.watch(upload, user=f"user {number}", since=since)
            clients.append((watching, expected))
        for client, expected in clients:
            if expected:
                await client.saw(*expected)
        await instance.publish(upload, progress(1))
        for client, expected in clients:
            await client.reached(7)
            assert client.seen == [*expected, 7]
        for number, (client, _) in enumerate(clients):
            await instance.manager.disconnect(f"user {number}", client)
        # The next round finds an upload of its own, in the same state.
        upload = f"{upload}+"
        again = await instance.publish(upload, *notes(2), progress(1), *notes(3))
        sinces = [
            ((again[0][0], since[1]) if since and since[0] == epoch else since, expected)
            for since, expected in sinces
        ]
        epoch = again[0][0]


async def test_a_history_that_has_expired(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, ttl = unique("upload"), 0.1
    instance = await make_instance(broker.url, history=fanwire.History(ttl=ttl))
    positions = await instance.publish(upload, progress(1), note(1))
    # It may be kept for an eighth longer; a server looks at its clock in steps.
    end = time.monotonic() + 1.25 * ttl + 0.01
    await until(lambda: time.monotonic() > end)
    if isinstance(broker.server, RedisServer):
        assert not broker.server.client.exists(f"fanwire:{{{upload}}}:meta")
    resuming = await instance.watch(upload, user="resuming", since=positions[0])
    await resuming.saw(RESYNC)
    new = await instance.watch(upload, user="new")
    await instance.until_figure("snapshots", 1)
    ((epoch, offset),) = await instance.publish(upload, note(2))
    assert (epoch, offset) != positions[0] and offset == 1
    await resuming.saw(RESYNC, 1)
    await new.saw(1)


async def test_a_history_that_has_never_been(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    client = await instance.watch(upload, since=("0123456789abcdef", 3))
    await client.saw(RESYNC)
    await instance.publish(upload, progress(1))
    await client.saw(RESYNC, 1)


# Many at once


@pytest.mark.timeout(120)
async def test_two_thousand_at_once(own_redis: RedisServer, make_instance: InstanceFactory) -> None:
    instance = await make_instance(own_redis.url)
    positions = {
        f"u{number}": await instance.publish(f"u{number}", *notes(20)) for number in range(40)
    }
    chance = random.Random(7)
    resuming: list[tuple[str, int, Client]] = []
    for number in range(2_000):
        upload = f"u{number % 40}"
        resuming.append((upload, chance.randrange(20), Client(f"{number}")))
        await instance.manager.connect(f"user {number}", resuming[-1][2])
    own_redis.client.config_resetstat()
    for number, (upload, at, client) in enumerate(resuming):
        await instance.manager.subscribe_upload(
            f"user {number}", upload, connection=client, since=positions[upload][at]
        )
    expected = sum(19 - at for _, at, _ in resuming)
    await instance.until_figure("recovered", expected)
    for upload in positions:
        await instance.publish(upload, progress(1))
    for _, at, client in resuming:
        await client.reached(21)
        assert client.seen == list(range(at + 2, 22))
    # One for each upload, as long as its connections ask before it is read; never one for each.
    assert commands(own_redis)["evalsha"] < 400
    assert instance.figure("resyncs") == 0


# What is no position


@pytest.mark.parametrize(
    "since",
    [
        5,
        "0123456789abcdef",
        "ab",
        ("0123456789abcdef",),
        ("0123456789abcdef", 1, 2),
        ("0123456789abcdef", "1"),
        ("0123456789abcdef", 1.0),
        ("0123456789abcdef", True),
        ("0123456789abcdef", None),
        (1, 1),
        (b"0123456789abcdef", 1),
        {"epoch": "0123456789abcdef", "offset": 1},
    ],
    ids=str,
)
async def test_what_is_no_pair(manager: fanwire.ConnectionManager, since: Any) -> None:
    with pytest.raises(TypeError, match=r"^since must be a pair of epoch \(str\) and offset"):
        await manager.subscribe_upload("ada", "u1", since=since)
    assert not manager.upload_subscribers


@pytest.mark.parametrize("offset", [-1, 2**53, 2**64, -(2**70)])
async def test_what_is_no_offset(manager: fanwire.ConnectionManager, offset: int) -> None:
    with pytest.raises(ValueError, match=rf"^since: the offset must be .*, not {offset}$"):
        await manager.subscribe_upload("ada", "u1", since=("0123456789abcdef", offset))
    assert not manager.upload_subscribers


async def test_what_is_no_connection(manager: fanwire.ConnectionManager) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        await manager.subscribe_upload("ada", "u1", connection=[])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="positional"):
        await manager.subscribe_upload("ada", "u1", Client())  # type: ignore[call-arg]
    assert not manager.upload_subscribers


async def test_the_largest_offset_is_one(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    ((epoch, _),) = await instance.publish(upload, progress(1))
    client = await instance.watch(upload, since=(epoch, 2**53 - 1))
    await client.saw(RESYNC, 1)
