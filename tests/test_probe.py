"""A listener whose connection is up and which hears nothing finds that out by itself."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

import fanwire
from tests import histories
from tests.broker_proxy import broker_proxy
from tests.conftest import PublisherFactory, Unique
from tests.deadlines import bounded, until
from tests.histories import InstanceFactory, commands, note, progress
from tests.outages import troubles
from tests.pubsub import Recorder
from tests.redis_server import RedisServer
from tests.servers import AnyServer

make_instance = histories.make_instance

# A probe begins a few seconds after the last message, and is waited for a few more.
pytestmark = pytest.mark.timeout(150)
SLOW_SECONDS = 60.0

PROBES = "fanwire:probe:*"


class Tap:
    """Hears what is published on the channels of probes, as any other program might."""

    def __init__(self, server: RedisServer) -> None:
        self._pubsub = server.client.pubsub(  # type: ignore[no-untyped-call]
            ignore_subscribe_messages=True
        )
        self._pubsub.psubscribe(PROBES)
        self._pubsub.get_message(timeout=20)
        self._channels: list[str] = []

    @property
    def channels(self) -> list[str]:
        """The channel of each probe so far."""
        while (message := self._pubsub.get_message()) is not None:
            self._channels.append(message["channel"].decode())
        return self._channels

    async def heard(self, probes: int) -> None:
        await until(lambda: len(self.channels) >= probes, "a probe", deadline_seconds=SLOW_SECONDS)

    def close(self) -> None:
        self._pubsub.close()


def probed(server: RedisServer) -> set[bytes | str]:
    """The channels on which somebody listens for probes."""
    return set(server.client.pubsub_channels(PROBES))


async def test_a_deaf_listener_is_found_and_connects_anew(
    own_server: AnyServer,
    make_instance: InstanceFactory,
    unique: Unique,
    caplog: pytest.LogCaptureFixture,
) -> None:
    upload, changes = unique("upload"), list[tuple[str, str, str | None]]()
    worker = await make_instance(own_server.url, start=False)
    async with broker_proxy(own_server) as proxy:
        instance = await make_instance(
            proxy.url, on_state_change=lambda *change: changes.append(change)
        )
        listener, recorder = instance.publisher, Recorder()
        client = await instance.watch(upload)
        await listener.subscribe_topic("s", "t", recorder)
        await worker.publish(upload, progress(1))
        await client.saw(1)
        proxy.deafen()
        await worker.publish(upload, note(1))
        await worker.publisher.broadcast("t", "lost")
        await until(lambda: len(proxy.swallowed) == 2, "nothing of it is heard")
        assert listener.health()["state"] == "live"
        await until(
            lambda: proxy.listeners == 2 and listener.health()["state"] == "live",
            "another connection",
            deadline_seconds=SLOW_SECONDS,
        )
        # What is recorded comes after all; what is not was lost while nobody knew.
        await client.saw(1, 2)
        await worker.publish(upload, note(2))
        await client.saw(1, 2, 3)
        await worker.publisher.broadcast("t", "heard")
        assert await recorder.received(1) == ["heard"]
        steps = [(old, new) for old, new, _ in changes]
        assert steps[-2:] == [("live", "degraded"), ("degraded", "live")]
        assert "does not hear" in str(changes[-2][2])
        (line,) = troubles(caplog)
        assert "does not hear" in line
        assert listener.health()["reconnects"] == 1
        await listener.stop()


async def test_a_listener_that_hears_its_probes_is_left_alone(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    """And nobody else takes notice of them."""
    upload, tap = unique("upload"), Tap(own_redis)
    instance = await make_instance(own_redis.url, channel_prefix="")
    recorder, client = Recorder(), await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    await instance.publisher.subscribe_topic("s", "t", recorder)
    await tap.heard(1)
    assert probed(own_redis) == {tap.channels[0].encode()}
    stats = instance.publisher.stats()
    names = ("received", "unwatched", "published", "publish_failed", "reconnects")
    assert [stats[name] for name in names] == [0] * 5
    assert stats["topics"]["delivered"] == 0
    assert recorder.calls == [] and client.texts == []
    assert instance.publisher.health()["state"] == "live"
    assert own_redis.client.dbsize() == 0
    tap.close()


async def test_no_probe_while_messages_come(
    own_redis: RedisServer, make_publisher: PublisherFactory
) -> None:
    """Beside it one that hears nothing is probed, and so there would have been the time."""
    tap, enough = Tap(own_redis), asyncio.Event()
    busy = make_publisher(own_redis.url, manager=fanwire.ConnectionManager())
    await busy.start()

    async def pour() -> None:
        while not enough.is_set():
            own_redis.publish("upload:x", "for nobody here")
            await asyncio.sleep(0.005)

    pouring = asyncio.create_task(pour())
    idle = fanwire.RedisPubSub(own_redis.url)
    await idle.start()
    await tap.heard(1)
    assert probed(own_redis) == {tap.channels[0].encode()}
    await bounded(idle.stop())
    enough.set()
    await pouring
    # Left alone it is probed too.
    await until(lambda: len(set(tap.channels)) == 2, "another probe", deadline_seconds=SLOW_SECONDS)
    tap.close()


async def test_each_listener_has_a_channel_of_its_own(
    own_redis: RedisServer, make_publisher: PublisherFactory
) -> None:
    for _ in range(3):
        await make_publisher(own_redis.url, manager=fanwire.ConnectionManager()).start()
    await until(lambda: len(probed(own_redis)) == 3, deadline_seconds=SLOW_SECONDS)
    own_redis.drop_listeners()
    await until(lambda: not probed(own_redis))
    await until(lambda: len(probed(own_redis)) == 3, deadline_seconds=SLOW_SECONDS)


@pytest.mark.parametrize(
    "rules",
    [
        "allcommands allkeys resetchannels &upload:* &user:*",
        "allcommands -publish allkeys allchannels",
    ],
    ids=["subscribing", "publishing"],
)
async def test_a_probe_that_is_not_allowed(
    make_redis: Callable[..., RedisServer],
    make_instance: InstanceFactory,
    unique: Unique,
    caplog: pytest.LogCaptureFixture,
    rules: str,
) -> None:
    caplog.set_level(logging.WARNING, "fanwire")
    server = make_redis(password="right", acl_user="app", acl_rules=rules)
    upload, changes = unique("upload"), list[Any]()
    instance = await make_instance(
        server.url, history=None, on_state_change=lambda *change: changes.append(change)
    )
    client = await instance.watch(upload)

    def warnings() -> list[str]:
        return [line for line in troubles(caplog) if "probe" in line]

    await until(warnings, "it is told", deadline_seconds=SLOW_SECONDS)
    assert troubles(caplog) == warnings()
    assert f"127.0.0.1:{server.port}" in warnings()[0] and "PING" in warnings()[0]
    assert instance.publisher.health()["state"] == "live"
    # A connection that is new is probed no more: PING has to do.
    server.drop_listeners()
    await until(lambda: instance.publisher.health()["reconnects"] == 1, "it is back")
    before = commands(server).get("ping", 0)
    await until(lambda: commands(server)["ping"] >= before + 5, deadline_seconds=SLOW_SECONDS)
    assert len(warnings()) == 1
    server.publish(f"upload:{upload}", "heard")
    await client.saw("heard")
    assert [new for _, new, _ in changes] == ["connecting", "live", "degraded", "live"]
