"""A broker that was there and goes: killed, restarted, cut off, or standing still."""

import asyncio

import pytest

import fanwire
from tests.conftest import PublisherFactory, RedisFactory, WatcherFactory
from tests.deadlines import bounded, until
from tests.outages import publish_until_received, stop_in_time, subscribed_anew, troubles
from tests.servers import AnyServer


async def test_killed_and_restarted(own_server: AnyServer, make_watcher: WatcherFactory) -> None:
    watcher = await make_watcher(own_server.url)
    for round_ in range(1, 4):
        own_server.restart()
        await subscribed_anew(own_server, set())
        own_server.publish(f"upload:{watcher.upload_id}", str(round_))
        await watcher.connection.received_text(str(round_))
        assert watcher.publisher.stats()["reconnects"] == round_
    assert watcher.connection.texts == ["1", "2", "3"]
    assert watcher.publisher.running


async def test_publishing_works_again_after_a_restart(
    own_server: AnyServer, make_watcher: WatcherFactory, make_publisher: PublisherFactory
) -> None:
    watcher, worker = await make_watcher(own_server.url), make_publisher(own_server.url)
    await worker.publish_progress(watcher.upload_id, 1)
    await watcher.connection.received(1)
    own_server.restart()
    await publish_until_received(worker, watcher)
    await publish_until_received(watcher.publisher, watcher)


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
async def test_the_listeners_connection_is_cut(
    own_server: AnyServer, make_watcher: WatcherFactory, unix: bool
) -> None:
    watcher = await make_watcher(own_server.unix_url if unix else own_server.url)
    for n in range(3):
        dropped = own_server.drop_listeners()
        assert dropped
        await subscribed_anew(own_server, dropped)
        own_server.publish(f"upload:{watcher.upload_id}", str(n))
        await watcher.connection.received_text(str(n))
    assert watcher.connection.texts == ["0", "1", "2"]


async def test_every_connection_is_cut_under_load(
    own_server: AnyServer, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(own_server.url)
    for n in range(600):
        assert watcher.publisher.publish_nowait(watcher.upload_id, n)
        if n % 200 == 100:
            own_server.drop_clients()
            await asyncio.sleep(0)
    await publish_until_received(watcher.publisher, watcher)
    numbers = [int(text) for text in watcher.connection.texts if text.isdecimal()]
    # Some were lost with the connections, which pub/sub allows; none came twice or out of order.
    assert numbers == sorted(set(numbers))


async def test_a_broker_that_is_down_never_raises_and_is_logged_once_per_outage(
    own_server: AnyServer, make_publisher: PublisherFactory, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = make_publisher(own_server.url, outbox=None)
    for outage in range(1, 3):
        await publisher.publish_progress("u1", "it works")
        published = publisher.stats()["published"]
        assert published > 0
        caplog.clear()
        own_server.kill()
        failed = publisher.stats()["publish_failed"]
        for n in range(20):
            await bounded(publisher.publish_progress(f"u{n}", n))
            await bounded(publisher.publish_to_user(f"u{n}", n))
        await until(lambda: troubles(caplog), "the outage is in the log")
        assert len(troubles(caplog)) == 1
        assert f"127.0.0.1:{own_server.port}" in troubles(caplog)[0]
        stats = publisher.stats()
        assert stats["publish_failed"] == failed + 40
        assert stats["outages"] == outage
        own_server.start()

        async def until_published(already: int = published) -> None:
            while publisher.stats()["published"] == already:
                await publisher.publish_progress("u1", "are you back")
                await asyncio.sleep(0.005)

        await bounded(until_published())
        assert len(troubles(caplog)) == 1


async def test_a_listeners_outage_is_logged_once_too(
    own_server: AnyServer, make_watcher: WatcherFactory, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = await make_watcher(own_server.url)
    own_server.kill()
    attempts = 0

    def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", own_server.port):
        await until(lambda: attempts >= 3, "three attempts to come back")
    own_server.start()
    await subscribed_anew(own_server, set())
    own_server.publish(f"upload:{watcher.upload_id}", "back")
    await watcher.connection.received_text("back")
    assert len(troubles(caplog)) == 1


async def test_strict_publishing_raises_while_the_broker_is_down(
    make_redis: RedisFactory, make_publisher: PublisherFactory, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_redis(password="hunter2")
    publisher = make_publisher(server.url, strict=True)
    await publisher.publish_progress("u1", 1)
    server.kill()
    for _ in range(3):
        with pytest.raises(fanwire.PublishError) as raised:
            await bounded(publisher.publish_progress("u1", 2))
        assert isinstance(raised.value, ConnectionError)
        assert f"127.0.0.1:{server.port}" in str(raised.value)
        assert "hunter2" not in str(raised.value) + caplog.text
    server.start()

    async def until_it_works() -> None:
        while True:
            try:
                return await publisher.publish_progress("u1", 3)
            except fanwire.PublishError:
                await asyncio.sleep(0.005)

    await bounded(until_it_works())


async def test_nowait_reports_a_full_queue(
    own_server: AnyServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_server.url, max_pending_messages=8, publish_timeout_seconds=20)
    await publisher.publish_progress("u1", "connected")
    own_server.pause()
    try:
        accepted = 0
        while publisher.publish_nowait("u1", accepted):
            accepted += 1
            # As many wait as may, besides as many again that are under way.
            assert accepted <= 16
        assert accepted >= 8
        assert publisher.stats()["publish_refused"] == 1
    finally:
        own_server.resume()
    await until(lambda: publisher.stats()["published"] == 1 + accepted, "what waited is sent")
    assert publisher.publish_nowait("u1", "room again")


async def test_nowait_reports_too_many_bytes(
    own_server: AnyServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_server.url, max_pending_bytes=1_000, publish_timeout_seconds=20)
    await publisher.publish_progress("u1", "connected")
    own_server.pause()
    try:
        accepted = 0
        while publisher.publish_nowait("u1", "x" * 98):
            accepted += 1
            assert accepted <= 20
        assert accepted >= 10
    finally:
        own_server.resume()


# Standing still: connections stay open, and nobody answers


@pytest.mark.parametrize("started", [True, False])
async def test_stop_returns_though_the_broker_stands_still(
    own_server: AnyServer,
    make_watcher: WatcherFactory,
    make_publisher: PublisherFactory,
    started: bool,
) -> None:
    publisher = (
        (await make_watcher(own_server.url)).publisher
        if started
        else make_publisher(own_server.url)
    )
    await publisher.publish_progress("u1", 1)
    own_server.pause()
    try:
        assert publisher.publish_nowait("u1", 2)
        await stop_in_time(publisher)
    finally:
        own_server.resume()


async def test_publishing_gives_up_on_a_broker_that_stands_still(
    own_server: AnyServer, make_publisher: PublisherFactory, caplog: pytest.LogCaptureFixture
) -> None:
    lenient = make_publisher(own_server.url)
    strict = make_publisher(own_server.url, strict=True)
    await lenient.publish_progress("u1", 1)
    await strict.publish_progress("u1", 1)
    own_server.pause()
    try:
        await bounded(asyncio.gather(*(lenient.publish_progress("u1", n) for n in range(20))))
        await until(lambda: troubles(caplog), "the outage is in the log")
        assert len(troubles(caplog)) == 1
        with pytest.raises(fanwire.PublishError):
            await bounded(strict.publish_progress("u1", 2))
    finally:
        own_server.resume()

    async def until_published() -> None:
        before = lenient.stats()["published"]
        while lenient.stats()["published"] == before:
            await lenient.publish_progress("u1", 3)
            await asyncio.sleep(0.005)

    await bounded(until_published())


async def test_a_listener_outlives_a_broker_that_stands_still(
    own_server: AnyServer, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(
        own_server.url, outbox=None, connect_timeout_seconds=0.2, publish_timeout_seconds=0.2
    )
    own_server.pause()
    try:
        await bounded(watcher.publisher.publish_progress(watcher.upload_id, "in vain"))
        assert watcher.publisher.stats()["publish_failed"] == 1
    finally:
        own_server.resume()
    await publish_until_received(watcher.publisher, watcher)
    own_server.publish(f"upload:{watcher.upload_id}", "from elsewhere")
    await watcher.connection.received_text("from elsewhere")


async def test_start_returns_though_the_broker_stands_still(
    own_server: AnyServer, make_watcher: WatcherFactory
) -> None:
    own_server.pause()
    try:
        watcher = await bounded(make_watcher(own_server.url, connect_timeout_seconds=0.2))
        assert watcher.publisher.running
    finally:
        own_server.resume()
    await publish_until_received(watcher.publisher, watcher)


async def test_stop_in_the_middle_of_an_outage(
    own_server: AnyServer, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(own_server.url)
    own_server.kill()
    await stop_in_time(watcher.publisher)
    own_server.start()
    await watcher.publisher.start()
    await publish_until_received(watcher.publisher, watcher)


async def test_stop_while_start_waits_for_a_silent_broker(
    own_server: AnyServer, make_publisher: PublisherFactory
) -> None:
    own_server.pause()
    try:
        publisher = make_publisher(own_server.url, manager=fanwire.ConnectionManager())
        starting = asyncio.ensure_future(publisher.start())
        await asyncio.sleep(0)
        await stop_in_time(publisher)
        await bounded(asyncio.wait([starting]))
        assert not publisher.running
    finally:
        own_server.resume()
