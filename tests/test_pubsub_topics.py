"""Sessions, topics and messages: what a backend does when all goes well, on every kind of it."""

import asyncio
from typing import Any

import pytest

import fanwire
from tests import pubsub
from tests.connections import RecordingConnection
from tests.pubsub import (
    Backend,
    Recorder,
    brokered_kinds,
    every_kind,
    figures,
    redis_kinds,
    settled,
)

backend = pubsub.backend

NAMES = [
    "",
    " ",
    "counter",
    "room:42",
    "upload:x",
    "user:ada",
    "*",
    "?",
    "[x]",
    "room:[a-z]*",
    "h\\*llo",
    "line\r\nbreak",
    "nul\x00inside",
    "größe 検査 🚀",
    "e\u0301",
    "x" * 5_000,
    '{"topic":"x"}',
]


def names_of(backend: Backend) -> list[str]:
    """PostgreSQL cannot carry a NUL, and says so."""
    of_postgres = backend.kind.endswith("postgres")
    return [name for name in NAMES if not (of_postgres and "\0" in name)]


@every_kind
async def test_a_broadcast_reaches_every_session_of_the_topic(backend: Backend) -> None:
    instance = await backend.started()
    rooms = {room: [Recorder(f"{room} {n}") for n in range(3)] for room in ("red", "blue")}
    for room, recorders in rooms.items():
        for recorder in recorders:
            await instance.subscribe_topic(recorder.name, room, recorder)
    await instance.broadcast("red", {"n": 1})
    await instance.broadcast("blue", {"n": 2})
    await instance.broadcast("green", {"n": 3})
    await instance.broadcast("red", {"n": 4})
    await settled(instance, *(recorder.name for room in rooms.values() for recorder in room))
    for recorder in rooms["red"]:
        assert recorder.calls == [("red", {"n": 1}), ("red", {"n": 4})]
    for recorder in rooms["blue"]:
        assert recorder.calls == [("blue", {"n": 2})]


@every_kind
async def test_one_handler_for_several_topics_of_several_sessions(backend: Backend) -> None:
    instance, shared = await backend.started(), Recorder()
    for session in ("s1", "s2"):
        for topic in ("t1", "t2"):
            await instance.subscribe_topic(session, topic, shared)
    await instance.broadcast("t1", 1)
    await instance.broadcast("t2", 2)
    await settled(instance, "s1", "s2")
    assert sorted(shared.calls) == [("t1", 1), ("t1", 1), ("t2", 2), ("t2", 2)]


@brokered_kinds
async def test_every_instance_hears_it_once_the_one_that_speaks_too(backend: Backend) -> None:
    instances = [await backend.started() for _ in range(3)]
    recorders = [Recorder(f"instance {n}") for n in range(3)]
    for instance, recorder in zip(instances, recorders, strict=True):
        await instance.subscribe_topic("the same session id", "t", recorder)
    for n, instance in enumerate(instances):
        await instance.broadcast("t", n)
    for instance, recorder in zip(instances, recorders, strict=True):
        await settled(instance, "the same session id")
        assert recorder.messages == [0, 1, 2]


@every_kind
async def test_a_session_that_left_hears_nothing_more(backend: Backend) -> None:
    instance = await backend.started()
    leaving, staying = Recorder(), Recorder()
    await instance.subscribe_topic("leaving", "t", leaving)
    await instance.subscribe_topic("staying", "t", staying)
    await instance.broadcast("t", 1)
    await leaving.received(1)
    await instance.unsubscribe_topic("leaving", "t")
    await instance.broadcast("t", 2)
    await settled(instance, "leaving", "staying")
    assert (leaving.messages, staying.messages) == ([1], [1, 2])


@every_kind
async def test_unsubscribe_topic_leaves_the_session_s_other_topics(backend: Backend) -> None:
    instance, recorder = await backend.started(), Recorder()
    for topic in ("t1", "t2", "t3"):
        await instance.subscribe_topic("s", topic, recorder)
    await instance.unsubscribe_topic("s", "t2")
    for topic in ("t1", "t2", "t3"):
        await instance.broadcast(topic, topic)
    await settled(instance, "s")
    assert recorder.messages == ["t1", "t3"]


@every_kind
async def test_unsubscribe_all_takes_one_session_out_of_every_topic(backend: Backend) -> None:
    instance, leaving, staying = await backend.started(), Recorder(), Recorder()
    for topic in ("t1", "t2", "t3"):
        await instance.subscribe_topic("leaving", topic, leaving)
        await instance.subscribe_topic("staying", topic, staying)
    await instance.unsubscribe_all("leaving")
    for topic in ("t1", "t2", "t3"):
        await instance.broadcast(topic, topic)
    await settled(instance, "leaving", "staying")
    assert leaving.messages == []
    assert staying.messages == ["t1", "t2", "t3"]


@every_kind
async def test_unsubscribing_what_is_not_subscribed_is_no_error(backend: Backend) -> None:
    instance, recorder = await backend.started(), Recorder()
    await instance.unsubscribe_topic("nobody", "nothing")
    await instance.unsubscribe_all("nobody")
    await instance.subscribe_topic("s", "t", recorder)
    await instance.unsubscribe_topic("s", "another")
    await instance.unsubscribe_topic("another", "t")
    await instance.unsubscribe_all("another")
    await instance.broadcast("t", 1)
    assert await recorder.received(1) == [1]
    for _ in range(2):
        await instance.unsubscribe_topic("s", "t")
        await instance.unsubscribe_all("s")
    assert figures(instance)["subscriptions"] == 0


@every_kind
async def test_the_last_handler_of_a_pair_wins(backend: Backend) -> None:
    instance = await backend.started()
    old, new = Recorder("old"), Recorder("new")
    await instance.subscribe_topic("s", "t", old)
    await instance.broadcast("t", 1)
    await old.received(1)
    await instance.subscribe_topic("s", "t", new)
    await instance.broadcast("t", 2)
    await settled(instance, "s")
    assert (old.messages, new.messages) == ([1], [2])
    assert figures(instance)["subscriptions"] == 1
    await instance.unsubscribe_topic("s", "t")
    await instance.broadcast("t", 3)
    await settled(instance, "s")
    assert (old.messages, new.messages) == ([1], [2])


@every_kind
async def test_the_same_handler_subscribed_twice_is_called_once(backend: Backend) -> None:
    instance, recorder = await backend.started(), Recorder()
    for _ in range(3):
        await instance.subscribe_topic("s", "t", recorder)
    await instance.broadcast("t", 1)
    await settled(instance, "s")
    assert recorder.messages == [1]


@every_kind
async def test_a_session_that_comes_back_hears_only_what_is_said_from_then_on(
    backend: Backend,
) -> None:
    instance = await backend.started()
    for visit in range(5):
        recorder = Recorder()
        await instance.subscribe_topic("s", "t", recorder)
        await instance.broadcast("t", visit)
        await settled(instance, "s")
        assert recorder.messages == [visit]
        await instance.unsubscribe_all("s")
        await instance.broadcast("t", "to nobody")
        await settled(instance, "a bystander")


# Leaving the publishing session out


@every_kind
async def test_all_but_one_session(backend: Backend) -> None:
    instance, recorders = await backend.started(), [Recorder(f"s{n}") for n in range(3)]
    for recorder in recorders:
        await instance.subscribe_topic(recorder.name, "t", recorder)
    await instance.broadcast("t", "to the others", except_session_id="s1")
    await instance.broadcast("t", "to all", except_session_id=None)
    await instance.broadcast("t", "to all as well", except_session_id="a stranger")
    await settled(instance, "s0", "s1", "s2")
    others = ["to the others", "to all", "to all as well"]
    assert [recorder.messages for recorder in recorders] == [others, others[1:], others]


@brokered_kinds
async def test_all_but_one_session_on_every_instance(backend: Backend) -> None:
    here, there = await backend.started(), await backend.started()
    recorders = {(i, s): Recorder() for i in (here, there) for s in ("ada", "bob")}
    for (instance, session), recorder in recorders.items():
        await instance.subscribe_topic(session, "t", recorder)
    await here.broadcast("t", 1, except_session_id="ada")
    for instance in (here, there):
        await settled(instance, "ada", "bob")
        assert recorders[instance, "ada"].messages == []
        assert recorders[instance, "bob"].messages == [1]


@every_kind
@pytest.mark.parametrize("session", ["", "s", "größe 🚀", '"}\\', "nul\x00"], ids=ascii)
async def test_any_session_id(backend: Backend, session: str) -> None:
    if backend.kind.endswith("postgres"):
        session = session.replace("\0", "\1")  # it cannot carry a NUL
    instance, named, other = await backend.started(), Recorder(), Recorder()
    await instance.subscribe_topic(session, "t", named)
    await instance.subscribe_topic(session + "x", "t", other)
    await instance.broadcast("t", 1, except_session_id=session)
    await instance.broadcast("t", 2)
    await settled(instance, session, session + "x")
    assert (named.messages, other.messages) == ([2], [1, 2])
    await instance.unsubscribe_all(session)
    assert figures(instance)["sessions"] == 1


# Names of topics


@every_kind
async def test_a_topic_is_a_name_and_never_a_pattern(backend: Backend) -> None:
    instance = await backend.started()
    names = names_of(backend)
    recorders = {name: Recorder(name) for name in names}
    for name, recorder in recorders.items():
        await instance.subscribe_topic("s", name, recorder)
    for name in [*names, "x", "room:a", "room:b1", "hello", "h*llo", "counter "]:
        await instance.broadcast(name, name)
    await settled(instance, "s")
    for name, recorder in recorders.items():
        assert recorder.calls == [(name, name)]
    for name in names:
        await instance.unsubscribe_topic("s", name)
        await instance.broadcast(name, "too late")
    await settled(instance, "s")
    assert {len(recorder.calls) for recorder in recorders.values()} == {1}
    assert figures(instance)["subscribed_topics"] == 0


@brokered_kinds
@pytest.mark.parametrize("prefix", ["", "*", "upload:", "user:", "app[1]:", "größe:"])
async def test_any_prefix(backend: Backend, prefix: str) -> None:
    here = await backend.started(channel_prefix=prefix)
    there = await backend.started(channel_prefix=prefix)
    names = names_of(backend)
    recorders = {name: Recorder(name) for name in names}
    for name, recorder in recorders.items():
        await there.subscribe_topic("s", name, recorder)
    for name in names:
        await here.broadcast(name, name)
    await settled(there, "s")
    for name, recorder in recorders.items():
        assert recorder.calls == [(name, name)]


@brokered_kinds
async def test_prefixes_keep_apps_apart(backend: Backend) -> None:
    apps = {prefix: await backend.started(channel_prefix=prefix) for prefix in ("a:", "b:", "a:b:")}
    recorders = {prefix: Recorder(prefix) for prefix in apps}
    for prefix, app in apps.items():
        await app.subscribe_topic("s", "t", recorders[prefix])
        await app.subscribe_topic("s", "b:t", recorders[prefix])
    for prefix, app in apps.items():
        await app.broadcast("t", prefix)
    for app in apps.values():
        await settled(app, "s")
    assert recorders["a:"].calls == [("t", "a:"), ("b:t", "a:b:")]
    assert recorders["b:"].calls == [("t", "b:")]
    assert recorders["a:b:"].calls == [("t", "a:b:")]


# One object for the uploads and for the topics of an app


@redis_kinds
@pytest.mark.parametrize("prefix", ["", "upload:", "pyview:"])
async def test_a_topic_beside_an_upload_of_the_same_channel(backend: Backend, prefix: str) -> None:
    """Both a pattern and a channel match here, and the broker says it twice."""
    manager, connection, recorder = fanwire.ConnectionManager(), RecordingConnection(), Recorder()
    listening = fanwire.UploadProgressPublisher(
        backend.server.url if backend.server else None, manager=manager, channel_prefix=prefix
    )
    topic = "x" if prefix == "upload:" else "upload:x"
    await manager.connect("ada", connection)
    await manager.subscribe_upload("ada", "x")
    await listening.start()
    try:
        await listening.subscribe_topic("s", topic, recorder)
        other = await backend.started(channel_prefix=prefix)
        await other.broadcast(topic, {"n": 1})
        await listening.publish_progress("x", {"message": {"n": 2}, "topic": topic})
        await settled(listening, "s")
        await listening.publish_to_user("ada", "the end")
        await connection.received_text('"the end"')
        of_the_topic = '{"topic":"upload:x","message":{"n":1}}'
        of_the_upload = '{"message":{"n":2},"topic":"upload:x"}'
        if prefix == "pyview:":
            assert recorder.calls == [(topic, {"n": 1})]
            assert connection.texts == [of_the_upload, '"the end"']
        else:
            assert recorder.calls == [(topic, {"n": 1}), (topic, {"n": 2})]
            texts = [text.replace('"x"', '"upload:x"') for text in connection.texts]
            assert texts == [of_the_topic, of_the_upload, '"the end"']
    finally:
        await listening.stop()


@pytest.mark.parametrize(
    "backend", ["publisher-redis", "publisher-postgres", "publisher-memory"], indirect=True
)
async def test_a_publisher_serves_uploads_and_topics_side_by_side(backend: Backend) -> None:
    manager, connection, recorder = fanwire.ConnectionManager(), RecordingConnection(), Recorder()
    both: Any = fanwire.UploadProgressPublisher(
        backend.server.url if backend.server else "memory://",
        manager=manager,
        channel_prefix=backend.prefix,
    )
    await manager.connect("ada", connection)
    await manager.subscribe_upload("ada", "u1")
    await both.start()
    try:
        await both.subscribe_topic("s", "u1", recorder)
        await asyncio.gather(
            *(both.publish_progress("u1", n) for n in range(50)),
            *(both.broadcast("u1", n) for n in range(50)),
        )
        assert await recorder.received(50) == list(range(50))
        assert await connection.received(50) == [str(n) for n in range(50)]
        if backend.server is not None:
            assert len(backend.server.listeners()) == 1
    finally:
        await both.stop()
