"""Brokers that are absent, wrong, dead, silent or forgetful, and what a publisher makes of them."""

import logging

import pytest

import fanwire
from tests.conftest import PublisherFactory, RedisFactory, WatcherFactory
from tests.connections import RecordingConnection
from tests.deadlines import bounded, until
from tests.outages import (
    impostor,
    publish_until_received,
    stop_in_time,
    subscribed_anew,
    troubles,
)
from tests.redis_server import RedisServer, free_port

# Not there at start


async def test_a_broker_that_is_absent_at_start_and_comes_later(
    make_redis: RedisFactory, make_watcher: WatcherFactory, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_redis(listening=False)
    watcher = await bounded(make_watcher(server.url))
    assert watcher.publisher.running
    await until(lambda: troubles(caplog), "the log says that the broker is not there")
    assert f"127.0.0.1:{server.port}" in troubles(caplog)[0]
    server.start()
    await subscribed_anew(server, set())
    server.publish(f"upload:{watcher.upload_id}", "hello")
    assert await watcher.connection.received(1) == ["hello"]


async def test_an_absent_broker_raises_when_strict(make_publisher: PublisherFactory) -> None:
    port = free_port()
    publisher = make_publisher(f"redis://:hunter2@127.0.0.1:{port}", strict=True)
    with pytest.raises(ConnectionError) as raised:
        await bounded(publisher.start())
    assert isinstance(raised.value, fanwire.Error)
    assert f"127.0.0.1:{port}" in str(raised.value)
    assert "hunter2" not in str(raised.value)
    assert not publisher.running


async def test_an_absent_socket(make_watcher: WatcherFactory, make_redis: RedisFactory) -> None:
    server = make_redis(listening=False)
    watcher = await bounded(make_watcher(server.unix_url))
    server.start()
    await publish_until_received(watcher.publisher, watcher)


async def test_a_strict_start_that_failed_can_be_repeated(
    make_redis: RedisFactory, make_watcher: WatcherFactory, make_publisher: PublisherFactory
) -> None:
    server = make_redis(listening=False)
    publisher = make_publisher(server.url, strict=True, manager=fanwire.ConnectionManager())
    with pytest.raises(ConnectionError):
        await bounded(publisher.start())
    server.start()
    await publisher.start()
    assert publisher.running
    assert len(server.listeners()) == 1


async def test_a_name_that_does_not_resolve(make_publisher: PublisherFactory) -> None:
    url = "redis://no-such-host.invalid:6379"
    await bounded(make_publisher(url).start())
    with pytest.raises(ConnectionError, match="no-such-host"):
        await bounded(make_publisher(url, strict=True).start())


async def test_a_port_that_accepts_and_says_nothing(make_publisher: PublisherFactory) -> None:
    async with impostor(None) as url:
        lenient = make_publisher(url, connect_timeout_seconds=0.2)
        await bounded(lenient.start())
        strict = make_publisher(url, connect_timeout_seconds=0.2, strict=True)
        with pytest.raises(ConnectionError, match=r"127\.0\.0\.1"):
            await bounded(strict.start())
        with pytest.raises(fanwire.PublishError):
            await bounded(strict.publish_progress("u1", 1))
        await stop_in_time(lenient)
        await stop_in_time(strict)


async def test_a_port_that_hangs_up(make_publisher: PublisherFactory) -> None:
    async with impostor(None, hang_up=True) as url:
        lenient = make_publisher(url)
        await bounded(lenient.start())
        await bounded(lenient.publish_progress("u1", 1))
        with pytest.raises(ConnectionError):
            await bounded(make_publisher(url, strict=True).start())
        await stop_in_time(lenient)


# Wrong for good

MALFORMED = [
    "nonsense",
    "localhost:6379",
    "http://localhost:6379",
    "amqp://app:hunter2@localhost",
    "redis://",
    "redis://:hunter2@localhost:port",
    "redis://localhost:99999",
    "redis://app:hunter2@[::1",
    "redis://localhost/not-a-number",
    "redis://:hunter2@localhost/?db=3",
    "memory://somewhere",
    "postgresql+asyncpg://app:hunter2@localhost/db",
    "app:hunter2@localhost",
]


@pytest.mark.parametrize("strict", [False, True])
async def test_a_database_that_is_not_there(
    redis_server: RedisServer, make_publisher: PublisherFactory, strict: bool
) -> None:
    manager = fanwire.ConnectionManager()
    publisher = make_publisher(f"{redis_server.url}/9999", manager=manager, strict=strict)
    with pytest.raises(fanwire.BrokerError, match="DB index is out of range"):
        await bounded(publisher.start())


async def test_who_may_not_choose_a_database_may_listen(
    make_redis: RedisFactory, make_publisher: PublisherFactory
) -> None:
    rules = "allcommands allchannels -select"
    server = make_redis(password="right", acl_user="app", acl_rules=rules)
    publisher = make_publisher(f"{server.url}/3", manager=fanwire.ConnectionManager())
    await bounded(publisher.start())
    assert publisher.health()["state"] == "live"


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("url", MALFORMED, ids=ascii)
async def test_a_malformed_url(url: str, strict: bool) -> None:
    with pytest.raises(fanwire.ConfigError) as raised:
        await fanwire.UploadProgressPublisher(url, strict=strict).start()
    assert "hunter2" not in str(raised.value)
    assert "hunter2" not in repr(raised.value)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",
        b"\x00\xff" * 64,
    ],
    ids=["http", "ssh", "tls", "bytes"],
)
async def test_something_that_is_no_broker(answer: bytes, make_publisher: PublisherFactory) -> None:
    async with impostor(answer) as url:
        publisher = make_publisher(url)
        with pytest.raises(fanwire.BrokerError, match=r"127\.0\.0\.1"):
            await bounded(publisher.start())
        assert not publisher.running
        await bounded(publisher.publish_progress("u1", 1))
        with pytest.raises(fanwire.PublishError, match=r"127\.0\.0\.1"):
            await bounded(make_publisher(url, strict=True).publish_progress("u1", 1))


PASSWORDS = ["hunter2", "p@ss:w/rd?#[]&=", "пароль", "100%25"]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("acl_user", [None, "app"])
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
async def test_a_right_password(
    make_redis: RedisFactory,
    make_watcher: WatcherFactory,
    password: str,
    acl_user: str | None,
    unix: bool,
) -> None:
    server = make_redis(password=password, acl_user=acl_user)
    watcher = await make_watcher(server.unix_url if unix else server.url, strict=True)
    await watcher.publisher.publish_progress(watcher.upload_id, 1)
    assert await watcher.connection.received(1) == ["1"]
    for shown in [repr(watcher.publisher), watcher.publisher.url, str(watcher.publisher.stats())]:
        assert password not in shown


@pytest.mark.parametrize("credentials", [":wr0ng@", "app:wr0ng@", "nobody:wr0ng@", ""])
async def test_a_wrong_password(
    make_redis: RedisFactory,
    make_publisher: PublisherFactory,
    credentials: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    if credentials.startswith("app"):
        server = make_redis(password="right", acl_user="app")
    else:
        server = make_redis(password="right")
    url = f"redis://{credentials}127.0.0.1:{server.port}"
    publisher = make_publisher(url)
    with pytest.raises(fanwire.BrokerError, match=rf"127\.0\.0\.1:{server.port}") as raised:
        await bounded(publisher.start())
    assert not publisher.running
    strict = make_publisher(url, strict=True)
    with pytest.raises(fanwire.PublishError) as refused:
        await bounded(strict.publish_progress("u1", 1))
    await bounded(publisher.publish_progress("u1", 1))
    assert troubles(caplog)
    seen = [str(raised.value), repr(raised.value), str(refused.value), caplog.text]
    seen += [repr(publisher), publisher.url, str(publisher.stats())]
    assert not [text for text in seen if "wr0ng" in text]


async def test_a_user_who_may_not_subscribe(
    make_redis: RedisFactory, make_publisher: PublisherFactory
) -> None:
    server = make_redis(
        password="right", acl_user="app", acl_rules="allcommands allkeys resetchannels"
    )
    with pytest.raises(fanwire.BrokerError, match=r"(?i)perm"):
        await bounded(make_publisher(server.url).start())


async def test_a_user_who_may_not_publish(
    make_redis: RedisFactory, make_watcher: WatcherFactory, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_redis(
        password="right", acl_user="app", acl_rules="allcommands -publish allkeys allchannels"
    )
    watcher = await make_watcher(server.url)
    await bounded(watcher.publisher.publish_progress(watcher.upload_id, 1))
    await until(lambda: troubles(caplog), "the log says so")
    assert watcher.publisher.stats()["publish_failed"] == 1
    # Listening goes on.
    server.publish(f"upload:{watcher.upload_id}", "hello")
    assert await watcher.connection.received(1) == ["hello"]


# TLS


async def test_tls_with_an_authority_that_is_trusted(
    make_redis: RedisFactory, make_watcher: WatcherFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_redis(tls=True, password="right")
    assert server.certificates is not None
    monkeypatch.setenv("SSL_CERT_FILE", str(server.certificates.authority))
    watcher = await make_watcher(server.tls_url, strict=True)
    await watcher.publisher.publish_progress(watcher.upload_id, "x" * 300_000)
    assert len((await watcher.connection.received(1))[0]) == 300_002
    dropped = server.drop_listeners()
    await subscribed_anew(server, dropped)
    server.publish(f"upload:{watcher.upload_id}", "again")
    assert (await watcher.connection.received(2))[1] == "again"


async def test_tls_with_an_authority_that_nobody_trusts(
    make_redis: RedisFactory, make_watcher: WatcherFactory, make_publisher: PublisherFactory
) -> None:
    server = make_redis(tls=True)
    with pytest.raises(fanwire.BrokerError, match=r"(?i)certificate"):
        await bounded(make_publisher(server.tls_url).start())
    watcher = await make_watcher(f"{server.tls_url}/#insecure", strict=True)
    await watcher.publisher.publish_progress(watcher.upload_id, 1)
    assert await watcher.connection.received(1) == ["1"]


async def test_tls_at_a_port_without_it(
    own_redis: RedisServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_redis.url.replace("redis://", "rediss://"), strict=True)
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1"):
        await bounded(publisher.start())


# What it was told to keep to itself


async def test_payloads_that_are_not_utf8(
    redis_server: RedisServer, make_watcher: WatcherFactory, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = await make_watcher(redis_server.url)
    channel = f"upload:{watcher.upload_id}"
    redis_server.publish(channel, b"\xff\xfe\x00secret-content")
    redis_server.publish(channel, "after it")
    assert await watcher.connection.received(1) == ["after it"]
    assert watcher.publisher.stats()["not_utf8"] == 1
    await until(lambda: troubles(caplog), "the log names the channel")
    (warning,) = troubles(caplog)
    assert channel in warning
    assert "secret-content" not in warning


async def test_channels_that_are_not_utf8(
    redis_server: RedisServer, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(redis_server.url)
    redis_server.publish(b"upload:\xff\xfe", "for nobody")
    redis_server.publish(b"user:\xff", b"\xff")
    redis_server.publish(f"upload:{watcher.upload_id}", "after it")
    assert await watcher.connection.received(1) == ["after it"]
    assert watcher.publisher.stats()["unwatched"] == 2


async def test_an_error_in_a_connection_says_which_and_why_in_the_log(
    redis_server: RedisServer, make_watcher: WatcherFactory, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(RecordingConnection):
        async def send_text(self, data: str) -> None:
            raise RuntimeError("the cable is cut")

    caplog.set_level(logging.DEBUG, logger="fanwire")
    watcher = await make_watcher(redis_server.url, connection=Broken())
    redis_server.publish(f"upload:{watcher.upload_id}", "hello")
    await until(lambda: "the cable is cut" in caplog.text, "the log names the cause")
