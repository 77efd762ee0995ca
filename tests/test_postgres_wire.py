"""What goes over PostgreSQL: beside the documented asyncpg backend, and as a bystander sees it."""

import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

import fanwire
from tests import pubsub
from tests.deadlines import until
from tests.notifications import tap
from tests.outages import troubles
from tests.postgres_server import PostgresServer
from tests.pubsub import Backend, Provider, PubSub, Recorder, figures, settled
from tests.reference_postgres import ReferencePubSub

backend = pubsub.backend
pytestmark = pytest.mark.parametrize(
    "backend", ["postgres", "publisher-postgres"], indirect=True, scope="function"
)

MESSAGES: list[Any] = [
    None,
    True,
    0,
    -(10**40),
    0.1,
    "",
    'quotes " and \\ and \b\f\n\r\t',
    "ü 検査 🚀 \u2028 \x00 \x7f \ufeff",
    "~m3:abc",
    "~",
    [],
    {},
    [[1, [2, [3]]], {"a": {"b": [None, False]}}],
    {"topic": "another", "message": "inside", "except": "s"},
    {"ü": "key", "": "empty", 'q"\\': 1},
]


@pytest.fixture
async def reference(backend: Backend) -> AsyncIterator[ReferencePubSub]:
    made = ReferencePubSub(server_of(backend).url, backend.prefix)
    await made.start()
    yield made
    await made.stop()


def server_of(backend: Backend) -> PostgresServer:
    assert isinstance(backend.server, PostgresServer)
    return backend.server


# Beside the documented backend


async def test_both_directions_in_one_run(backend: Backend, reference: ReferencePubSub) -> None:
    native = await backend.started()
    there, here = Recorder("the reference's"), Recorder("fanwire's")
    await reference.subscribe_topic("s", "t", there)
    await native.subscribe_topic("s", "t", here)
    expected = []
    for n, message in enumerate(MESSAGES):
        await reference.broadcast("t", ["from the reference", n, message])
        await native.broadcast("t", ["from fanwire", n, message])
        await native.broadcast("t", message)
        expected += [["from the reference", n, message], ["from fanwire", n, message], message]
    assert await there.received(len(expected)) == expected
    await settled(native, "s")
    assert here.messages == expected
    assert {topic for topic, _ in there.calls + here.calls} == {"t"}
    assert [repr(message) for message in here.messages] == [repr(each) for each in expected]


@pytest.mark.parametrize("topic", ["", "room:42", "größe 🚀", "*", "a\r\nb", '"; DROP', "t" * 40])
async def test_both_directions_on_any_topic_that_is_a_channels_name(
    backend: Backend, reference: ReferencePubSub, topic: str
) -> None:
    native = await backend.started()
    there, here = Recorder("the reference's"), Recorder("fanwire's")
    await reference.subscribe_topic("s", topic, there)
    await native.subscribe_topic("s", topic, here)
    await reference.broadcast(topic, 1)
    await native.broadcast(topic, 2)
    assert await there.received(2) == [1, 2]
    await settled(native, "s")
    assert here.calls == there.calls == [(topic, n) for n in (1, 2)]


async def test_one_interface(backend: Backend, reference: ReferencePubSub) -> None:
    for instance in (reference, await backend.started()):
        assert isinstance(instance, Provider)


# As a bystander sees it


async def test_a_topics_payload_is_the_message_alone(backend: Backend) -> None:
    instance = await backend.started()
    with tap(server_of(backend), f"{backend.prefix}t") as heard:
        for message in MESSAGES:
            await instance.broadcast("t", message)
        payloads = heard.payloads()
    assert [json.loads(payload) for payload in payloads] == MESSAGES
    assert not any(payload.startswith("~") for payload in payloads)


async def test_equal_payloads_of_one_transaction_differ_in_white_space(backend: Backend) -> None:
    """PostgreSQL would make one of them."""
    statement = "SELECT pg_notify(%s, %s), pg_notify(%s, %s)"
    channel = f"{backend.prefix}t"
    instance, recorder = await backend.started(), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    server_of(backend).rows(statement, channel, "1", channel, "1")
    server_of(backend).rows(statement, channel, "2", channel, "2 ")
    await settled(instance, "s")
    assert recorder.messages == [1, 2, 2]


@pytest.mark.parametrize("topic", ["x" * 60, "検査" * 12, "x" * 5_000])
async def test_a_long_name_is_hashed_and_travels_in_the_payload(
    backend: Backend, topic: str
) -> None:
    instance, recorder = await backend.started(), Recorder()
    await instance.subscribe_topic("s", topic, recorder)
    channel = backend.prefix + topic
    name = f"fanwire_{hashlib.sha256(channel.encode()).hexdigest()[:32]}"
    assert len(channel.encode()) > 63
    with tap(server_of(backend), name) as heard:
        await instance.broadcast(topic, {"n": 1})
        ((_, payload),) = heard.notifications()
    assert payload == f'~m{len(channel.encode())}:{channel}{{"n":1}}'
    assert await recorder.received(1) == [{"n": 1}]


async def test_a_text_that_is_too_long_comes_in_numbered_parts(backend: Backend) -> None:
    instance, recorder = await backend.started(), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    message = {"text": "ü検🚀" * 3_000}
    with tap(server_of(backend), f"{backend.prefix}t") as heard:
        await instance.broadcast("t", message)
        parts = [re.fullmatch(r"~c([0-9a-f]{16}),(\d+),(\d+):(.+)", p) for p in heard.payloads()]
    found = [part.groups() for part in parts if part is not None]
    assert len(found) == len(parts) >= 4
    assert {(name, total) for name, _, total, _ in found} == {(found[0][0], str(len(found)))}
    assert [int(number) for _, number, _, _ in found] == list(range(len(found)))
    assert json.loads("".join(text for *_, text in found)) == message
    assert await recorder.received(1) == [message]


async def test_a_channel_cannot_have_a_nul(backend: Backend) -> None:
    instance, other = await backend.started(strict=True), Recorder()
    await instance.subscribe_topic("s", "other", other)
    with pytest.raises(fanwire.PublishError, match="NUL"):
        await instance.broadcast("nul\0inside", 1)
    await instance.subscribe_topic("s", "other", other)
    await instance.broadcast("other", "goes on")
    assert await other.received(1) == ["goes on"]


@pytest.mark.xfail(reason="it is subscribed, and nothing can ever come", strict=True)
async def test_a_channel_with_a_nul_cannot_be_subscribed(backend: Backend) -> None:
    instance = await backend.started(strict=True)
    with pytest.raises(fanwire.Error, match="NUL"):
        await instance.subscribe_topic("s", "nul\0inside", Recorder())


# What others send


async def listener(backend: Backend) -> tuple[PubSub, Recorder]:
    instance, recorder = await backend.started(), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    return instance, recorder


def odd(instance: PubSub) -> int:
    """How much came that is no message: bad frames, and what is no JSON."""
    counted = figures(instance)
    return int(counted["malformed"] + counted["not_json"])


STRANGE = [
    "",
    " ",
    "not json",
    "{",
    "[1] [2]",
    "{'a':1}",
    "tru",
    "01",
    "~",
    "~?",
    "~m",
    "~m5",
    "~m99:upload:x",
    "~m-1:x1",
    "~m1x:a1",
    "~x3:abc",
    "~x99:1",
    "~c",
    "~c0123456789abcdef,0,1",
    "~c0123456789abcdef,1,1:x",
    "~c0123456789abcdef,0,0:x",
    "~cxyz,0,2:x",
    "~c0123456789abcdef,0,99999999999999999999:x",
    "~c0123456789abcdef,0,1:not json",
    "~c0123456789abcdef,0,1:~c0123456789abcdef,0,1:1",
]


@pytest.mark.parametrize("payload", STRANGE, ids=lambda payload: ascii(payload)[:40])
async def test_a_payload_of_something_else_is_counted_and_disturbs_nobody(
    backend: Backend, payload: str, caplog: pytest.LogCaptureFixture
) -> None:
    instance, recorder = await listener(backend)
    server_of(backend).notify(f"{backend.prefix}t", payload)
    backend.say("t", "after it")
    await settled(instance, "s")
    assert recorder.calls == [("t", "after it")]
    await until(lambda: odd(instance) == 1, "it is counted")
    assert figures(instance)["handler_failed"] == 0
    await until(lambda: troubles(caplog), "it is told")
    assert f"{backend.prefix}t" in troubles(caplog)[0]


async def test_a_part_that_is_missing_is_counted_and_holds_nobody_up(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    instance, recorder = await listener(backend)
    channel = f"{backend.prefix}t"
    for part in ("0,3:[1,", "2,3:3]"):
        server_of(backend).notify(channel, f"~c0123456789abcdef,{part}")
    for part in ("0,2:[4,", "1,2:5]"):
        server_of(backend).notify(channel, f"~c0123456789abcdee,{part}")
    backend.say("t", "after it")
    await settled(instance, "s")
    assert recorder.messages == [[4, 5], "after it"]
    assert odd(instance) >= 1
    assert troubles(caplog)


async def test_what_is_in_a_malformed_payload_stays_out_of_the_log(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="fanwire")
    instance, _ = await listener(backend)
    for payload in ("secret-content", "~secret-content", "~m99:secret-content"):
        server_of(backend).notify(f"{backend.prefix}t", payload)
    await settled(instance, "s")
    assert odd(instance) == 3
    assert "secret-content" not in caplog.text


async def test_a_flood_of_nonsense_is_logged_in_few_lines(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    instance, recorder = await listener(backend)
    server_of(backend).rows(
        "SELECT pg_notify(%s, 'nonsense ' || n) FROM generate_series(1, 2000) n",
        f"{backend.prefix}t",
    )
    backend.say("t", "after it")
    await settled(instance, "s")
    assert recorder.messages == ["after it"]
    assert odd(instance) == 2_000
    assert 1 <= len(troubles(caplog)) <= 100
