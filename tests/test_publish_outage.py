"""What a publisher does with messages while its broker cannot be reached."""

import asyncio
import json
import re
from typing import Any

import pytest

import fanwire
from tests.conftest import PublisherFactory
from tests.deadlines import bounded, until
from tests.histories import kept
from tests.outages import troubles
from tests.postgres_server import OWNER, PostgresServer
from tests.redis_server import RedisServer
from tests.servers import AnyServer

HISTORY = fanwire.History()
FAILED = fanwire.Receipt("failed")
QUICK = {"connect_timeout_seconds": 0.2, "publish_timeout_seconds": 0.2}


def progress(n: int) -> dict[str, Any]:
    return {"action": "upload_progress", "payload": {"n": n}}


def done(n: int) -> dict[str, Any]:
    return {"action": "upload_completed", "n": n}


def number(message: Any) -> Any:
    return message["n"] if "n" in message else message["payload"]["n"]


class Heard:
    """Everything that is published on a server that comes back."""

    def __init__(self, server: RedisServer) -> None:
        self._pubsub = server.tap(patterns=["*"])
        self.messages: list[tuple[str, Any]] = []

    def poll(self) -> None:
        while (message := self._pubsub.get_message()) is not None:
            self.messages.append((message["channel"].decode(), json.loads(message["data"])))

    async def until(self, count: int) -> list[tuple[str, Any]]:
        def there() -> bool:
            self.poll()
            return len(self.messages) >= count

        await until(there, f"{count} messages")
        return self.messages


async def published(publisher: fanwire.UploadProgressPublisher) -> None:
    await until(lambda: not publisher.stats()["pending_messages"], "what waited is published")


async def test_what_is_published_meanwhile_waits_coalesced_and_in_order(
    own_server: AnyServer, make_publisher: PublisherFactory, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = make_publisher(own_server.url, history=HISTORY)
    await publisher.publish_progress("a", progress(0))
    own_server.kill()
    statuses = []
    for n in range(1, 6):
        receipt = await bounded(publisher.publish_progress("a", progress(n), receipt=True))
        statuses.append(receipt.status)
        await bounded(publisher.publish_progress("b", progress(n)))
    await publisher.publish_progress("a", done(6))
    await publisher.publish_progress("a", progress(7))
    await publisher.publish_to_user("ada", {"n": 8})
    assert statuses == ["queued"] * 5
    stats = publisher.stats()
    assert stats["publish_queued"] == 13
    assert stats["publish_failed"] == 0
    assert stats["pending_messages"] == 13 - stats["publish_coalesced"]
    assert stats["publish_coalesced"] >= 7  # the very first may have been taken out already
    own_server.start()
    await published(publisher)
    assert publisher.stats()["published"] == 14 - stats["publish_coalesced"]
    numbers = [number(message) for message in kept(own_server, "a")]
    assert numbers[-3:] == [5, 6, 7]
    assert numbers == sorted(set(numbers))
    again = await publisher.publish_progress("a", progress(9), receipt=True)
    assert again.status == "published"
    lines = [line for line in caplog.messages if "publishing" in line]
    assert len(lines) == 2 and len(troubles(caplog)) == 1
    assert "messages wait until this ends" in lines[0]
    assert "13 messages waited" in lines[1]


async def test_without_an_outbox_a_message_fails_at_once(
    own_server: AnyServer, make_publisher: PublisherFactory
) -> None:
    for options in ({"outbox": None}, {"strict": True}):
        publisher = make_publisher(own_server.url, **options)
        own_server.kill()
        if "strict" in options:
            with pytest.raises(fanwire.PublishError):
                await bounded(publisher.publish_progress("a", progress(1)))
        else:
            receipt = await bounded(publisher.publish_progress("a", progress(1), receipt=True))
            assert receipt == FAILED
        assert publisher.stats()["publish_failed"] == 1
        assert publisher.stats()["pending_messages"] == 0
        own_server.start()


async def test_an_outbox_that_is_full(
    own_server: AnyServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_server.url, outbox=fanwire.Outbox(messages=3))
    own_server.kill()
    await bounded(publisher.publish_progress("x", done(0)))
    for upload in "ab":
        assert publisher.publish_nowait(upload, progress(1))
    assert publisher.publish_nowait("c", progress(2))
    assert publisher.publish_nowait("d", done(3))
    assert publisher.publish_nowait("e", done(4))
    assert not publisher.publish_nowait("f", done(5))
    receipt = await publisher.publish_progress("g", done(6), receipt=True)
    assert receipt.status == "failed"
    stats = publisher.stats()
    assert (stats["publish_dropped"], stats["publish_refused"]) == (3, 2)
    assert stats["pending_messages"] == 3
    own_server.start()
    await published(publisher)
    assert publisher.stats()["published"] == 3


async def test_an_outbox_is_bounded_in_bytes(
    own_server: AnyServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_server.url, outbox=fanwire.Outbox(bytes=1_000))
    own_server.kill()
    await bounded(publisher.publish_progress("x", "x" * 398))
    assert publisher.publish_nowait("x", "x" * 398)
    assert not publisher.publish_nowait("x", "x" * 398)
    assert publisher.publish_nowait("x", "x" * 198)
    assert publisher.stats()["pending_bytes"] == 1_000


async def test_what_has_waited_for_too_long_expires(
    own_server: AnyServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_server.url, outbox=fanwire.Outbox(seconds=0.05))
    own_server.kill()
    for n in range(3):
        await bounded(publisher.publish_progress("x", done(n)))
    await until(lambda: publisher.stats()["publish_expired"] == 3, "all have expired")
    assert publisher.stats()["pending_messages"] == 0
    own_server.start()

    async def publish_anew() -> None:
        while not publisher.stats()["published"]:
            await publisher.publish_progress("x", done(4))
            await asyncio.sleep(0.005)

    await bounded(publish_anew())


async def test_messages_of_unclear_fate_are_published_exactly_once_with_a_history(
    own_server: AnyServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_server.url, history=HISTORY, **QUICK)
    await publisher.publish_progress("u", done(0))
    for stall in range(3):
        own_server.pause()
        receipts = await bounded(
            asyncio.gather(
                *(
                    publisher.publish_progress("u", done(1 + 20 * stall + n), receipt=True)
                    for n in range(20)
                )
            )
        )
        assert {receipt.status for receipt in receipts} == {"queued"}
        own_server.resume()
        await published(publisher)
    numbers = [message["n"] for message in kept(own_server, "u")]
    assert numbers == list(range(61))
    assert publisher.stats()["published"] == 61
    assert publisher.stats()["publish_failed"] == 0


async def test_messages_of_unclear_fate_are_not_sent_again_without_a_history(
    own_redis: RedisServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_redis.url)
    await publisher.publish_progress("u", 0)
    heard = Heard(own_redis)
    own_redis.pause()
    receipt = await bounded(publisher.publish_progress("u", 1, receipt=True))
    assert receipt.status == "failed"
    later = await bounded(publisher.publish_progress("u", 2, receipt=True))
    assert later.status == "queued"
    own_redis.resume()
    await published(publisher)
    assert publisher.stats()["publish_failed"] == 1
    messages = await heard.until(2)
    assert sorted(message for _, message in messages) == [1, 2]


async def test_connections_that_are_cut_lose_and_repeat_nothing_with_a_history(
    own_server: AnyServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_server.url, history=fanwire.History(size=5_000))
    for n in range(2_000):
        assert publisher.publish_nowait("u", done(n))
        if n % 200 == 100:
            own_server.drop_clients()
            await asyncio.sleep(0)
    await published(publisher)
    numbers = [message["n"] for message in kept(own_server, "u")]
    assert numbers == list(range(2_000))
    assert publisher.stats()["publish_failed"] == 0


async def test_stop_lets_out_what_waits_when_the_broker_comes_back(
    own_server: AnyServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_server.url)
    own_server.kill()
    await bounded(publisher.publish_progress("u", done(1)))
    stopping = asyncio.ensure_future(publisher.stop(drain_seconds=20.0))
    await asyncio.sleep(0)
    own_server.start()
    await bounded(stopping)
    assert publisher.stats()["published"] == 1
    assert publisher.stats()["publish_failed"] == 0


@pytest.mark.parametrize("drain_seconds", [0, 0.05])
async def test_stop_does_not_wait_for_a_broker_that_hangs(
    own_server: AnyServer, make_publisher: PublisherFactory, drain_seconds: float
) -> None:
    publisher = make_publisher(own_server.url)
    await publisher.publish_progress("u", 1)
    own_server.pause()
    try:
        for n in range(5):
            assert publisher.publish_nowait("u", n)
        await bounded(publisher.stop(drain_seconds=drain_seconds), deadline_seconds=2.0)
        assert publisher.stats()["publish_failed"] == 5
    finally:
        own_server.resume()


@pytest.mark.parametrize("drain_seconds", [-1, float("nan"), float("inf")])
async def test_a_time_to_drain_must_be_one(
    make_publisher: PublisherFactory, drain_seconds: float
) -> None:
    with pytest.raises(fanwire.ConfigError, match="drain_seconds"):
        await make_publisher("memory://").stop(drain_seconds=drain_seconds)
    with pytest.raises(fanwire.ConfigError, match="drain_seconds"):
        await fanwire.RedisPubSub("memory://").stop(drain_seconds=drain_seconds)
    with pytest.raises(fanwire.ConfigError, match="drain_seconds"):
        await fanwire.MemoryPubSub().stop(drain_seconds=drain_seconds)


def lock_out(server: AnyServer) -> None:
    if isinstance(server, PostgresServer):
        server.client.execute(f"ALTER ROLE {OWNER} NOLOGIN".encode())
    else:
        client: Any = server.client
        client.execute_command("ACL", "SETUSER", "default", "resetpass", ">other")
    server.drop_clients()


def let_in(server: AnyServer) -> None:
    if isinstance(server, PostgresServer):
        server.client.execute(f"ALTER ROLE {OWNER} LOGIN".encode())
    else:
        client: Any = server.client
        client.execute_command("ACL", "SETUSER", "default", "nopass")


async def test_who_was_let_in_before_waits_to_be_let_in_again(
    own_server: AnyServer, make_publisher: PublisherFactory, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = make_publisher(own_server.url, history=HISTORY)
    await publisher.publish_progress("a", progress(0))
    lock_out(own_server)
    receipts = [
        await bounded(publisher.publish_progress("a", done(n), receipt=True)) for n in range(1, 4)
    ]
    assert [receipt.status for receipt in receipts] == ["queued"] * 3
    let_in(own_server)
    await published(publisher)
    assert [number(message) for message in kept(own_server, "a")][-3:] == [1, 2, 3]
    assert publisher.stats()["publish_failed"] == 0
    assert "messages wait until this ends" in troubles(caplog)[0]


async def test_who_never_was_let_in_is_told_at_once(
    own_server: AnyServer, make_publisher: PublisherFactory, caplog: pytest.LogCaptureFixture
) -> None:
    lock_out(own_server)
    publisher = make_publisher(own_server.url)
    receipt = await bounded(publisher.publish_progress("a", progress(1), receipt=True))
    assert receipt == FAILED
    line = troubles(caplog)[0]
    assert "messages are lost until this ends" in line
    assert re.search("not permitted to log in|NOAUTH", line)
    let_in(own_server)
    receipt = await bounded(publisher.publish_progress("a", progress(2), receipt=True))
    assert receipt.status == "published"


async def test_all_that_failed_are_in_the_line_that_ends_an_outage(
    own_server: AnyServer, make_publisher: PublisherFactory, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = make_publisher(own_server.url, outbox=None)
    own_server.kill()
    for n in range(3):
        assert await bounded(publisher.publish_progress("a", done(n), receipt=True)) == FAILED
    own_server.start()
    failed = 3
    while (await bounded(publisher.publish_progress("a", done(3), receipt=True))) == FAILED:
        failed += 1
    assert f"and {failed} others have failed" in caplog.messages[-1]
