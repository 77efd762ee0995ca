"""The current state where the broker, the listener or the history was not there all the time."""

from collections.abc import Callable

import pytest

import fanwire
from tests import histories
from tests.conftest import Broker, Unique
from tests.connections import RecordingConnection
from tests.deadlines import bounded, until
from tests.histories import (
    Client,
    InstanceFactory,
    commands,
    faults,
    note,
    progress,
)
from tests.redis_server import RedisServer
from tests.servers import AnyServer

make_instance = histories.make_instance

DONE = fanwire.CoalesceRule("/kind", ("done",))


# A broker that is not there


@pytest.mark.parametrize("down", ["killed", "paused"])
async def test_it_comes_when_the_broker_is_back(
    own_server: AnyServer, make_instance: InstanceFactory, unique: Unique, down: str
) -> None:
    upload = unique("upload")
    worker = await make_instance(own_server.url, start=False)
    await worker.publish(upload, note(1), progress(1), note(2))
    instance = await make_instance(
        own_server.url, connect_timeout_seconds=0.5, publish_timeout_seconds=0.5
    )
    await until(lambda: instance.publisher.health()["state"] == "live", "it listens")
    own_server.save()
    take_down: dict[str, Callable[[], None]] = {
        "killed": own_server.kill,
        "paused": own_server.pause,
    }
    take_down[down]()
    try:
        client = await bounded(instance.watch(upload))
        await until(lambda: instance.publisher.health()["state"] == "degraded", "it is noticed")
        unnamed = Client("unnamed")
        await bounded(instance.manager.connect("bob", unnamed))
        await bounded(instance.manager.subscribe_upload("bob", upload))
        assert client.texts == unnamed.texts == []
    finally:
        {"killed": own_server.start, "paused": own_server.resume}[down]()
    await client.saw(2, 3)
    await unnamed.saw(2, 3)
    assert faults(client.texts) == []


async def test_it_comes_when_the_broker_was_never_there(
    make_redis: Callable[..., RedisServer], make_instance: InstanceFactory, unique: Unique
) -> None:
    server, upload = make_redis(), unique("upload")
    await (await make_instance(server.url, start=False)).publish(upload, progress(1))
    server.client.save()
    server.kill()
    instance = await make_instance(server.url)
    client = await bounded(instance.watch(upload))
    server.start()
    await client.saw(1)


# Managers and listeners


async def test_a_manager_that_is_made_after_the_start(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload = unique("upload")
    worker = await make_instance(broker.url, start=False)
    positions = await worker.publish(upload, note(1), progress(1), note(2))
    publisher = fanwire.UploadProgressPublisher(broker.url, history=fanwire.History())
    await publisher.start()
    try:
        for _ in range(2):
            manager, new, resuming = fanwire.init_manager(), Client("new"), Client("resuming")
            for client, since in ((new, None), (resuming, positions[0])):
                await manager.connect("ada", client)
                await manager.subscribe_upload("ada", upload, connection=client, since=since)
            await new.saw(2, 3)
            await resuming.saw(2, 3)
    finally:
        await publisher.stop()


async def test_a_wish_before_the_start(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload = unique("upload")
    instance = await make_instance(broker.url, start=False)
    positions = await instance.publish(upload, note(1), progress(1), note(2), note(3))
    new = await instance.watch(upload)
    resuming = await instance.watch(upload, user="bob", since=positions[2])
    await instance.publisher.start()
    await new.saw(2, 3, 4)
    await resuming.saw(4)


async def test_what_was_published_while_it_was_stopped(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    worker = await make_instance(broker.url, start=False)
    client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    await worker.publish(upload, note(1), progress(1))
    await client.saw(1, 2)
    await instance.publisher.stop()
    await worker.publish(upload, note(2), progress(2), note(3))
    late = await instance.watch(upload, user="bob")
    assert late.texts == []
    await instance.publisher.start()
    await client.saw(1, 2, 3, 4, 5)
    await late.saw(4, 5)


# Without a history


async def test_without_a_history_the_options_mean_nothing(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload = unique("upload")
    instance = await make_instance(broker.url, history=None)
    worker = await make_instance(broker.url, start=False)
    (position,) = await worker.publish(upload, progress(1))
    await until(lambda: instance.publisher.stats()["unwatched"] == 1, "it came for nobody")
    client = await instance.watch(upload)
    other = await instance.watch(upload, user="bob", since=position)
    await instance.manager.subscribe_upload("ada", upload, since=("garbage", 7))
    await worker.publish(upload, note(1))
    await instance.publisher.publish_progress(upload, "plain")
    for watching in (client, other):
        await watching.saw(2, '"plain"')
    figures = ("snapshots", "recovered", "resyncs", "duplicates", "gaps")
    assert [instance.figure(name) for name in figures] == [0] * 5


async def test_without_a_history_wire_and_keys_are_untouched(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload = unique("upload")
    instance = await make_instance(own_redis.url, history=None)
    client = await instance.watch(upload)
    texts = ['{"action":"upload_progress","payload":{"progress_percent":1}}', "[1]", '"x"']
    for number, text in enumerate(texts):
        await instance.publisher.publish_progress(upload, text.encode())
        await client.received(number + 1)
    assert client.texts == texts
    told = set(commands(own_redis))
    assert told - {"hello", "client|setname", "client|setinfo", "ping"} == {"psubscribe", "publish"}
    assert own_redis.client.dbsize() == 0


async def test_one_with_a_history_and_nothing_recorded(
    broker: Broker, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(broker.url)
    plain = await make_instance(broker.url, history=None, start=False)
    connection = RecordingConnection()
    await instance.manager.connect("ada", connection)
    await instance.manager.subscribe_upload("ada", upload)
    for number in range(3):
        await plain.publisher.publish_progress(upload, number)
    assert await connection.received(3) == ["0", "1", "2"]
