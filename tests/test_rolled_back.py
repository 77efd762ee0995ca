"""Redis comes back with an older copy of what it had, and would give offsets a second time."""

from typing import Any

import fanwire
from tests import histories
from tests.conftest import Unique
from tests.deadlines import until
from tests.histories import RESYNC, Instance, InstanceFactory, kept, note
from tests.redis_server import RedisServer

make_instance = histories.make_instance


async def reconnected(*instances: Instance, times: int = 1) -> None:
    """Returns when each has come back so often.

    What is published before it is known that a connection broke may have come or not, and waits.
    The listener's was cut with the publisher's, and the same thread takes note of both.
    """
    for instance in instances:
        health = instance.publisher.health
        await until(lambda health=health: health()["reconnects"] == times, "it is back")  # type: ignore[misc]


async def roll_back(server: RedisServer, instance: Instance, upload: str, *lost: Any) -> None:
    """What is published here is forgotten again, once a client of its own has it."""
    witness = await instance.watch(upload, user="witness")
    server.save()
    await instance.publish(upload, *lost)
    await until(
        lambda: [seen for seen in witness.texts if f'"number":{lost[-1]["number"]}' in seen]
    )
    server.restart()
    await reconnected(instance)


async def test_who_comes_back_is_told_though_its_offset_is_another_messages_by_then(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(own_redis.url)
    (first,) = await instance.publish(upload, note(1))
    here = await instance.watch(upload)
    await here.saw(1)
    await roll_back(own_redis, instance, upload, note(2), note(3))
    await here.saw(1, 2, 3, RESYNC, 1)
    (again,) = await instance.publish(upload, note(4))
    assert again[0] != first[0] and again[1] == 1, "not offset 2, which was note(2)'s"
    await here.saw(1, 2, 3, RESYNC, 1, RESYNC, 1)
    for offset in (1, 2, 3):
        client = await instance.watch(upload, since=(first[0], offset), user=f"since {offset}")
        await client.saw(RESYNC, 1)
    assert [message["number"] for message in kept(own_redis, upload)] == [4]
    assert [position[1] for position in await instance.publish(upload, note(5), note(6))] == [2, 3]


async def test_a_connection_that_breaks_changes_nothing(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(own_redis.url)
    before = await instance.publish(upload, note(1), note(2))
    own_redis.drop_clients()
    await reconnected(instance)
    after = await instance.publish(upload, note(3), note(4))
    own_redis.save()
    own_redis.restart()
    await reconnected(instance, times=2)
    after += await instance.publish(upload, note(5))
    assert before + after == [(before[0][0], offset) for offset in range(1, 6)]


async def test_two_publishers_begin_anew_once(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload = unique("upload")
    one, another = [await make_instance(own_redis.url) for _ in range(2)]
    await one.publish(upload, note(1))
    await another.publish(upload, note(2))
    own_redis.save()
    await one.publish(upload, note(3))
    await another.publish(upload, note(4))
    own_redis.restart()
    await reconnected(one, another)
    positions = await one.publish(upload, note(5))
    positions += await another.publish(upload, note(6))
    positions += await one.publish(upload, note(7))
    assert positions == [(positions[0][0], offset) for offset in (1, 2, 3)]


async def test_versions_stay_and_keys_are_known_again(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(own_redis.url)

    async def publish(**options: Any) -> fanwire.Receipt:
        receipt = await instance.publisher.publish_progress(
            upload, note(0), receipt=True, **options
        )
        assert isinstance(receipt, fanwire.Receipt)
        return receipt

    await publish(version=5)
    await roll_back(own_redis, instance, upload, note(1))
    assert (await publish(version=5)).status == "stale"
    fresh = await publish(version=6, idempotency_key="key")
    assert fresh.status == "published" and fresh.position is not None
    assert fresh.position[1] == 1
    assert (await publish(version=6)).status == "stale"
    assert (await publish(version=7, idempotency_key="key")).status == "duplicate"


async def test_a_version_that_was_reached_before_is_not_reached_again(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    """It stays over a new epoch that begins with a message without a version."""
    upload, instance = unique("upload"), await make_instance(own_redis.url)
    receipt = await instance.publisher.publish_progress(upload, note(1), receipt=True, version=5)
    assert receipt.status == "published"
    await roll_back(own_redis, instance, upload, note(2))
    (fresh,) = await instance.publish(upload, note(3))
    assert fresh[1] == 1
    receipt = await instance.publisher.publish_progress(upload, note(4), receipt=True, version=5)
    assert receipt.status == "stale"
