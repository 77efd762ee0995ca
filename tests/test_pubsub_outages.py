"""A broker that is not there, goes, comes back, or stands still, while sessions come and go."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import fanwire
from tests.conftest import RedisFactory
from tests.deadlines import STOP_SECONDS, SUBSCRIBED_AGAIN_SECONDS, bounded, until
from tests.outages import impostor, troubles
from tests.pubsub import (
    Backend,
    PubSub,
    Recorder,
    are_confirmed,
    figures,
    heard,
    settled,
    until_figures,
)
from tests.redis_server import RedisServer
from tests.servers import AnyServer

# For a test that waits for a time-out to pass.
SHORT = {"connect_timeout_seconds": 0.2, "publish_timeout_seconds": 0.2}
# For one that must not see it pass.
LONG_SECONDS = 60.0


async def ignore(topic: str, message: Any) -> None:
    """A handler of whom nothing is expected."""


@pytest.fixture(params=["redis", "publisher-redis", "postgres"])
async def own(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """Instances at a server that belongs to the test."""
    broker = request.param.removeprefix("publisher-")
    backend = Backend(request.param, request.getfixturevalue(f"own_{broker}"))
    yield backend
    for pubsub in backend.made:
        await pubsub.stop()


def are_subscribed(own: Backend, *topics: str) -> bool:
    """Whether the broker has each of them once. PostgreSQL does not tell, but the listener does."""
    if isinstance(own.server, RedisServer):
        channels = [own.prefix + topic for topic in topics]
        return [count for _, count in own.server.client.pubsub_numsub(*channels)] == [1] * len(
            topics
        )
    return is_live(own) and are_confirmed(own.made[0])


def is_live(own: Backend) -> bool:
    listener: Any = own.made[0]
    return bool(listener.health()["state"] == "live")


def none_is_subscribed(own: Backend, *topics: str) -> bool:
    if not isinstance(own.server, RedisServer):
        return True
    channels = [own.prefix + topic for topic in topics]
    return not any(count for _, count in own.server.client.pubsub_numsub(*channels))


async def subscribed_again(own: Backend, *topics: str) -> None:
    """Returns when the broker has all of them, soon after its return as was promised."""
    await until(
        lambda: are_subscribed(own, *topics),
        "every wanted topic is subscribed again",
        deadline_seconds=SUBSCRIBED_AGAIN_SECONDS,
    )


def server_of(own: Backend) -> AnyServer:
    assert own.server is not None
    return own.server


def subscribe_commands(own: Backend) -> int:
    if not isinstance(own.server, RedisServer):
        return 0  # PostgreSQL does not count them
    statistics: dict[str, dict[str, Any]] = own.server.client.info("commandstats")
    return int(statistics.get("cmdstat_subscribe", {"calls": 0})["calls"])


# Killed and restarted


async def test_every_wanted_topic_is_subscribed_again(own: Backend) -> None:
    instance, other = await own.started(), await own.started()
    names, recorder = [f"t{n}" for n in range(1_000)], Recorder()
    await asyncio.gather(*(instance.subscribe_topic("s", name, recorder) for name in names))
    for round_ in range(1, 3):
        recorder.calls.clear()
        server_of(own).restart()
        await subscribed_again(own, *names)
        assert subscribe_commands(own) <= 50
        await until_figures(instance, reconnects=round_)
        await heard(instance, "t0", recorder, by=other)
        await settled(instance, "s", by=other)
        recorder.calls.clear()
        for name in names[500:]:
            own.say(name, 1)
        assert await recorder.received(500) == [1] * 500
        assert [topic for topic, _ in recorder.calls] == names[500:]


async def test_sessions_keep_working_after_the_listener_is_cut_off(own: Backend) -> None:
    instance, recorder = await own.started(), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    for n in range(3):
        dropped = server_of(own).drop_listeners()
        assert dropped
        await until(lambda dropped=dropped: not server_of(own).listeners() & dropped)  # type: ignore[misc]
        await until_figures(instance, reconnects=n + 1)
        await subscribed_again(own, "t")
        await instance.broadcast("t", n)
        await settled(instance, "s")
        assert recorder.messages == list(range(n + 1))


async def test_every_connection_is_cut_while_messages_pass(own: Backend) -> None:
    instance, other, recorder = await own.started(), await own.started(), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    for n in range(300):
        if n % 100 == 50:
            server_of(own).drop_clients()
        await bounded(other.broadcast("t", n))
    await bounded(heard(instance, "t", recorder, by=other))
    await bounded(heard(instance, "t", recorder, by=instance))
    numbers = [message for message in recorder.messages if isinstance(message, int)]
    # Some were lost with the connections, which pub/sub allows; none came twice or out of order.
    assert numbers == sorted(set(numbers))


# Wishes while it is down


@pytest.mark.parametrize("down", ["killed", "paused"])
async def test_subscribing_returns_though_the_broker_is_down(
    own: Backend, down: str, caplog: pytest.LogCaptureFixture
) -> None:
    instance = await own.started(subscribe_timeout_seconds=0.05, connect_timeout_seconds=0.2)
    # In the end it speaks, and is not to give up because its first connection takes its time.
    other, recorder = own.make(), Recorder()
    await until(lambda: is_live(own), "it listens")
    caplog.clear()
    server = server_of(own)
    if down == "killed":
        server.kill()
    else:
        server.pause()
    try:
        await bounded(instance.subscribe_topic("s", "t0", recorder))
        await until(lambda: troubles(caplog), "the outage is in the log")
        for n in range(1, 10):
            await bounded(instance.subscribe_topic("s", f"t{n}", recorder))
        assert len(troubles(caplog)) <= 2
        assert all(f"127.0.0.1:{server.port}" in line for line in troubles(caplog))
        assert figures(instance)["subscriptions"] == 10
    finally:
        if down == "killed":
            server.start()
        else:
            server.resume()
    names = [f"t{n}" for n in range(10)]
    await subscribed_again(own, *names)
    for name in names:
        own.say(name, "after it")
    await settled(instance, "s", by=other)
    assert recorder.calls == [(name, "after it") for name in names]


async def test_a_warning_once_per_outage(own: Backend, caplog: pytest.LogCaptureFixture) -> None:
    instance = await own.started(subscribe_timeout_seconds=0.05)
    for outage in range(2):
        server_of(own).kill()
        await bounded(instance.subscribe_topic("s", f"first {outage}", ignore))
        await until(lambda: troubles(caplog), "it is in the log")
        warned = len(troubles(caplog))
        for n in range(4):
            await bounded(instance.subscribe_topic("s", f"{outage} {n}", ignore))
        assert len(troubles(caplog)) <= max(warned, 2)
        server_of(own).start()
        await subscribed_again(own, *(f"{outage} {n}" for n in range(4)))
        await until_figures(instance, reconnects=outage + 1)
        caplog.clear()


@pytest.mark.parametrize("down", ["killed", "paused", "cut off"])
async def test_subscribing_waits_for_a_broker_that_comes_back_in_time(
    own: Backend, down: str
) -> None:
    instance = await own.started(
        subscribe_timeout_seconds=LONG_SECONDS, connect_timeout_seconds=0.5
    )
    server = server_of(own)
    if down == "paused":
        server.pause()
    elif down == "killed":
        server.kill()
    else:
        server.drop_listeners()
    subscribing = asyncio.create_task(instance.subscribe_topic("s", "t", ignore))
    for _ in range(20):
        await asyncio.sleep(0.005)
        assert down == "cut off" or not subscribing.done()
    if down == "paused":
        server.resume()
    elif down == "killed":
        server.start()
    await bounded(subscribing)
    assert are_confirmed(instance)
    if isinstance(server, RedisServer):
        assert are_subscribed(own, "t")
    else:  # the listener says a moment later that it is live again
        await subscribed_again(own, "t")


async def test_leaving_while_it_is_down(own: Backend) -> None:
    instance = await own.started(subscribe_timeout_seconds=0.05)
    leaving, staying = Recorder("leaving"), Recorder("staying")
    for topic in ("both", "left"):
        await instance.subscribe_topic("leaving", topic, leaving)
    await instance.subscribe_topic("staying", "both", staying)
    server_of(own).kill()
    await bounded(instance.subscribe_topic("leaving", "wished and left", leaving))
    await bounded(instance.subscribe_topic("staying", "wished", staying))
    await bounded(instance.unsubscribe_topic("leaving", "wished and left"))
    await bounded(instance.unsubscribe_all("leaving"))
    await until_figures(instance, sessions=1, subscriptions=2, subscribed_topics=2)
    server_of(own).start()
    names = ("both", "wished", "left", "wished and left")
    await subscribed_again(own, *names[:2])
    for name in names:
        own.say(name, 0)
    await settled(instance, "staying", "leaving")
    assert are_subscribed(own, *names[:2]) and none_is_subscribed(own, *names[2:])
    assert [topic for topic, _ in staying.calls] == ["both", "wished"]
    assert leaving.calls == []


async def test_a_broker_that_comes_after_the_start(
    own: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    server_of(own).kill()
    instance, recorder = own.make(subscribe_timeout_seconds=0.05, **SHORT), Recorder()
    await instance.subscribe_topic("early", "t1", recorder)
    await bounded(instance.start())
    assert instance.running  # type: ignore[union-attr]
    assert troubles(caplog)
    await bounded(instance.subscribe_topic("late", "t2", recorder))
    server_of(own).start()
    await subscribed_again(own, "t1", "t2")
    await bounded(heard(instance, "t1", recorder, by=instance))
    await bounded(heard(instance, "t2", recorder, by=instance))


async def test_a_handler_is_not_kept_from_its_work_by_an_outage(own: Backend) -> None:
    """What has arrived is handled though the broker has gone; the handler may ask for more."""
    instance = await own.started(subscribe_timeout_seconds=0.05)
    recorder, gone = Recorder(), asyncio.Event()

    async def work(topic: str, message: Any) -> None:
        await gone.wait()
        await instance.subscribe_topic("s", "another", ignore)
        await instance.broadcast("another", message)
        await recorder(topic, message)

    await instance.subscribe_topic("s", "t", work)
    await until(lambda: are_confirmed(instance), "what is broadcast arrives")
    for n in range(3):
        await instance.broadcast("t", n)
    await until_figures(instance, delivered=1, queued_messages=2)
    server_of(own).kill()
    gone.set()
    assert await recorder.received(3) == [0, 1, 2]


# Speaking while it is down


async def test_broadcasting_is_tolerant(own: Backend, caplog: pytest.LogCaptureFixture) -> None:
    # A publisher would keep them until the server is back.
    options: dict[str, Any] = {"outbox": None} if own.kind == "publisher-redis" else {}
    instance, recorder = await own.started(**options), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    server_of(own).kill()
    before = instance.stats()["publish_failed"]
    for n in range(20):
        await bounded(instance.broadcast("t", n))
    assert instance.stats()["publish_failed"] == before + 20
    await until(lambda: troubles(caplog), "the outage is in the log")
    assert len(troubles(caplog)) <= 2
    server_of(own).start()
    await bounded(heard(instance, "t", recorder, by=instance))


async def test_a_strict_instance_raises(own: Backend) -> None:
    instance = await own.started(strict=True, subscribe_timeout_seconds=0.05)
    server_of(own).kill()
    for _ in range(3):
        with pytest.raises(fanwire.PublishError, match=f"127.0.0.1:{server_of(own).port}"):
            await bounded(instance.broadcast("t", 1))
    # Not so for a subscription: its wish is kept.
    await bounded(instance.subscribe_topic("s", "t", ignore))
    server_of(own).start()
    await subscribed_again(own, "t")


async def test_a_broker_that_stands_still(own: Backend) -> None:
    instance = await own.started(subscribe_timeout_seconds=0.05, **SHORT)
    recorder = Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    server_of(own).pause()
    try:
        await bounded(instance.broadcast("t", "in vain"))
        await bounded(instance.subscribe_topic("s", "t2", recorder))
        await bounded(instance.unsubscribe_topic("s", "t2"))
    finally:
        server_of(own).resume()
    await bounded(heard(instance, "t", recorder, by=instance))
    await until(lambda: none_is_subscribed(own, "t2"))


@pytest.mark.parametrize("down", ["killed", "paused"])
async def test_stop_returns_though_the_broker_is_down(own: Backend, down: str) -> None:
    instance = await own.started()
    await instance.subscribe_topic("s", "t", ignore)
    subscribing: list[asyncio.Task[None]] = []
    if down == "killed":
        server_of(own).kill()
    else:
        server_of(own).pause()
    try:
        subscribing += [
            asyncio.create_task(instance.subscribe_topic("s", f"t{n}", ignore)) for n in range(3)
        ]
        await asyncio.sleep(0)
        await bounded(instance.stop(), deadline_seconds=STOP_SECONDS)
        assert not instance.running  # type: ignore[union-attr]
        await bounded(asyncio.wait(subscribing))
        assert [task.exception() for task in subscribing] == [None] * 3
    finally:
        if down == "paused":
            server_of(own).resume()


# Not a broker, and not for us


async def test_a_strict_start_without_a_broker(make_redis: RedisFactory) -> None:
    server = make_redis(listening=False)
    instance = fanwire.RedisPubSub(f"redis://:hunter2@127.0.0.1:{server.port}", strict=True)
    with pytest.raises(ConnectionError) as raised:
        await bounded(instance.start())
    assert isinstance(raised.value, fanwire.Error)
    assert f"127.0.0.1:{server.port}" in str(raised.value)
    assert "hunter2" not in str(raised.value)
    assert not instance.running


async def test_something_that_is_no_broker() -> None:
    async with impostor(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as url:
        instance = fanwire.RedisPubSub(url)
        with pytest.raises(fanwire.BrokerError, match=r"127\.0\.0\.1"):
            await bounded(instance.start())
        assert not instance.running


async def test_a_password(make_redis: RedisFactory) -> None:
    server, recorder = make_redis(password="hunter2"), Recorder()
    instance: PubSub = fanwire.RedisPubSub(server.url, strict=True)
    await instance.start()
    await instance.subscribe_topic("s", "t", recorder)
    await instance.broadcast("t", 1)
    assert await recorder.received(1) == [1]
    await instance.stop()
    wrong = fanwire.RedisPubSub(server.url.replace("hunter2", "wr0ng"))
    with pytest.raises(fanwire.BrokerError) as raised:
        await bounded(wrong.start())
    assert "wr0ng" not in str(raised.value) + repr(wrong) + wrong.url + str(wrong.stats())


async def test_a_topic_that_the_broker_does_not_permit(make_redis: RedisFactory) -> None:
    server = make_redis(
        password="right", acl_user="app", acl_rules="allcommands allkeys resetchannels &good*"
    )
    instance, recorder = fanwire.RedisPubSub(server.url, ""), Recorder()
    await instance.start()
    try:
        await instance.subscribe_topic("s", "good 1", recorder)
        with pytest.raises(fanwire.BrokerError, match=r"(?i)perm"):
            await bounded(instance.subscribe_topic("s", "bad 1", recorder))
        names = [f"{kind} {n}" for n in range(2, 12) for kind in ("good", "bad")]
        outcomes = await bounded(
            asyncio.gather(
                *(instance.subscribe_topic("s", name, recorder) for name in names),
                return_exceptions=True,
            )
        )
        for name, outcome in zip(names, outcomes, strict=True):
            assert isinstance(outcome, fanwire.BrokerError) == name.startswith("bad"), name
        await until_figures(instance, subscribed_topics=11, subscriptions=11)
        for n in range(1, 12):
            await instance.broadcast(f"good {n}", n)
        assert await recorder.received(11) == list(range(1, 12))
    finally:
        await instance.stop()


async def test_topics_that_are_not_permitted_any_more(make_redis: RedisFactory) -> None:
    """Found out at the reconnect, when nobody waits: it is in the log, and the others live on."""
    rules = "allcommands allkeys resetchannels &good &bad"
    server, recorder = make_redis(password="right", acl_user="app", acl_rules=rules), Recorder()
    instance = fanwire.RedisPubSub(server.url, "")
    await instance.start()
    try:
        for topic in ("good", "bad"):
            await instance.subscribe_topic("s", topic, recorder)
        server.kill()
        server.acl_rules = rules.removesuffix(" &bad")
        server.start()
        await until_figures(instance, subscribed_topics=1)
        server.publish("good", '{"topic":"good","message":1}')
        await bounded(heard(instance, "good", recorder, by=instance))
    finally:
        await instance.stop()
