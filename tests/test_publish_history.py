"""What is published with a history: what goes over the wire, what is kept, and what is told."""

import asyncio
import os
import time
from typing import Any

import pytest
import redis

import fanwire
from tests.conftest import Broker, PublisherFactory, RedisFactory, Unique
from tests.deadlines import DEADLINE_SECONDS, bounded, until
from tests.histories import kept
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer

HISTORY = fanwire.History(size=4, ttl=100.0)
PROGRESS = {"action": "upload_progress", "payload": {"progress": 1}}
NOTE = {"action": "note"}

with_history = pytest.mark.parametrize("broker", ["memory", "redis", "postgres"], indirect=True)
served = pytest.mark.parametrize("broker", ["redis", "postgres"], indirect=True)


def offsets(broker: Broker, upload_id: str) -> list[int]:
    """Where the messages stand that are kept."""
    assert broker.server is not None
    return [message["_fanwire"]["offset"] for message in kept(broker.server, upload_id)]


@with_history
async def test_a_receipt_tells_where_a_message_stands(
    broker: Broker, make_publisher: PublisherFactory, unique: Unique
) -> None:
    publisher = make_publisher(broker.url, history=HISTORY)
    upload = unique("upload")
    receipts = [await publisher.publish_progress(upload, PROGRESS, receipt=True) for _ in range(3)]
    assert [receipt.status for receipt in receipts] == ["published"] * 3
    assert [receipt.offset for receipt in receipts] == [1, 2, 3]
    assert len({receipt.epoch for receipt in receipts}) == 1
    assert receipts[0].position == (receipts[0].epoch, 1)
    # PostgreSQL does not tell how many received it.
    of_postgres = isinstance(broker.server, PostgresServer)
    assert (receipts[0].receivers is None) == of_postgres and not receipts[0].queued
    nothing: object = await publisher.publish_progress(upload, PROGRESS)  # type: ignore[func-returns-value]
    assert nothing is None
    other = await publisher.publish_progress(unique("other"), PROGRESS, receipt=True)
    assert other.offset == 1 and other.epoch != receipts[0].epoch


@with_history
async def test_a_key_is_published_once_and_an_old_version_never(
    broker: Broker, make_publisher: PublisherFactory, unique: Unique
) -> None:
    publisher = make_publisher(broker.url, history=HISTORY)
    worker = make_publisher(broker.url, history=HISTORY)
    upload = unique("upload")

    async def publish(by: fanwire.UploadProgressPublisher, **options: Any) -> tuple[Any, Any]:
        receipt = await by.publish_progress(upload, PROGRESS, receipt=True, **options)
        return (receipt.status, receipt.offset)

    assert await publish(publisher, idempotency_key="k", version=3) == ("published", 1)
    assert await publish(worker, idempotency_key="k", version=9) == ("duplicate", 1)
    assert await publish(worker, version=3) == ("stale", None)
    assert await publish(worker, version=2) == ("stale", None)
    assert await publish(worker) == ("published", 2)
    assert await publish(worker, version=4) == ("published", 3)
    assert worker.publish_nowait(upload, PROGRESS, version=4)
    assert worker.publish_nowait(upload, PROGRESS, idempotency_key="k")
    await until(lambda: worker.stats()["publish_duplicates"] == 2, "the second duplicate")
    assert worker.stats()["publish_stale"] == 3
    assert worker.stats()["published"] == 2
    assert worker.stats()["publish_failed"] == 0


@served
async def test_a_strict_publisher_raises_what_is_stale(
    broker: Broker, make_publisher: PublisherFactory, unique: Unique
) -> None:
    publisher = make_publisher(broker.url, history=HISTORY, strict=True)
    upload = unique("upload")
    await publisher.publish_progress(upload, PROGRESS, version=1)
    with pytest.raises(fanwire.PublishError, match="stale"):
        await publisher.publish_progress(upload, PROGRESS, version=1)


@pytest.mark.parametrize("message", [[1], 1, "{}", None, b"[]"])
async def test_what_is_no_object_is_refused(
    make_publisher: PublisherFactory, message: object
) -> None:
    publisher = make_publisher("memory://", history=HISTORY)
    with pytest.raises(TypeError, match="must be a JSON object"):
        await publisher.publish_progress("u", message)
    with pytest.raises(TypeError, match="must be a JSON object"):
        publisher.publish_nowait("u", message)


@pytest.mark.parametrize("message", [{"_fanwire": 1}, b'{"a":1,"\\u005ffanwire":{}}'])
async def test_the_reserved_member_is_refused(
    make_publisher: PublisherFactory, message: object
) -> None:
    publisher = make_publisher("memory://", history=HISTORY)
    with pytest.raises(ValueError, match='must not have the member "_fanwire"'):
        await publisher.publish_progress("u", message)


@pytest.mark.parametrize(
    ("version", "error"),
    [(-1, ValueError), (2**53, ValueError), (True, TypeError), ("1", TypeError)],
)
async def test_a_version_must_be_one(
    make_publisher: PublisherFactory, version: Any, error: type[Exception]
) -> None:
    publisher = make_publisher("memory://", history=HISTORY)
    with pytest.raises(error, match="version must be"):
        await publisher.publish_progress("u", {}, version=version)


@pytest.mark.parametrize("options", [{"version": 1}, {"idempotency_key": "k"}])
async def test_keys_and_versions_need_a_history(
    make_publisher: PublisherFactory, options: dict[str, Any]
) -> None:
    publisher = make_publisher("memory://")
    with pytest.raises(ValueError, match=r"history=fanwire\.History"):
        await publisher.publish_progress("u", {}, **options)
    with pytest.raises(ValueError, match=r"history=fanwire\.History"):
        publisher.publish_nowait("u", {}, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: fanwire.History(size=0),
        lambda: fanwire.History(ttl=0),
        lambda: fanwire.History(ttl=float("nan")),
        lambda: fanwire.History(size=True),
        lambda: fanwire.Outbox(messages=0),
        lambda: fanwire.Outbox(bytes=0),
        lambda: fanwire.Outbox(seconds=-1),
        lambda: fanwire.UploadProgressPublisher(
            "memory://", history=fanwire.History(final=fanwire.CoalesceRule("no pointer", ()))
        ),
    ],
)
def test_settings_that_make_no_sense(make: Any) -> None:
    with pytest.raises(fanwire.ConfigError):
        make()


def test_settings_of_another_kind() -> None:
    with pytest.raises(TypeError, match=r"fanwire\.History or None, not int"):
        fanwire.UploadProgressPublisher("memory://", history=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"fanwire\.Outbox or None, not int"):
        fanwire.UploadProgressPublisher("memory://", outbox=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "before"),
    [
        ({"a": [1, "}"]}, b'{"a":[1,"}"],'),
        ({}, b"{"),
        (b' { "a" : "\\u00fc" } ', b'{"a" : "\\u00fc",'),
    ],
)
async def test_the_reserved_member_is_the_last_one_and_the_rest_as_it_was(
    redis_server: RedisServer,
    make_publisher: PublisherFactory,
    unique: Unique,
    message: object,
    before: bytes,
) -> None:
    publisher = make_publisher(redis_server.url, history=HISTORY)
    upload = unique("upload")
    client: Any = redis_server.client
    heard = client.pubsub(ignore_subscribe_messages=True)
    heard.subscribe(f"upload:{upload}")
    await until(lambda: redis_server.client.pubsub_numsub(f"upload:{upload}")[0][1], "subscribed")
    receipt = await publisher.publish_progress(upload, message, receipt=True)
    assert receipt.receivers == 1
    found: list[Any] = []

    def received() -> bool:
        found.append(heard.get_message())
        return found[-1] is not None

    await until(received, "the message")
    member = f'"_fanwire":{{"epoch":"{receipt.epoch}","offset":1}}}}'.encode()
    assert found[-1]["data"] == before + member
    assert redis_server.client.xrange(f"fanwire:{{{upload}}}:log")[0][1] == {  # type: ignore[index]
        b"d": before + member
    }
    heard.close()


async def test_without_a_history_nothing_is_kept_or_added(
    own_redis: RedisServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_redis.url)
    receipt = await publisher.publish_progress("u", [1], receipt=True)
    assert receipt == fanwire.Receipt("published", receivers=0)
    recording = make_publisher(own_redis.url, history=HISTORY)
    await recording.publish_to_user("ada", {"a": 1})
    await recording.broadcast("t", {"a": 1})
    assert own_redis.client.keys() == []
    commands: Any = own_redis.client.info("commandstats")
    assert commands["cmdstat_publish"]["calls"] == 3
    assert "cmdstat_evalsha" not in commands


@served
async def test_what_is_kept_is_bounded_and_keeps_the_milestone(
    broker: Broker, make_publisher: PublisherFactory, unique: Unique
) -> None:
    publisher = make_publisher(broker.url, history=HISTORY)
    upload = unique("upload")
    for message in [NOTE, PROGRESS, *[NOTE] * 10]:
        await publisher.publish_progress(upload, message, idempotency_key=str(os.urandom(4)))
    assert offsets(broker, upload) == [2, 9, 10, 11, 12]
    await publisher.publish_progress(upload, {"action": "upload_failed"})
    for _ in range(3):
        await publisher.publish_progress(upload, NOTE)
    assert offsets(broker, upload) == [13, 14, 15, 16]
    if isinstance(broker.server, RedisServer):
        assert broker.server.client.zcard(f"fanwire:{{{upload}}}:keys") == 4


@served
async def test_a_long_history_is_bounded_too(
    broker: Broker, make_publisher: PublisherFactory, unique: Unique
) -> None:
    publisher = make_publisher(broker.url, history=fanwire.History(size=100))
    upload = unique("upload")
    for _ in range(1_000):
        assert publisher.publish_nowait(upload, PROGRESS)
    await until(lambda: publisher.stats()["published"] == 1_000, "all are published")
    found = offsets(broker, upload)
    assert 100 <= len(found) <= 200
    assert found == list(range(1_001 - len(found), 1_001))


async def test_what_is_kept_expires(
    redis_server: RedisServer, make_publisher: PublisherFactory, unique: Unique
) -> None:
    publisher = make_publisher(redis_server.url, history=HISTORY)
    upload = unique("upload")
    client: Any = redis_server.client
    first = await publisher.publish_progress(
        upload, PROGRESS, receipt=True, idempotency_key="k", version=7
    )
    names = [f"fanwire:{{{upload}}}:{kind}" for kind in ("meta", "log", "keys")]
    assert sorted(client.keys(f"fanwire:{{{upload}}}:*")) == sorted(n.encode() for n in names)
    for name in names:
        assert 100_000 < client.pttl(name) <= 112_500, name
    # As if much of that had passed since the last one.
    (source,) = [field for field in client.hkeys(names[0]) if field.startswith(b"s")]
    client.hincrby(names[0], source.decode(), -20_000_000)
    for name in names:
        client.pexpire(name, 92_500)
    await publisher.publish_progress(upload, PROGRESS)
    assert all(client.pttl(name) > 100_000 for name in names[:2])
    client.delete(names[0])
    anew = await publisher.publish_progress(
        upload, PROGRESS, receipt=True, idempotency_key="k", version=1
    )
    assert (anew.status, anew.offset) == ("published", 1)
    assert anew.epoch != first.epoch
    assert [message["_fanwire"]["offset"] for message in kept(redis_server, upload)] == [1]


async def test_scripts_that_the_server_forgets_are_told_again(
    own_redis: RedisServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_redis.url, history=HISTORY, strict=True)
    await publisher.publish_progress("u", PROGRESS)
    for n in range(3):
        own_redis.client.script_flush()
        receipts = await asyncio.gather(
            *(publisher.publish_progress("u", {"n": i}, receipt=True) for i in range(20))
        )
        assert [r.offset for r in receipts] == list(range(2 + 20 * n, 22 + 20 * n))
    assert publisher.stats()["publish_failed"] == 0


async def test_a_server_that_was_restarted_begins_another_history(
    own_redis: RedisServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_redis.url, history=HISTORY)
    first = await publisher.publish_progress("u", PROGRESS, receipt=True)
    own_redis.restart()
    second = await bounded(publisher.publish_progress("u", PROGRESS, receipt=True))
    await until(lambda: not publisher.stats()["pending_messages"], "it is published")
    assert second.status in ("published", "queued")
    (message,) = kept(own_redis, "u")
    assert message["_fanwire"]["offset"] == 1
    assert message["_fanwire"]["epoch"] != first.epoch


async def test_publishers_that_come_and_go_leave_little_behind(
    redis_server: RedisServer, make_publisher: PublisherFactory, unique: Unique
) -> None:
    upload = unique("upload")
    for _ in range(70):
        publisher = make_publisher(redis_server.url, history=HISTORY)
        await publisher.publish_progress(upload, PROGRESS)
        await publisher.stop()
    meta = redis_server.client.hgetall(f"fanwire:{{{upload}}}:meta")
    assert len(meta) <= 66
    assert meta[meta[b"e"]] == b"70"


async def test_who_may_not_record_is_refused_and_may_publish_to_users(
    make_redis: RedisFactory, make_publisher: PublisherFactory
) -> None:
    server = make_redis(password="hunter2", acl_user="web", acl_rules="+@all -@scripting ~* &*")
    publisher = make_publisher(server.url, history=HISTORY)
    receipt = await publisher.publish_progress("u", PROGRESS, receipt=True)
    assert receipt.status == "failed"
    await publisher.publish_to_user("ada", PROGRESS)
    assert publisher.stats()["published"] == 1
    assert publisher.stats()["publish_failed"] == 1

    server.client.acl_setuser("web", enabled=True, categories=["+@scripting"])
    end = time.monotonic() + DEADLINE_SECONDS
    while publisher.stats()["published"] == 1:
        assert time.monotonic() < end, "who may record again does, on the same connection"
        receipt = await publisher.publish_progress("u", PROGRESS, receipt=True)


async def test_a_replica_that_is_promoted_gets_what_waited(
    make_redis: RedisFactory, make_publisher: PublisherFactory
) -> None:
    primary, replica = make_redis(), make_redis()
    replica.client.replicaof("127.0.0.1", primary.port)
    publisher = make_publisher(replica.url, history=HISTORY)
    receipts = [
        await bounded(publisher.publish_progress("u", {"n": n}, receipt=True)) for n in range(3)
    ]
    assert [receipt.status for receipt in receipts] == ["queued"] * 3
    replica.client.replicaof("NO", "ONE")
    await until(lambda: publisher.stats()["published"] == 3, "what waited is published")
    assert [message["n"] for message in kept(replica, "u")] == [0, 1, 2]
    assert isinstance(replica.client, redis.Redis)


@served
async def test_a_forked_child_publishes_under_a_name_of_its_own(
    broker: Broker, make_publisher: PublisherFactory, unique: Unique
) -> None:
    publisher = make_publisher(broker.url, history=HISTORY)
    upload = unique("upload")
    await publisher.publish_progress(upload, {"by": "parent"})
    child = os.fork()
    if child == 0:
        code = 1
        try:
            asyncio.run(publisher.publish_progress(upload, {"by": "child"}))
            code = 0
        finally:
            os._exit(code)
    assert (await asyncio.to_thread(os.waitpid, child, 0))[1] == 0
    await publisher.publish_progress(upload, {"by": "parent again"})
    assert broker.server is not None
    by = [message["by"] for message in kept(broker.server, upload)]
    assert by == ["parent", "child", "parent again"]
