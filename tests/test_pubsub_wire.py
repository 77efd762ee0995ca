"""What goes over the wire: side by side with the pure-Python reference, and what others send."""

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests import pubsub
from tests.outages import troubles
from tests.pubsub import (
    Backend,
    Provider,
    PubSub,
    Recorder,
    figures,
    redis_kinds,
    settled,
    until_figures,
)
from tests.redis_server import RedisServer
from tests.reference_pubsub import ReferencePubSub

backend = pubsub.backend
pytestmark = redis_kinds

MESSAGES: list[Any] = [
    None,
    True,
    0,
    -7,
    2**64,
    -(10**40),
    0.1,
    1e300,
    "",
    'quotes " and \\ and \b\f\n\r\t',
    "ü 検査 🚀 \u2028 \x00 \x7f \ufeff",
    [],
    {},
    [[1, [2, [3]]], {"a": {"b": [None, False]}}],
    {"topic": "another", "message": "inside", "except": "s"},
    {"ü": "key", "": "empty", 'q"\\': 1},
]


@pytest.fixture
async def reference(backend: Backend) -> AsyncIterator[ReferencePubSub]:
    assert backend.server is not None
    made = ReferencePubSub(backend.server.url, backend.prefix)
    await made.start()
    yield made
    await made.stop()


def server_of(backend: Backend) -> RedisServer:
    assert isinstance(backend.server, RedisServer)
    return backend.server


def publish(backend: Backend, topic: str, payload: str | bytes) -> int:
    """As any other program might, right or wrong; how many clients received it."""
    return server_of(backend).publish(backend.prefix + topic, payload)


# Beside the reference


async def test_both_directions_in_one_run(backend: Backend, reference: ReferencePubSub) -> None:
    native = await backend.started()
    there, here = Recorder("the reference's"), Recorder("fanwire's")
    await reference.subscribe_topic("s", "t", there)
    await native.subscribe_topic("s", "t", here)
    expected = []
    for n, message in enumerate(MESSAGES):
        await reference.broadcast("t", ["from the reference", n, message])
        await native.broadcast("t", ["from fanwire", n, message])
        expected += [["from the reference", n, message], ["from fanwire", n, message]]
    assert await there.received(len(expected)) == expected
    await settled(native, "s")
    assert here.messages == expected
    assert {topic for topic, _ in there.calls + here.calls} == {"t"}
    assert [repr(message) for message in here.messages] == [repr(each) for each in expected]


@pytest.mark.parametrize("topic", ["", "room:42", "größe 🚀", "*", "a\r\nb", '"}', "nul\x00"])
async def test_both_directions_on_any_topic(
    backend: Backend, reference: ReferencePubSub, topic: str
) -> None:
    native = await backend.started()
    there, here = Recorder("the reference's"), Recorder("fanwire's")
    await reference.subscribe_topic("s", topic, there)
    await native.subscribe_topic("s", topic, here)
    await reference.broadcast(topic, 1)
    await native.broadcast(topic, 2)
    await native.broadcast(topic, 3, except_session_id="nobody")
    assert await there.received(3) == [1, 2, 3]
    await settled(native, "s")
    assert here.calls == there.calls == [(topic, n) for n in (1, 2, 3)]


async def test_the_reference_leaves_and_fanwire_stays(
    backend: Backend, reference: ReferencePubSub
) -> None:
    native = await backend.started()
    there, here = Recorder(), Recorder()
    await reference.subscribe_topic("s", "t", there)
    await native.subscribe_topic("s", "t", here)
    await reference.unsubscribe_all("s")
    await native.broadcast("t", 1)
    await reference.broadcast("t", 2)
    await settled(native, "s")
    assert (there.messages, here.messages) == ([], [1, 2])


async def test_one_interface(backend: Backend, reference: ReferencePubSub) -> None:
    instances: list[Provider] = [reference, backend.make()]
    for instance in instances:
        assert isinstance(instance, Provider)
        await instance.start()


# The payload itself


def tap(backend: Backend, *topics: str) -> Any:
    return server_of(backend).tap(*(backend.prefix + topic for topic in topics))


def next_payload(listening: Any) -> str:
    for _ in range(50):
        message = listening.get_message(timeout=20)
        if message is not None:
            payload: bytes = message["data"]
            return payload.decode()
    raise AssertionError("nothing was published")


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: ascii(message)[:30])
async def test_a_payload_has_a_topic_and_a_message(backend: Backend, message: Any) -> None:
    instance, listening = await backend.started(), tap(backend, "t")
    await instance.broadcast("t", message)
    await instance.broadcast("t", message, except_session_id='s "1" ü')
    plain = {"topic": "t", "message": message}
    assert json.loads(next_payload(listening)) == plain
    assert json.loads(next_payload(listening)) == {**plain, "except": 's "1" ü'}
    listening.close()


async def test_the_members_come_in_the_documented_order(backend: Backend) -> None:
    instance, listening = await backend.started(), tap(backend, "t")
    await instance.broadcast("t", 1)
    assert list(json.loads(next_payload(listening))) == ["topic", "message"]
    listening.close()


async def test_broadcasting_needs_no_start(backend: Backend) -> None:
    worker, listening = backend.make(), tap(backend, "t")
    await worker.broadcast("t", "from a worker")
    assert json.loads(next_payload(listening))["message"] == "from a worker"
    listening.close()


# What others send


async def listener(backend: Backend) -> tuple[PubSub, Recorder]:
    instance, recorder = await backend.started(), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    return instance, recorder


NOT_JSON: list[str | bytes] = [
    b"",
    b" ",
    b"not json",
    b"{",
    b'{"topic":"t","message":',
    b'{"topic":"t","message":1}}',
    b'{"topic":"t","message":1} {"topic":"t","message":1}',
    b"{'topic':'t','message':1}",
    b'{"topic":"t","message":tru}',
    b'{"topic":"t","message":01}',
    b'{"topic":"t","message":"\xff"}',
    b'{"topic":"t","message":"\n"}',
    b"\xff\xfe\x00",
]
# JSON, and yet nothing that a backend says.
STRANGE: list[str | bytes] = [
    b"null",
    b"17",
    b'"message"',
    b"[]",
    b'["message"]',
    b"{}",
    b'{"topic":"t"}',
    b'{"topic":"t","Message":1}',
]


@pytest.mark.parametrize("payload", NOT_JSON + STRANGE, ids=lambda payload: ascii(payload)[:40])
async def test_a_payload_of_something_else_is_counted_and_disturbs_nobody(
    backend: Backend, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    instance, recorder = await listener(backend)
    assert publish(backend, "t", payload) == 1
    publish(backend, "t", '{"topic":"t","message":"after it"}')
    await settled(instance, "s")
    assert recorder.calls == [("t", "after it")]
    await until_figures(instance, not_json=1, received=3, handler_failed=0)
    assert troubles(caplog)
    assert backend.prefix + "t" in troubles(caplog)[0]


async def test_what_is_in_a_malformed_payload_stays_out_of_the_log(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="fanwire")
    instance, _ = await listener(backend)
    publish(backend, "t", b"\xff secret-content")
    publish(backend, "t", '{"topic":"t","massage":"secret-content"}')
    await settled(instance, "s")
    assert figures(instance)["not_json"] == 2
    assert "secret-content" not in caplog.text


@pytest.mark.parametrize("excepted", [5, None, True, ["s"], {"s": 1}, 1.5], ids=repr)
async def test_an_exception_that_is_no_session_id(backend: Backend, excepted: Any) -> None:
    """Whatever it may mean, nobody breaks and the next message comes."""
    instance, recorder = await listener(backend)
    publish(backend, "t", json.dumps({"topic": "t", "message": "odd", "except": excepted}))
    publish(backend, "t", '{"topic":"t","message":"after it"}')
    await settled(instance, "s")
    assert recorder.messages in (["odd", "after it"], ["after it"])
    counted = figures(instance)["not_json"]
    assert counted == 2 - len(recorder.messages)


@pytest.mark.parametrize("depth", [1_000, 100_000])
async def test_a_payload_that_is_nested_too_deep(backend: Backend, depth: int) -> None:
    instance, recorder = await listener(backend)
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        nested = opening * depth + "1" + closing * depth
        publish(backend, "t", '{"topic":"t","message":' + nested + "}")
    publish(backend, "t", '{"topic":"t","message":"after it"}')
    await settled(instance, "s")
    assert recorder.messages[-1] == "after it"
    # Beyond the envelope, a message is read when a session's turn comes.
    counted = figures(instance)
    assert counted["not_json"] + counted["undecodable"] == 3 - len(recorder.messages)


async def test_members_that_fanwire_does_not_know(backend: Backend) -> None:
    instance, recorder = await listener(backend)
    publish(backend, "t", '{"v":2,"message":1,"more":{"message":2},"topic":"t","at":[1]}')
    publish(backend, "t", ' {\n"message" :\t[ 1 , 2 ] , "topic" : "t" } \r\n')
    publish(backend, "t", '{"\\u0074opic":"t","mess\\u0061ge":"escaped"}')
    await settled(instance, "s")
    assert recorder.messages == [1, [1, 2], "escaped"]


async def test_a_flood_of_nonsense_is_logged_in_few_lines(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    instance, recorder = await listener(backend)
    with server_of(backend).client.pipeline(transaction=False) as pipeline:
        for _ in range(2_000):
            pipeline.publish(backend.prefix + "t", "nonsense")
        pipeline.execute()
    publish(backend, "t", '{"topic":"t","message":"after it"}')
    await settled(instance, "s")
    assert recorder.messages == ["after it"]
    assert figures(instance)["not_json"] == 2_000
    assert 1 <= len(troubles(caplog)) <= 100


async def test_messages_nobody_here_asked_for_do_not_arrive(backend: Backend) -> None:
    """The channel decides who receives, as it does for the reference's subscription."""
    instance, recorder = await listener(backend)
    other = Recorder("of another topic")
    await instance.subscribe_topic("s", "other", other)
    assert publish(backend, "nobody", '{"topic":"t","message":1}') == 0
    publish(backend, "t", '{"topic":"t","message":"mine"}')
    await settled(instance, "s")
    assert (recorder.messages, other.messages) == (["mine"], [])
