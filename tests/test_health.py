"""What a listener says about itself: ``health()`` and ``on_state_change``."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import fanwire
from tests.conftest import RedisFactory
from tests.deadlines import bounded, until
from tests.servers import AnyServer

Change = tuple[str, str, str | None]
Listener = fanwire.RedisPubSub | fanwire.PostgresPubSub | fanwire.UploadProgressPublisher
Make = Callable[..., Listener]

both = pytest.mark.parametrize(
    ("make", "own_server"),
    [
        (fanwire.RedisPubSub, "redis"),
        (fanwire.PostgresPubSub, "postgres"),
        (fanwire.UploadProgressPublisher, "redis"),
        (fanwire.UploadProgressPublisher, "postgres"),
    ],
    indirect=["own_server"],
)


def steps(changes: list[Change]) -> list[tuple[str, str]]:
    return [(old, new) for old, new, _ in changes]


@both
async def test_a_listener_tells_of_each_change_once(make: Make, own_server: AnyServer) -> None:
    server, changes = own_server, list[Change]()
    listener = make(server.url, on_state_change=lambda *change: changes.append(change))
    assert listener.health()["state"] == "stopped"
    assert listener.health()["last_heard_seconds"] is None
    await bounded(listener.start())
    await until(lambda: listener.health()["state"] == "live", "it is live")
    server.kill()
    await until(lambda: listener.health()["state"] == "degraded", "it says so")
    assert f"127.0.0.1:{server.port}" in listener.health()["error"]
    server.start()
    await until(lambda: listener.health()["state"] == "live", "it is live again")
    assert listener.health()["reconnects"] == 1
    assert listener.health()["last_heard_seconds"] >= 0
    await bounded(listener.stop())
    assert listener.health()["state"] == "stopped"
    expected = [
        ("stopped", "connecting"),
        ("connecting", "live"),
        ("live", "degraded"),
        ("degraded", "live"),
        ("live", "stopped"),
    ]
    await until(lambda: steps(changes) == expected, "every change is told")
    troubles = [error for _, _, error in changes]
    assert troubles[2] is not None
    assert f"127.0.0.1:{server.port}" in troubles[2]
    assert [error for at, error in enumerate(troubles) if at != 2] == [None] * 4


@both
async def test_a_broker_that_never_was_there(make: Make, own_server: AnyServer) -> None:
    server = own_server
    server.kill()
    listener = make(server.url)
    await bounded(listener.start())
    await until(lambda: listener.health()["error"] is not None, "the trouble is known")
    assert listener.health()["state"] == "connecting"
    server.start()
    await until(lambda: listener.health()["state"] == "live", "it has come up")
    await bounded(listener.stop())


@pytest.mark.parametrize("make", [fanwire.RedisPubSub, fanwire.UploadProgressPublisher])
async def test_what_is_wrong_for_good(make: Make, make_redis: RedisFactory) -> None:
    server, changes = make_redis(password="right-one"), list[Change]()
    url = f"redis://:wrong-one@127.0.0.1:{server.port}"
    listener = make(url, on_state_change=lambda *change: changes.append(change))
    with pytest.raises(fanwire.BrokerError):
        await bounded(listener.start())
    health = listener.health()
    assert health["state"] == "stopped"
    assert "wrong-one" not in str(health)
    await until(lambda: len(changes) == 2, "both changes are told")
    assert steps(changes) == [("stopped", "connecting"), ("connecting", "stopped")]
    assert "wrong-one" not in str(changes)


async def test_topics_that_wait_for_the_broker_are_seen(make_redis: RedisFactory) -> None:
    async def handler(topic: str, message: Any) -> None:
        raise AssertionError(f"{topic}: {message}")

    server = make_redis()
    listener = fanwire.RedisPubSub(server.url, subscribe_timeout_seconds=0.01)
    await bounded(listener.start())
    await bounded(listener.subscribe_topic("s", "t", handler))
    await until(lambda: listener.health()["confirmed_topics"] == 1)
    server.kill()
    await until(lambda: listener.health()["state"] == "degraded")
    await bounded(listener.subscribe_topic("s", "u", handler))
    health = listener.health()
    assert (health["wanted_topics"], health["confirmed_topics"]) == (2, 0)
    server.start()
    await until(lambda: listener.health()["confirmed_topics"] == 2, "both are confirmed")
    await bounded(listener.stop())


async def test_a_callback_that_raises_is_reported_and_disturbs_nobody(
    make_redis: RedisFactory,
) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    def failing(old: str, new: str, error: str | None) -> None:
        raise RuntimeError(f"{old} to {new}, {error}")

    listener = fanwire.RedisPubSub(make_redis().url, on_state_change=failing)
    await bounded(listener.start())
    await until(lambda: len(reported) == 2, "both are reported")
    assert [str(context["exception"]) for context in reported] == [
        "stopped to connecting, None",
        "connecting to live, None",
    ]
    assert listener.health()["state"] == "live"
    await bounded(listener.stop())


def test_a_callback_must_be_callable() -> None:
    with pytest.raises(TypeError, match="on_state_change must be callable, not int"):
        fanwire.RedisPubSub(on_state_change=5)  # type: ignore[arg-type]


def test_a_url_that_makes_no_sense_has_no_health() -> None:
    with pytest.raises(fanwire.ConfigError, match="nonsense"):
        fanwire.RedisPubSub("nonsense").health()
