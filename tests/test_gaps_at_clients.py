"""What slow clients miss, what comes twice, and what is not of the history."""

from collections.abc import Callable

import pytest

import fanwire
from tests import histories
from tests.broker_proxy import broker_proxy
from tests.conftest import Broker, Unique
from tests.connections import RecordingConnection, StallingConnection
from tests.deadlines import until
from tests.delivery import until_slow
from tests.histories import (
    RESYNC,
    Client,
    Instance,
    InstanceFactory,
    note,
    notes,
    progress,
)
from tests.outages import troubles
from tests.redis_server import RedisServer
from tests.servers import AnyServer

make_instance = histories.make_instance

LARGE = fanwire.History(size=5_000)


class StallingClient(StallingConnection, Client):
    """A browser that does not read until it is released."""


# Clients that are slow


async def slow_client(instance: Instance, upload: str) -> StallingClient:
    """A client that has taken nothing of the first message, for so long that limits count."""
    client = StallingClient()
    await instance.watch(upload, client=client)
    await instance.until_figure("snapshots", 1)
    await instance.publish(upload, note(1))
    await until_slow(client)
    return client


async def test_who_was_slow_and_lost_something_is_told(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload = unique("upload")
    manager = fanwire.ConnectionManager(
        overflow="drop-oldest", max_queued_messages=10, coalesce=False
    )
    instance = await make_instance(broker.url, manager=manager)
    client = await slow_client(instance, upload)
    other = await instance.watch(upload, user="bob")
    await instance.publish(upload, *notes(28), progress(1), *notes(10))
    await other.saw(*range(1, 41))
    assert instance.figure("dropped") > 0
    assert client.texts == []
    client.release()
    await client.reached(40)
    assert client.seen[-12:] == [RESYNC, *range(30, 41)]
    assert client.seen.count(RESYNC) == instance.figure("resyncs") == 1
    await instance.publish(upload, note(41))
    await client.reached(41)
    await other.saw(*range(1, 42))


@pytest.mark.parametrize("since", [False, True], ids=["plainly", "with a position"])
async def test_who_was_slow_and_asks_meanwhile(
    broker: Broker, make_instance: InstanceFactory, unique: Unique, since: bool
) -> None:
    """What waits for it is given to it all the same, so what comes then must not go back unsaid."""
    upload = unique("upload")
    manager = fanwire.ConnectionManager(
        overflow="drop-oldest", max_queued_messages=10, coalesce=False
    )
    instance = await make_instance(broker.url, manager=manager)
    client = await slow_client(instance, upload)
    other = await instance.watch(upload, user="bob")
    positions = await instance.publish(upload, note(2), progress(1), *notes(37))
    await other.saw(*range(1, 41))
    await instance.manager.subscribe_upload(
        "ada", upload, connection=client, since=positions[0] if since else None
    )
    client.release()
    await client.reached(40)
    assert RESYNC in client.seen


async def test_progress_is_coalesced_and_never_goes_back(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload = unique("upload")
    instance = await make_instance(broker.url, manager=fanwire.ConnectionManager())
    client = await slow_client(instance, upload)
    other = await instance.watch(upload, user="bob")
    await instance.publish(upload, *map(progress, range(20)), note(2), *map(progress, range(20)))
    await other.reached(42)
    client.release()
    await client.saw(1, 21, 22, 42)
    figures = ("resyncs", "gaps", "dropped")
    assert [instance.figure(name) for name in figures] == [0, 0, 0]


async def test_what_is_filled_in_is_coalesced_too(
    own_server: AnyServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload = unique("upload")
    worker = await make_instance(own_server.url, start=False)
    async with broker_proxy(own_server) as proxy:
        instance = await make_instance(proxy.url, manager=fanwire.ConnectionManager())
        client = await slow_client(instance, upload)
        proxy.swallows = lambda push: push.seen in range(3, 30)
        await worker.publish(upload, note(2), *map(progress, range(40)), note(3))
        await instance.until_figure("queued_messages", 3)
        client.release()
        await client.saw(1, 2, 42, 43)
        await instance.publisher.stop()


# Beside the history


async def test_what_comes_twice_is_given_once(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(own_redis.url)
    client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    await instance.publish(upload, *notes(3))
    await client.saw(1, 2, 3)
    for text in client.texts[::-1]:
        own_redis.publish(f"upload:{upload}", text)
    await instance.publish(upload, note(4))
    await client.saw(1, 2, 3, 4)
    assert instance.figure("duplicates") == 3


async def test_what_is_not_recorded_comes_in_its_place(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    """From a publisher without a history, which may be an older version of the app."""
    upload, instance = unique("upload"), await make_instance(broker.url)
    plain = await make_instance(broker.url, history=None, start=False)
    client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    expected: list[int | str] = []
    for number in range(1, 21):
        await instance.publish(upload, note(number))
        await plain.publisher.publish_progress(upload, f"plain {number}")
        expected += [number, f'"plain {number}"']
        # It comes to this process by another connection.
        await client.saw(*expected)
    await instance.manager.send_to_upload_subscribers(upload, "by hand")
    await client.saw(*expected, '"by hand"')
    new = await instance.watch(upload, user="bob")
    await new.saw(*range(1, 21))


@pytest.mark.parametrize(
    "member",
    [
        '{"epoch":"0123456789abcdef"}',
        '{"epoch":"0123456789abcdef","offset":0}',
        '{"epoch":"0123456789abcdef","offset":"1"}',
        '{"epoch":"0123456789abcdef","offset":-1}',
        '{"epoch":"short","offset":1}',
        '{"offset":1,"epoch":"0123456789abcdef"}',
        "null",
        "17",
        '{"epoch":"0123456789abcdef","offset":1,"more":1}',
        '{ "epoch": "0123456789abcdef", "offset": 1 }',
    ],
)
async def test_a_reserved_member_that_is_none_of_fanwires(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique, member: str
) -> None:
    """It is a payload like any other, and goes as it came."""
    upload, instance = unique("upload"), await make_instance(own_redis.url)
    connection = RecordingConnection()
    await instance.manager.connect("ada", connection)
    await instance.manager.subscribe_upload("ada", upload)
    await instance.until_figure("snapshots", 1)
    text = f'{{"a":1,"_fanwire":{member}}}'
    for _ in range(2):
        own_redis.publish(f"upload:{upload}", text)
    assert await connection.received(2) == [text, text]


async def test_a_history_that_may_not_be_read(
    make_redis: Callable[..., RedisServer],
    make_instance: InstanceFactory,
    unique: Unique,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It goes on without: what is missing cannot be had, and that is told."""
    server = make_redis(
        password="right", acl_user="app", acl_rules="allcommands resetkeys allchannels"
    )
    upload = unique("upload")
    worker = await make_instance(f"redis://127.0.0.1:{server.port}", start=False)
    instance = await make_instance(server.url)
    await worker.publish(upload, *notes(3))
    await until(lambda: instance.publisher.stats()["received"] == 3, "they came for nobody")
    client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    await worker.publish(upload, note(4), note(5))
    await client.saw(RESYNC, 4, 5)
    for number in range(6, 9):
        await worker.publish(upload, note(number))
    await client.saw(RESYNC, 4, 5, 6, 7, 8)
    (line,) = troubles(caplog)
    assert "history" in line and "right" not in line
