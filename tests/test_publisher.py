"""What every broker has to do: one suite over the embedded broker and a real Redis."""

import asyncio
import json
from typing import Any

import pytest

import fanwire
from tests.conftest import Broker, PublisherFactory, Unique, WatcherFactory
from tests.connections import (
    FailingConnection,
    RecordingConnection,
    SlowConnection,
    StallingConnection,
)
from tests.deadlines import until
from tests.messages import completed, progress
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer


async def test_a_model_reaches_the_watcher_of_another_instance(
    broker: Broker, make_watcher: WatcherFactory, make_publisher: PublisherFactory
) -> None:
    watcher = await make_watcher(broker.url)
    other = make_publisher(broker.url)
    messages = [progress(watcher.upload_id, 10), completed(watcher.upload_id)]
    for message in messages:
        await other.publish_progress(watcher.upload_id, message)
    assert await watcher.connection.received(2) == [m.model_dump_json() for m in messages]


async def test_a_message_to_a_user(
    broker: Broker, make_watcher: WatcherFactory, make_publisher: PublisherFactory
) -> None:
    watcher = await make_watcher(broker.url)
    await make_publisher(broker.url).publish_to_user(watcher.user_id, {"action": "batch_progress"})
    assert await watcher.connection.received(1) == ['{"action":"batch_progress"}']


async def test_the_publishing_instance_receives_too(
    broker: Broker, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(broker.url)
    await watcher.publisher.publish_progress(watcher.upload_id, {"n": 1})
    assert await watcher.connection.received(1) == ['{"n":1}']


async def test_only_watchers_of_the_very_upload_and_the_very_user(
    broker: Broker, make_watcher: WatcherFactory, unique: Unique
) -> None:
    watcher = await make_watcher(broker.url)
    publisher, upload_id, user_id = watcher.publisher, watcher.upload_id, watcher.user_id
    for other in [upload_id + "0", upload_id[:-1], upload_id + ":", "", "*", user_id]:
        await publisher.publish_progress(other, "not yours")
    for other in [user_id + "0", user_id[:-1], "", "*", upload_id]:
        await publisher.publish_to_user(other, "not yours")
    await publisher.publish_progress(upload_id, "yours")
    # Channels of one publisher keep their order, so whatever went wrong is here by now.
    assert await watcher.connection.received(1) == ['"yours"']


async def test_every_connection_of_every_watcher(
    broker: Broker, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(broker.url)
    tabs = [RecordingConnection(f"tab {n}") for n in range(3)]
    for tab in tabs:
        await watcher.manager.connect(watcher.user_id, tab)
    friend = RecordingConnection("friend")
    await watcher.manager.connect("friend", friend)
    await watcher.manager.subscribe_upload("friend", watcher.upload_id)
    await watcher.publisher.publish_progress(watcher.upload_id, {"n": 1})
    for connection in [*tabs, friend, watcher.connection]:
        assert await connection.received(1) == ['{"n":1}']


async def test_subscribing_and_leaving_while_messages_flow(
    broker: Broker, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(broker.url)
    late = RecordingConnection("late")
    await watcher.publisher.publish_progress(watcher.upload_id, 1)
    await watcher.connection.received(1)
    await watcher.manager.connect("late", late)
    await watcher.manager.subscribe_upload("late", watcher.upload_id)
    await watcher.publisher.publish_progress(watcher.upload_id, 2)
    await late.received(1)
    await watcher.connection.received(2)
    await watcher.manager.unsubscribe_upload("late", watcher.upload_id)
    await watcher.publisher.publish_progress(watcher.upload_id, 3)
    assert await watcher.connection.received(3) == ["1", "2", "3"]
    assert late.texts == ["2"]


@pytest.mark.parametrize(
    "odd",
    ["", "ü-検査-🚀", "a:b", "upload:*", "[a-z]?*", "line\r\nbreak", "nul\x00byte", "$5"],
    ids=ascii,
)
async def test_ids_are_any_text(broker: Broker, make_watcher: WatcherFactory, odd: str) -> None:
    if isinstance(broker.server, PostgresServer):
        odd = odd.replace("\0", "\1")  # it cannot carry a NUL, and says so
    watcher = await make_watcher(broker.url, upload_id=odd)
    await watcher.manager.connect(odd, watcher.connection)
    await watcher.publisher.publish_progress(odd, "to the upload")
    await watcher.publisher.publish_to_user(odd, "to the user")
    assert await watcher.connection.received(2) == ['"to the upload"', '"to the user"']


@pytest.mark.parametrize("name", [None, 7, b"bytes", ["list"]], ids=lambda v: type(v).__name__)
async def test_ids_of_other_types(
    broker: Broker, make_publisher: PublisherFactory, name: Any
) -> None:
    publisher = make_publisher(broker.url)
    with pytest.raises(TypeError):
        await publisher.publish_progress(name, {})
    with pytest.raises(TypeError):
        await publisher.publish_to_user(name, {})
    with pytest.raises(TypeError):
        publisher.publish_nowait(name, {})
    with pytest.raises(TypeError):
        publisher.publish_to_user_nowait(name, {})


async def test_an_id_that_utf8_cannot_carry(
    broker: Broker, make_publisher: PublisherFactory
) -> None:
    with pytest.raises(ValueError):
        await make_publisher(broker.url).publish_progress("\ud800", {})


async def test_a_large_message(broker: Broker, make_watcher: WatcherFactory) -> None:
    watcher = await make_watcher(broker.url)
    text = "ü" * 500_000
    await watcher.publisher.publish_progress(watcher.upload_id, text)
    (received,) = await watcher.connection.received(1)
    assert received == json.dumps(text, ensure_ascii=False)


async def test_text_of_other_programs_is_forwarded_as_it_is(
    redis_server: RedisServer, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(redis_server.url)
    texts = [
        '{"action": "upload_progress",  "payload": {}}',
        "no JSON at all",
        "",
        " \r\n\t",
        "$-1\r\n*3\r\n",
        "nul \x00 byte",
        "Größe 検査 🚀",
        "x" * 300_000,
        "[1,",
    ]
    for text in texts:
        assert redis_server.publish(f"upload:{watcher.upload_id}", text) >= 1
        assert redis_server.publish(f"user:{watcher.user_id}", text) >= 1
    expected = [text for text in texts for _ in range(2)]
    assert await watcher.connection.received(len(expected)) == expected
    assert watcher.publisher.stats()["not_json"] == 2 * 8


async def test_what_a_publisher_sends_other_programs_can_read(
    redis_server: RedisServer, make_publisher: PublisherFactory, unique: Unique
) -> None:
    upload_id, user_id = unique("upload"), unique("user")
    pubsub = redis_server.tap(patterns=["upload:*", "user:*"])
    publisher = make_publisher(redis_server.url)
    message = progress(upload_id, 55)
    await publisher.publish_progress(upload_id, message)
    await publisher.publish_to_user(user_id, {"n": 1})
    received = [pubsub.get_message(timeout=20) for _ in range(2)]
    assert [(m["channel"], m["data"]) for m in received] == [
        (f"upload:{upload_id}".encode(), message.model_dump_json().encode()),
        (f"user:{user_id}".encode(), b'{"n":1}'),
    ]
    pubsub.close()


# Order and company


async def test_order_of_messages_sent_one_after_another(
    broker: Broker, make_watcher: WatcherFactory
) -> None:
    slow = SlowConnection()
    watcher = await make_watcher(broker.url, connection=slow)
    for n in range(300):
        await watcher.publisher.publish_progress(watcher.upload_id, n)
    assert await slow.received(300) == [str(n) for n in range(300)]
    assert not slow.overlapped


async def test_order_of_messages_sent_at_once(broker: Broker, make_watcher: WatcherFactory) -> None:
    watcher = await make_watcher(broker.url)
    await asyncio.gather(
        *(watcher.publisher.publish_progress(watcher.upload_id, n) for n in range(500))
    )
    assert await watcher.connection.received(500) == [str(n) for n in range(500)]


async def test_order_across_awaited_and_nowait_and_both_kinds(
    broker: Broker, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(broker.url)
    publisher, upload_id, user_id = watcher.publisher, watcher.upload_id, watcher.user_id
    for n in range(0, 200, 4):
        assert publisher.publish_nowait(upload_id, n)
        assert publisher.publish_to_user_nowait(user_id, n + 1)
        await publisher.publish_to_user(user_id, n + 2)
        await publisher.publish_progress(upload_id, n + 3)
    assert await watcher.connection.received(200) == [str(n) for n in range(200)]


async def test_a_failing_connection_is_cleaned_up_and_nobody_else_notices(
    broker: Broker, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(broker.url)
    failing, alone = FailingConnection(), FailingConnection()
    await watcher.manager.connect(watcher.user_id, failing)
    await watcher.manager.connect("alone", alone)
    await watcher.manager.subscribe_upload("alone", watcher.upload_id)
    for n in range(5):
        await watcher.publisher.publish_progress(watcher.upload_id, n)
    assert await watcher.connection.received(5) == list("01234")
    await until(lambda: len(watcher.manager.user_connections) == 1, "the failing ones are out")
    assert watcher.manager.user_connections == {watcher.user_id: {watcher.connection}}
    assert watcher.manager.upload_subscribers == {watcher.upload_id: {watcher.user_id}}
    assert (failing.attempts, alone.attempts) == (1, 1)
    assert watcher.manager.stats()["send_failed"] == 2


async def test_a_stalled_connection_holds_up_nobody(
    broker: Broker, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(broker.url)
    stalled = StallingConnection()
    await watcher.manager.connect(watcher.user_id, stalled)
    await watcher.manager.connect("other", other := RecordingConnection())
    for n in range(50):
        await watcher.publisher.publish_progress(watcher.upload_id, n)
    await watcher.publisher.publish_to_user("other", "still here")
    await watcher.connection.received(50)
    assert await other.received(1) == ['"still here"']
    assert stalled.texts == []
    stalled.release()
    assert await stalled.received(50) == [str(n) for n in range(50)]


async def test_many_stalled_connections_hold_up_nobody(
    broker: Broker, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(broker.url)
    stalled = [StallingConnection(str(n)) for n in range(100)]
    for connection in stalled:
        await watcher.manager.connect(watcher.user_id, connection)
    for n in range(3):
        await watcher.publisher.publish_progress(watcher.upload_id, n)
    assert await watcher.connection.received(3) == ["0", "1", "2"]
    for connection in stalled:
        await connection.stalled()
        connection.release()
    for connection in stalled:
        assert await connection.received(3) == ["0", "1", "2"]


async def test_a_connection_that_lets_too_much_wait_is_given_up(
    broker: Broker, make_publisher: PublisherFactory, unique: Unique
) -> None:
    manager = fanwire.ConnectionManager(max_queued_messages=10)
    publisher = make_publisher(broker.url, manager=manager)
    stalled, healthy, user_id = StallingConnection(), RecordingConnection(), unique("user")
    await manager.connect(user_id, stalled)
    await manager.connect(user_id, healthy)
    await publisher.start()
    for n in range(30):
        await publisher.publish_to_user(user_id, n)
        await healthy.received(n + 1)
    await until(lambda: manager.user_connections == {user_id: {healthy}}, "the stalled one is out")
    assert manager.stats()["overflowed"] == 1
    assert healthy.texts == [str(n) for n in range(30)]
    # Its peer is told to come back, if it still listens.
    await until(lambda: stalled.closed, "the stalled one is closed")


async def test_a_burst_to_many_connections(
    broker: Broker,
    make_publisher: PublisherFactory,
    manager: fanwire.ConnectionManager,
    unique: Unique,
) -> None:
    publisher = make_publisher(broker.url, manager=manager)
    connections = {unique(f"user-{n}"): RecordingConnection() for n in range(200)}
    for user_id, connection in connections.items():
        await manager.connect(user_id, connection)
    await publisher.start()
    for n in range(20):
        for user_id in connections:
            assert publisher.publish_to_user_nowait(user_id, n)
    for connection in connections.values():
        assert await connection.received(20) == [str(n) for n in range(20)]


async def test_a_burst_while_the_loop_is_busy(
    redis_server: RedisServer, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(redis_server.url)
    pipeline = redis_server.client.pipeline(transaction=False)
    for n in range(1_000):
        pipeline.publish(f"upload:{watcher.upload_id}", n)
    pipeline.execute()  # the loop stands still meanwhile
    assert await watcher.connection.received(1_000) == [str(n) for n in range(1_000)]


# The manager


async def test_the_manager_is_looked_up_at_delivery(
    broker: Broker, make_publisher: PublisherFactory, unique: Unique
) -> None:
    publisher, user_id = make_publisher(broker.url), unique("user")
    fanwire.init_manager()
    await publisher.start()
    for round_ in range(2):
        connection = RecordingConnection()
        manager = fanwire.init_manager()
        assert fanwire.get_manager() is manager
        await manager.connect(user_id, connection)
        await publisher.publish_to_user(user_id, round_)
        assert await connection.received(1) == [str(round_)]


async def test_two_publishers_with_managers_of_their_own(
    broker: Broker, make_watcher: WatcherFactory
) -> None:
    first, second = await make_watcher(broker.url), await make_watcher(broker.url)
    await first.publisher.publish_progress(first.upload_id, 1)
    assert await first.connection.received(1) == ["1"]
    # Both watch the same upload, and so each gets the message once.
    assert await second.connection.received(1) == ["1"]
    await second.publisher.publish_progress(first.upload_id, 2)
    assert await first.connection.received(2) == ["1", "2"]
    assert await second.connection.received(2) == ["1", "2"]


# Counting


async def test_what_is_counted(
    broker: Broker, make_watcher: WatcherFactory, unique: Unique
) -> None:
    watcher = await make_watcher(broker.url)
    publisher = watcher.publisher
    for n in range(7):
        await publisher.publish_progress(unique("nobody-watches-this"), n)
    for n in range(5):
        await publisher.publish_progress(watcher.upload_id, n)
    await watcher.connection.received(5)
    stats = publisher.stats()
    assert stats["published"] == 12
    assert stats["publish_failed"] == stats["publish_refused"] == stats["outages"] == 0
    assert stats["not_utf8"] == stats["not_json"] == stats["reconnects"] == 0
    if broker.server is not None:
        # The embedded broker need not hand over what nobody watches.
        assert (stats["received"], stats["unwatched"]) == (12, 7)
    await until(lambda: watcher.manager.stats()["delivered"] == 5, "five deliveries are counted")
    assert watcher.manager.stats()["send_failed"] == watcher.manager.stats()["overflowed"] == 0
