"""Large messages, equal ones, and many at once, over PostgreSQL."""

import asyncio
import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest

import fanwire
from tests import histories
from tests.conftest import PublisherFactory, Unique, WatcherFactory
from tests.deadlines import DEADLINE_SECONDS, until
from tests.histories import Client, InstanceFactory, kept, note
from tests.interpreters import ROOT, environment
from tests.postgres_server import PostgresServer
from tests.pubsub import Recorder, settled

make_instance = histories.make_instance

MEGABYTE = 1_000_000


async def test_a_megabyte_as_a_topics_message(postgres_server: PostgresServer) -> None:
    here, there = (fanwire.PostgresPubSub(postgres_server.url) for _ in range(2))
    recorder = Recorder()
    await here.start()
    await here.subscribe_topic("s", "t", recorder)
    messages: list[Any] = ["x" * MEGABYTE, {"text": "検🚀" * 140_000}, list(range(150_000))]
    await asyncio.gather(*(there.broadcast("t", message) for message in messages * 2))
    assert await recorder.received(6) == messages * 2
    await here.stop()
    await there.stop()


async def test_a_megabyte_of_an_upload_is_kept_too(
    postgres_server: PostgresServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(postgres_server.url)
    worker = await make_instance(postgres_server.url, start=False)
    client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    messages = [note(n, text=f"{n}" * MEGABYTE) for n in range(3)]
    await worker.publish(upload, *messages)
    await client.saw(1, 2, 3)
    late: Client = await instance.watch(upload, user="late")
    await late.saw(1, 2, 3)
    for texts in (client.texts, late.texts):
        assert [json.loads(text)["text"] for text in texts] == [each["text"] for each in messages]


async def test_a_message_over_the_limit_is_refused(
    postgres_server: PostgresServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(postgres_server.url, max_message_bytes=10_000, strict=True)
    await publisher.publish_progress("u", "x" * 9_998)
    with pytest.raises(ValueError, match="10000"):
        await publisher.publish_progress("u", "x" * 9_999)


async def test_fifty_equal_broadcasts_at_once_arrive_fifty_times(
    postgres_server: PostgresServer,
) -> None:
    here, there = (fanwire.PostgresPubSub(postgres_server.url) for _ in range(2))
    await here.start()
    recorders = {topic: Recorder(topic) for topic in ("t", "x" * 100)}
    for topic, recorder in recorders.items():
        await here.subscribe_topic("s", topic, recorder)
        for message in ("again", "y" * 20_000):
            recorder.calls.clear()
            await asyncio.gather(*(there.broadcast(topic, message) for _ in range(50)))
            assert await recorder.received(50) == [message] * 50
            await settled(here, "s")
            assert len(recorder.calls) == 50
    await here.stop()
    await there.stop()


async def test_fifty_equal_messages_of_an_upload_arrive_fifty_times(
    postgres_server: PostgresServer, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(postgres_server.url)
    message = {"action": "note"}
    await asyncio.gather(
        *(watcher.publisher.publish_progress(watcher.upload_id, message) for _ in range(50)),
        *(watcher.publisher.publish_to_user(watcher.user_id, message) for _ in range(50)),
    )
    await watcher.publisher.publish_to_user(watcher.user_id, "the end")
    await watcher.connection.received_text('"the end"')
    assert len(watcher.connection.texts) == 101


async def test_who_is_excepted_hears_nothing_and_the_others_all(
    postgres_server: PostgresServer,
) -> None:
    here, there = (fanwire.PostgresPubSub(postgres_server.url) for _ in range(2))
    await here.start()
    sessions = {name: Recorder(name) for name in ("s1", "s2", 'odd "ü" ~m3:')}
    for name, recorder in sessions.items():
        await here.subscribe_topic(name, "t", recorder)
    await asyncio.gather(*(there.broadcast("t", n, except_session_id="s1") for n in range(20)))
    await there.broadcast("t", "z" * 20_000, except_session_id='odd "ü" ~m3:')
    for name, recorder in sessions.items():
        await settled(here, name)
        numbers = [] if name == "s1" else list(range(20))
        text = [] if name == 'odd "ü" ~m3:' else ["z" * 20_000]
        assert recorder.messages == numbers + text
    await here.stop()
    await there.stop()


async def test_five_thousand_topics(postgres_server: PostgresServer) -> None:
    here, there = (
        fanwire.PostgresPubSub(postgres_server.url, subscribe_timeout_seconds=DEADLINE_SECONDS)
        for _ in range(2)
    )
    recorder, names = Recorder(), [f"room {n}" for n in range(5_000)]
    await here.start()
    await asyncio.gather(*(here.subscribe_topic("s", name, recorder) for name in names))
    assert here.health()["confirmed_topics"] == 5_000
    await asyncio.gather(*(there.broadcast(name, name) for name in names))
    assert sorted(await recorder.received(5_000)) == sorted(names)
    postgres_server.drop_listeners()
    await until(lambda: here.health()["confirmed_topics"] == 5_000 and here.health()["reconnects"])
    recorder.calls.clear()
    await asyncio.gather(*(there.broadcast(name, name) for name in names[::10]))
    assert sorted(await recorder.received(500)) == sorted(names[::10])
    await here.unsubscribe_all("s")
    assert here.stats()["subscribed_topics"] == 0
    await here.stop()
    await there.stop()


PUBLISHES = textwrap.dedent(
    """
    import asyncio, sys
    import fanwire

    async def main(url, upload, name):
        publisher = fanwire.UploadProgressPublisher(
            url, history=fanwire.History(size=2_000), publish_timeout_seconds=20
        )
        for n in range(10):
            await asyncio.gather(*(
                publisher.publish_progress(upload, {"action": "note", "by": name, "n": 50 * n + k})
                for k in range(50)
            ))
        assert publisher.stats()["published"] == 500, publisher.stats()
        await publisher.stop()

    asyncio.run(main(*sys.argv[1:]))
    """
)


async def test_two_processes_share_a_history(
    postgres_server: PostgresServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload = unique("upload")
    instance = await make_instance(
        postgres_server.url,
        history=fanwire.History(size=2_000),
        manager=fanwire.ConnectionManager(coalesce=False),
    )
    client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    commands = [
        [sys.executable, "-c", PUBLISHES, postgres_server.url, upload, name] for name in "ab"
    ]
    processes = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT)  # noqa: ASYNC220
        for command in commands
    ]
    outcomes = [await asyncio.to_thread(process.communicate) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outcomes
    await client.reached(1_000)
    assert client.seen == list(range(1, 1_001))
    messages = [json.loads(text) for text in client.texts]
    assert [m["_fanwire"]["offset"] for m in kept(postgres_server, upload)] == client.seen
    for name in "ab":
        assert [m["n"] for m in messages if m["by"] == name] == list(range(500))
