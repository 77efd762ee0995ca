"""An upload's only publisher foresees offsets, which spares Redis work. What if it is wrong?"""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

import fanwire
from tests import histories
from tests.conftest import PublisherFactory
from tests.deadlines import until
from tests.histories import FINAL, RESYNC, InstanceFactory, commands, kept, note, progress, publish
from tests.redis_server import RedisServer

make_instance = histories.make_instance

HISTORY = fanwire.History(size=200)


def key(upload: str, kind: str) -> str:
    return f"fanwire:{{{upload}}}:{kind}"


def look_ups(server: RedisServer) -> int:
    """How often Redis was asked what there is of an upload, since ``CONFIG RESETSTAT``."""
    return commands(server).get("hmget", 0)


def positions(server: RedisServer, upload: str) -> list[tuple[str, int]]:
    members = [message["_fanwire"] for message in kept(server, upload)]
    return [(member["epoch"], member["offset"]) for member in members]


async def test_redis_looks_nothing_up_for_what_is_foreseen(
    own_redis: RedisServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_redis.url, history=HISTORY)
    (epoch, first) = await publish(publisher, "u", progress(0))
    assert first == 1
    own_redis.client.config_resetstat()
    for offset in range(2, 16):
        assert await publish(publisher, "u", progress(offset)) == (epoch, offset)
    assert look_ups(own_redis) == 0
    for offset in range(16, 160):
        assert await publish(publisher, "u", note(offset)) == (epoch, offset)
    assert look_ups(own_redis) == 9, "one in sixteen, to trim the history"
    assert positions(own_redis, "u") == [(epoch, offset) for offset in range(1, 160)]
    meta = own_redis.client.hgetall(key("u", "meta"))
    assert meta[b"e"] == epoch.encode()
    assert (meta[epoch.encode()], meta[b"m"]) == (b"159", b"15")


async def test_receivers_are_told(own_redis: RedisServer, make_publisher: PublisherFactory) -> None:
    publisher = make_publisher(own_redis.url, history=HISTORY)
    await publish(publisher, "u", note(1))
    listener = own_redis.tap("upload:u")
    receipt = await publisher.publish_progress("u", note(2), receipt=True)
    assert (receipt.status, receipt.offset, receipt.receivers) == ("published", 2, 1)
    listener.close()


async def test_keys_and_versions_are_looked_at_all_the_same(
    own_redis: RedisServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_redis.url, history=HISTORY)
    await publish(publisher, "u", note(1))
    batch: list[tuple[dict[str, Any], str]] = [
        ({}, "published"),
        ({"version": 5}, "published"),
        ({}, "published"),
        ({"version": 5}, "stale"),
        ({}, "published"),
        ({"idempotency_key": "k"}, "published"),
        ({"idempotency_key": "k"}, "duplicate"),
        ({}, "published"),
        ({"version": 4}, "stale"),
    ]
    receipts = await asyncio.gather(
        *[publisher.publish_progress("u", note(2), receipt=True, **more) for more, _ in batch]
    )
    assert [receipt.status for receipt in receipts] == [status for _, status in batch]
    for more, status in (batch[3], batch[6], batch[8]):
        receipt = await publisher.publish_progress("u", note(3), receipt=True, **more)
        assert receipt.status == status
    (_, last) = await publish(publisher, "u", note(4))
    assert [offset for _, offset in positions(own_redis, "u")] == list(range(1, 9))
    assert last == 8


async def test_two_publishers_count_together(
    own_redis: RedisServer, make_publisher: PublisherFactory
) -> None:
    one, another = [make_publisher(own_redis.url, history=HISTORY) for _ in range(2)]
    at = []
    for number in range(10):
        at.append(await publish(one, "u", note(number)))
        at.append(await publish(another, "u", note(number)))
    at += [await publish(one, "u", note(number)) for number in range(3)]
    own_redis.client.config_resetstat()
    at.append(await publish(one, "u", note(3)))
    assert look_ups(own_redis) == 0, "the other one has stopped"
    assert at == [(at[0][0], offset) for offset in range(1, 25)]
    assert positions(own_redis, "u") == at


@pytest.mark.parametrize("message", [note(2), progress(2)], ids=["note", "progress"])
@pytest.mark.parametrize("lost", [("meta", "log"), ("meta",)], ids=str)
async def test_a_history_that_is_gone_is_followed_by_another(
    own_redis: RedisServer, make_instance: InstanceFactory, lost: tuple[str, ...], message: Any
) -> None:
    instance = await make_instance(own_redis.url, history=HISTORY)
    client = await instance.watch("u")
    at = await instance.publish("u", progress(0), note(1))
    assert own_redis.client.delete(*[key("u", kind) for kind in lost]) == len(lost)
    after = await instance.publish("u", message, note(3))
    assert after[0][0] != at[0][0] and [offset for _, offset in after] == [1, 2]
    assert positions(own_redis, "u") == after
    await client.saw(1, 2, RESYNC, 1, 2)
    meta = own_redis.client.hgetall(key("u", "meta"))
    assert meta.get(b"m") == (b"1" if message != note(2) else None)
    assert at[0][0].encode() not in meta, "nothing is left of the other one"
    assert own_redis.client.pttl(key("u", "meta")) > 0 < own_redis.client.pttl(key("u", "log"))


async def test_those_behind_one_that_was_wrong_stand_next_to_it(
    own_redis: RedisServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_redis.url, history=HISTORY)
    for number in range(3):
        await publish(publisher, "u", progress(number))
    own_redis.client.flushall()
    batch = [publish(publisher, "u", note(number)) for number in range(5)]
    after = await asyncio.gather(*batch)
    assert [offset for _, offset in after] == [1, 2, 3, 4, 5]
    assert positions(own_redis, "u") == after


async def test_a_log_that_is_gone_is_begun_again_within_the_history(
    own_redis: RedisServer, make_instance: InstanceFactory
) -> None:
    instance = await make_instance(own_redis.url, history=HISTORY)
    client = await instance.watch("u")
    at = await instance.publish("u", progress(0), note(1))
    assert own_redis.client.delete(key("u", "log"))
    after = await instance.publish("u", progress(2), note(3))
    assert at + after == [(at[0][0], offset) for offset in (1, 2, 3, 4)]
    assert positions(own_redis, "u") == after
    assert own_redis.client.pttl(key("u", "log")) > 0, "it expires like the other one"
    await client.saw(1, 2, 3, 4)


async def test_a_log_that_is_gone_gives_no_offset_twice(
    own_redis: RedisServer, make_instance: InstanceFactory
) -> None:
    """The log would say that the first publisher is right, which knows nothing of the second."""
    instance = await make_instance(own_redis.url, history=HISTORY)
    another = await make_instance(own_redis.url, history=HISTORY)
    client = await instance.watch("u")
    at = await instance.publish("u", note(0), note(1))
    at += await another.publish("u", note(2), note(3), note(4))
    assert own_redis.client.delete(key("u", "log"))
    at += await instance.publish("u", note(5))
    assert at == [(at[0][0], offset) for offset in range(1, 7)]
    await client.saw(1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("message", [note(0), progress(0)], ids=["note", "progress"])
async def test_a_history_that_another_publisher_has_begun_goes_on(
    own_redis: RedisServer, make_instance: InstanceFactory, count: int, message: Any
) -> None:
    """Before, behind and at the offset that the first one foresees."""
    instance = await make_instance(own_redis.url, history=HISTORY)
    another = await make_instance(own_redis.url, history=HISTORY)
    (old, *_) = await instance.publish("u", *[note(number) for number in range(5)])
    own_redis.client.flushall()
    ours = await another.publish("u", FINAL, *[note(number) for number in range(count)])
    client = await another.watch("u")
    await client.saw(*range(1, count + 2))
    after = await instance.publish("u", message, note(1))
    assert ours + after == [(ours[0][0], offset) for offset in range(1, count + 4)]
    assert old[0] != ours[0][0]
    assert positions(own_redis, "u") == ours + after, "nothing of the other one is lost"
    assert own_redis.client.pttl(key("u", "log")) > 0
    await client.saw(*range(1, count + 4))
    late = await instance.watch("u", user="late")
    state = ours + after if message == note(0) else after
    await late.saw(*[offset for _, offset in state])


@pytest.mark.parametrize("refused", ["xrange", "del"])
async def test_a_history_that_cannot_be_set_back_goes_on_behind_a_hole(
    make_redis: Callable[..., RedisServer], make_instance: InstanceFactory, refused: str
) -> None:
    rules = f"allkeys allchannels allcommands -{refused}"
    server = make_redis(password="right", acl_user="app", acl_rules=rules)
    instance = await make_instance(server.url, history=HISTORY)
    another = await make_instance(server.url, history=HISTORY)
    await instance.publish("u", *[note(number) for number in range(5)])
    server.client.flushall()
    ours = await another.publish("u", FINAL, note(1))
    after = await instance.publish("u", note(2))
    after += await another.publish("u", note(3))
    after += await instance.publish("u", note(4))
    assert ours + after == [(ours[0][0], offset) for offset in (1, 2, 7, 8, 9)]
    assert positions(server, "u") == ours + after


async def test_what_may_not_be_noted_is_refused_and_not_kept(
    make_redis: Callable[..., RedisServer], make_publisher: PublisherFactory
) -> None:
    rules = "allkeys allchannels allcommands"
    server = make_redis(password="right", acl_user="app", acl_rules=rules)
    publisher = make_publisher(server.url, history=HISTORY, strict=True)
    at = [await publish(publisher, "u", note(number)) for number in range(3)]
    server.client.acl_setuser("app", enabled=True, commands=["-hset"])
    for number in range(2):
        with pytest.raises(fanwire.PublishError):
            await publisher.publish_progress("u", note(number))
    assert positions(server, "u") == at
    server.client.acl_setuser("app", enabled=True, commands=["+hset"])
    after = await publish(publisher, "u", note(3))
    assert after[0] == at[0][0] and after[1] > at[-1][1]
    assert positions(server, "u") == [*at, after]


async def test_an_offset_that_was_used_up_stays_so_in_a_history_that_goes_on(
    make_redis: Callable[..., RedisServer], make_instance: InstanceFactory
) -> None:
    rules = "allcommands allkeys allchannels"
    server = make_redis(password="right", acl_user="app", acl_rules=rules)
    instance = await make_instance(server.url, history=HISTORY)
    another = await make_instance(server.url, history=HISTORY, strict=True)
    await instance.publish("u", *[note(number) for number in range(9)])
    server.client.flushall()
    ours = await another.publish("u", note(1), note(2))
    server.client.acl_setuser("app", enabled=True, reset_channels=True)
    with pytest.raises(fanwire.PublishError):
        await another.publisher.publish_progress("u", note(3))
    server.client.acl_setuser("app", enabled=True, channels=["*"])
    after = await instance.publish("u", note(4))
    assert ours + after == [(ours[0][0], offset) for offset in (1, 2, 4)]
    assert await another.publish("u", note(5)) == [(ours[0][0], 5)]


async def test_what_may_not_be_published_any_more_is_refused_and_not_kept(
    make_redis: Callable[..., RedisServer], make_publisher: PublisherFactory
) -> None:
    server = make_redis(
        password="right", acl_user="app", acl_rules="allcommands allkeys allchannels"
    )
    publisher = make_publisher(server.url, history=HISTORY, strict=True)
    at = [await publish(publisher, "u", progress(number)) for number in range(3)]
    server.client.acl_setuser("app", enabled=True, reset_channels=True)
    tasks = [publisher.publish_progress("u", progress(number)) for number in range(40)]
    refused = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(refusal, fanwire.PublishError) for refusal in refused), refused
    assert positions(server, "u") == at
    server.client.acl_setuser("app", enabled=True, channels=["*"])
    after = [await publish(publisher, "u", note(number)) for number in range(3)]
    assert positions(server, "u") == at + after
    assert [offset for _, offset in after] == list(range(after[0][1], after[0][1] + 3))
    assert after[0][0] == at[0][0] and after[0][1] > at[-1][1]


async def test_what_redis_has_no_memory_for_waits_and_keeps_its_place(
    own_redis: RedisServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_redis.url, history=HISTORY)
    at = [await publish(publisher, "u", note(number)) for number in range(3)]
    own_redis.client.config_set("maxmemory", 1)
    tasks = [
        asyncio.ensure_future(publisher.publish_progress("u", note(number), receipt=True))
        for number in range(3, 10)
    ]
    await until(lambda: publisher.stats()["outages"] == 1)
    own_redis.client.config_set("maxmemory", 0)
    await asyncio.gather(*tasks)
    await until(lambda: not publisher.stats()["pending_messages"], "all are published")
    assert [message["number"] for message in kept(own_redis, "u")] == list(range(10))
    assert positions(own_redis, "u") == [(at[0][0], offset) for offset in range(1, 11)]


@pytest.mark.parametrize("kind", ["meta", "log"])
async def test_a_key_that_somebody_else_has_written_is_an_error_and_stays(
    own_redis: RedisServer, make_publisher: PublisherFactory, kind: str
) -> None:
    publisher = make_publisher(own_redis.url, history=HISTORY, strict=True)
    at = [await publish(publisher, "u", progress(number)) for number in range(3)]
    own_redis.client.set(key("u", kind), "not ours")
    for number in (3, 4):
        with pytest.raises(fanwire.PublishError, match="WRONGTYPE"):
            await publisher.publish_progress("u", progress(number))
    assert own_redis.client.get(key("u", kind)) == b"not ours"
    if kind == "meta":
        assert positions(own_redis, "u") == at
    await publish(publisher, "v", note(1))


async def test_the_expiry_is_set_again_while_offsets_are_foreseen(
    own_redis: RedisServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_redis.url, history=fanwire.History(size=200, ttl=8.0))
    (epoch, _) = await publish(publisher, "u", note(0))
    offset = 1

    def left() -> int:
        return min(own_redis.client.pttl(key("u", kind)) for kind in ("meta", "log"))

    for _ in range(3):
        least = left()
        while left() <= least:
            least = left()
            assert await publish(publisher, "u", note(0)) == (epoch, offset + 1)
            offset += 1
            assert left() > 0


async def test_a_full_history_is_trimmed_and_its_milestone_stays(
    own_redis: RedisServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_redis.url, history=HISTORY)
    for number in range(500):
        assert publisher.publish_nowait("u", progress(number, number=number))
    receipt = await publisher.publish_progress("u", note(500), receipt=True)
    assert receipt.offset == 501
    length = own_redis.client.xlen(key("u", "log"))
    assert 200 <= length <= 200 + 100 + 16
    for number in range(501, 1000):
        assert publisher.publish_nowait("u", note(number))
    receipt = await publisher.publish_progress("u", note(1000), receipt=True)
    assert receipt.offset == 1001
    offsets = [offset for _, offset in positions(own_redis, "u")]
    behind = [offset for offset in offsets if offset > 500]
    assert 500 in offsets and len(offsets) <= 200 + 100 + 16
    assert behind == list(range(1002 - len(behind), 1002)) and len(behind) >= 200


class Chances:
    """Publishers, batches, keys, versions and losses by chance, and what Redis has to keep then."""

    def __init__(self, server: RedisServer, seed: int) -> None:
        self._server, self._chance = server, random.Random(seed)
        self._uploads = [f"upload {number}" for number in range(self._chance.randint(1, 3))]
        self._number = self._version = 0
        self.expected: dict[str, list[int]] = {upload: [] for upload in self._uploads}
        self.unsure: set[int] = set()
        self._offsets: dict[tuple[str, str], int] = {}

    def lose(self) -> None:
        client, upload = self._server.client, self._chance.choice(self._uploads)
        match self._chance.choice(["all", "meta", "log", "connections"]):
            case "all":
                client.flushall()
                self.expected = {upload: [] for upload in self._uploads}
            case "connections":
                self._server.drop_clients()
            case kind:
                client.delete(key(upload, kind))
                self.expected[upload] = []

    async def publish(self, publisher: fanwire.UploadProgressPublisher) -> None:
        count = self._chance.choice([1, 1, 2, 5, 40])
        batch = [(self._chance.choice(self._uploads), *self._message()) for _ in range(count)]
        receipts = await asyncio.gather(
            *[
                publisher.publish_progress(upload, message, receipt=True, **options)
                for upload, message, options in batch
            ]
        )
        for (upload, message, options), receipt in zip(batch, receipts, strict=True):
            is_old = options.get("version") == 0
            assert receipt.status in ("published", "queued") or (
                is_old and receipt.status == "stale"
            )
            if receipt.position is not None and receipt.status == "published":
                epoch, offset = receipt.position
                assert offset > self._offsets.get((upload, epoch), 0), "it is given once"
                self._offsets[upload, epoch] = offset
            if receipt.queued and is_old:
                self.unsure.add(message["number"])
            elif receipt.status != "stale":
                self.expected[upload].append(message["number"])
        await until(lambda: not publisher.stats()["pending_messages"], "all are published")

    def _message(self) -> tuple[dict[str, Any], dict[str, Any]]:
        self._number += 1
        action = self._chance.choice(["upload_progress", "note"])
        message = {"action": action, "number": self._number}
        match self._chance.randrange(10):
            case 0:
                self._version += 1
                return message, {"version": self._version}
            case 1:
                return message, {"version": 0}
            case 2:
                return message, {"idempotency_key": f"key {self._number}"}
        return message, {}


@pytest.mark.parametrize("seed", range(24))
async def test_whatever_happens_all_is_kept_in_order(
    own_redis: RedisServer, make_publisher: PublisherFactory, seed: int
) -> None:
    history, chance = fanwire.History(size=5000), random.Random(f"which {seed}")
    publishers = [make_publisher(own_redis.url, history=history) for _ in range(1 + seed % 2)]
    chances = Chances(own_redis, seed)
    for _ in range(60):
        if chance.random() < 0.25:
            chances.lose()
        await chances.publish(chance.choice(publishers))
    for upload, expected in chances.expected.items():
        numbers = {message["number"]: None for message in kept(own_redis, upload)}
        assert [number for number in numbers if number not in chances.unsure] == expected
        at = positions(own_redis, upload)
        assert [offset for _, offset in at] == sorted({offset for _, offset in at})
        assert len({epoch for epoch, _ in at}) <= 1
