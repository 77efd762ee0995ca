"""Starting and stopping a publisher, over every broker."""

import asyncio
import gc

import fanwire
from tests.conftest import Broker, PublisherFactory, RedisFactory, Unique, WatcherFactory
from tests.connections import RecordingConnection, StallingConnection
from tests.deadlines import DEADLINE_SECONDS, STOP_SECONDS, bounded, until
from tests.outages import stop_in_time
from tests.redis_server import RedisServer


async def test_start_and_stop_twice(broker: Broker, make_watcher: WatcherFactory) -> None:
    watcher = await make_watcher(broker.url)
    publisher = watcher.publisher
    assert publisher.running
    await publisher.start()
    await asyncio.gather(publisher.start(), publisher.start())
    await publisher.publish_progress(watcher.upload_id, 1)
    await publisher.publish_progress(watcher.upload_id, 2)
    # Started four times, and yet each message comes once.
    assert await watcher.connection.received(2) == ["1", "2"]
    await asyncio.gather(stop_in_time(publisher), stop_in_time(publisher))
    await stop_in_time(publisher)
    assert publisher.running is False


async def test_stop_without_start(broker: Broker, make_publisher: PublisherFactory) -> None:
    publisher = make_publisher(broker.url)
    await stop_in_time(publisher)


async def test_started_again_after_stop(broker: Broker, make_watcher: WatcherFactory) -> None:
    watcher = await make_watcher(broker.url)
    publisher = watcher.publisher
    for n in range(3):
        await publisher.publish_progress(watcher.upload_id, n)
        assert await watcher.connection.received(n + 1) == [str(m) for m in range(n + 1)]
        await stop_in_time(publisher)
        await publisher.start()
        assert publisher.running


async def test_concurrent_starts_of_a_new_publisher(
    broker: Broker,
    make_publisher: PublisherFactory,
    manager: fanwire.ConnectionManager,
    unique: Unique,
) -> None:
    publisher, connection = make_publisher(broker.url, manager=manager), RecordingConnection()
    await manager.connect(unique("user"), connection)
    await asyncio.gather(*(publisher.start() for _ in range(10)))
    await publisher.publish_to_user(unique("user"), 1)
    await publisher.publish_to_user(unique("user"), 2)
    assert await connection.received(2) == ["1", "2"]


async def test_stop_leaves_the_sockets_and_the_maps_alone(
    broker: Broker, make_watcher: WatcherFactory, make_publisher: PublisherFactory
) -> None:
    stopped, running = await make_watcher(broker.url), await make_watcher(broker.url)
    await stop_in_time(stopped.publisher)
    assert stopped.connection.closed == []
    assert stopped.manager.user_connections == {stopped.user_id: {stopped.connection}}
    assert stopped.manager.upload_subscribers == {stopped.upload_id: {stopped.user_id}}
    await running.publisher.publish_progress(running.upload_id, "after stop")
    assert await running.connection.received(1) == ['"after stop"']
    await stopped.manager.send_to_user(stopped.user_id, "straight")
    assert stopped.connection.texts == ['"straight"']


async def test_a_stopped_publisher_leaves_no_listener_behind(
    redis_server: RedisServer, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(redis_server.url)
    assert len(redis_server.listeners()) == 1
    await stop_in_time(watcher.publisher)
    await until(lambda: not redis_server.listeners(), "the broker has no listener left")


async def test_a_publisher_that_is_let_go_leaves_no_listener_behind(
    redis_server: RedisServer, manager: fanwire.ConnectionManager
) -> None:
    publisher = fanwire.UploadProgressPublisher(redis_server.url, manager=manager)
    await publisher.start()
    assert len(redis_server.listeners()) == 1
    del publisher
    gc.collect()
    await until(lambda: not redis_server.listeners(), "the broker has no listener left")


async def test_a_publisher_that_nobody_else_holds(
    broker: Broker, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(broker.url)
    await fanwire.UploadProgressPublisher(broker.url).publish_progress(watcher.upload_id, 1)
    assert fanwire.UploadProgressPublisher(broker.url).publish_nowait(watcher.upload_id, 2)
    assert await watcher.connection.received(2) == ["1", "2"]


async def test_starting_a_publisher_that_nobody_else_holds(make_redis: RedisFactory) -> None:
    server = make_redis(listening=False)
    # Whether it keeps listening is nobody's business then, but start has to return as ever.
    for _ in range(50):
        await fanwire.UploadProgressPublisher(server.url).start()
    server.start()
    for _ in range(50):
        await fanwire.UploadProgressPublisher(server.url).start()


async def test_publishing_after_stop(broker: Broker, make_watcher: WatcherFactory) -> None:
    stopped, running = await make_watcher(broker.url), await make_watcher(broker.url)
    await stop_in_time(stopped.publisher)
    await stopped.publisher.publish_progress(running.upload_id, 1)
    assert await running.connection.received(1) == ["1"]


async def test_nowait_messages_are_sent_before_stop_returns(
    broker: Broker, make_watcher: WatcherFactory, make_publisher: PublisherFactory
) -> None:
    watcher, worker = await make_watcher(broker.url), make_publisher(broker.url)
    for n in range(100):
        assert worker.publish_nowait(watcher.upload_id, n)
    # It may use all the time that stop() has.
    await bounded(worker.stop(drain_seconds=DEADLINE_SECONDS), deadline_seconds=STOP_SECONDS)
    assert await watcher.connection.received(100) == [str(n) for n in range(100)]


async def test_stop_while_a_connection_stalls(broker: Broker, make_watcher: WatcherFactory) -> None:
    stalled = StallingConnection()
    watcher = await make_watcher(broker.url, connection=stalled)
    await watcher.publisher.publish_progress(watcher.upload_id, 1)
    await stalled.stalled()
    await stop_in_time(watcher.publisher)
    stalled.release()
    assert await stalled.received(1) == ["1"]
