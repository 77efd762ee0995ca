"""What a listener missed is filled in before anything newer, or the client is told."""

import asyncio
import json

import pytest

import fanwire
from tests import histories
from tests.broker_proxy import broker_proxy
from tests.conftest import Unique
from tests.connections import StallingConnection
from tests.deadlines import bounded, until
from tests.histories import (
    RESYNC,
    Client,
    Instance,
    InstanceFactory,
    commands,
    faults,
    note,
    notes,
    progress,
    publish,
)
from tests.redis_server import RedisServer
from tests.servers import AnyServer

make_instance = histories.make_instance

LARGE = fanwire.History(size=5_000)


class StallingClient(StallingConnection, Client):
    """A browser that does not read until it is released."""


async def reconnected(instance: Instance, times: int) -> None:
    await until(
        lambda: (
            instance.publisher.health()["reconnects"] >= times
            and instance.publisher.health()["state"] == "live"
        ),
        "the listener is back",
    )


# Lost on the way


@pytest.mark.parametrize("lost", [{2}, {3, 4}, {2, 4}, {2, 3, 4, 5, 6, 7, 8}], ids=str)
async def test_what_was_lost_comes_before_anything_newer(
    own_server: AnyServer, make_instance: InstanceFactory, unique: Unique, lost: set[int]
) -> None:
    upload = unique("upload")
    worker = await make_instance(own_server.url, start=False)
    async with broker_proxy(own_server) as proxy:
        instance = await make_instance(proxy.url)
        clients = [await instance.watch(upload, user=f"user {n}") for n in range(3)]
        await instance.until_figure("snapshots", 3)
        proxy.swallows = lambda push: push.seen in lost
        await worker.publish(upload, *notes(5), progress(1), *notes(3))
        for client in clients:
            await client.saw(*range(1, 10))
        assert {push.seen for push in proxy.swallowed} == lost
        assert instance.figure("gaps") >= 1
        assert instance.figure("recovered") >= 3 * len(lost)
        assert instance.figure("resyncs") == 0
        await instance.publisher.stop()


async def test_what_was_lost_in_the_first_place(
    own_server: AnyServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    """Nothing was kept when the client came, so the first message that it sees is not the first."""
    upload = unique("upload")
    worker = await make_instance(own_server.url, start=False)
    async with broker_proxy(own_server) as proxy:
        instance = await make_instance(proxy.url)
        client = await instance.watch(upload)
        await instance.until_figure("snapshots", 1)
        proxy.swallows = lambda push: push.seen in {1, 2}
        await worker.publish(upload, *notes(3))
        await client.saw(1, 2, 3)
        await instance.publisher.stop()


async def test_what_comes_while_a_gap_is_filled_waits_for_its_turn(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, another = unique("upload"), unique("another")
    worker = await make_instance(own_redis.url, start=False)
    async with broker_proxy(own_redis) as proxy:
        instance = await make_instance(proxy.url)
        client = await instance.watch(upload)
        other = await instance.watch(another, user="other")
        await instance.until_figure("snapshots", 2)
        await worker.publish(upload, note(1))
        await client.saw(1)
        proxy.swallows = lambda push: push.seen == 2
        proxy.hold_answers()
        own_redis.client.config_resetstat()
        await worker.publish(upload, note(2), note(3))
        await until(
            lambda: commands(own_redis).get("evalsha") == 3, "two are published and the gap is read"
        )
        own_redis.publish(f"upload:{upload}", "plain")
        await worker.publish(upload, note(4))
        # Another upload is not held up by it.
        await worker.publish(another, note(1))
        await other.saw(1)
        assert client.seen == [1]
        late = await instance.watch(upload, user="late")
        proxy.release_answers()
        await client.saw(1, 2, 3, "plain", 4)
        await worker.publish(upload, note(5))
        await client.saw(1, 2, 3, "plain", 4, 5)
        await late.reached(5)
        assert [offset for offset in late.seen if offset != "plain"] == [1, 2, 3, 4, 5]
        await instance.publisher.stop()


# Cut off


async def test_the_listener_is_cut_while_messages_pour_in(
    own_server: AnyServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    uploads = [unique(f"upload {n}") for n in range(5)]
    instance = await make_instance(own_server.url, history=LARGE)
    worker = await make_instance(own_server.url, history=LARGE, start=False)
    clients = {upload: await instance.watch(upload, user=upload) for upload in uploads}
    await instance.until_figure("snapshots", 5)
    dropped: set[int] = set()
    for number in range(1, 201):
        for upload in uploads:
            await worker.publish(upload, note(number))
        if number % 40 == 0 and own_server.listeners() - dropped:
            dropped |= own_server.drop_listeners()
    assert dropped
    for client in clients.values():
        await client.reached(200)
        assert client.seen == list(range(1, 201))
    assert (instance.figure("resyncs"), instance.figure("dropped")) == (0, 0)


async def test_everybody_is_cut_while_two_publish(
    own_server: AnyServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    """What a publisher had under way is sent again, and yet comes once."""
    upload, count = unique("upload"), 400
    instance = await make_instance(own_server.url, history=LARGE)
    client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    workers = {
        name: await make_instance(own_server.url, history=LARGE, start=False) for name in "ab"
    }
    for number in range(count):
        for name, worker in workers.items():
            assert worker.publisher.publish_nowait(upload, note(number, by=name))
        if number % 100 == 50:
            own_server.drop_clients()
        await asyncio.sleep(0)
    for worker in workers.values():
        await until(
            lambda worker=worker: worker.publisher.stats()["published"] == count,  # type: ignore[misc]
            "all of it is published",
        )
    await client.reached(2 * count)
    assert client.seen == list(range(1, 2 * count + 1))
    messages = [json.loads(text) for text in client.texts]
    for name in workers:
        by = [message["number"] for message in messages if message["by"] == name]
        assert by == list(range(count))


async def test_the_output_buffer_is_too_small(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    """The server gives the listener up whenever a large message comes: it never gets through."""
    upload = unique("upload")
    instance = await make_instance(own_redis.url, history=LARGE)
    worker = await make_instance(own_redis.url, history=LARGE, start=False)
    client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    own_redis.client.config_set("client-output-buffer-limit", "pubsub 16kb 0 0")
    for number in range(1, 301):
        more = {"text": "x" * 60_000} if number % 50 == 0 else {}
        await worker.publish(upload, note(number, **more))
    await client.reached(300)
    assert client.seen == list(range(1, 301))
    assert instance.publisher.health()["reconnects"] >= 1
    assert instance.figure("resyncs") == 0


async def test_what_nobody_publishes_after_is_found_at_the_reconnect(
    own_server: AnyServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload = unique("upload")
    worker = await make_instance(own_server.url, start=False)
    async with broker_proxy(own_server) as proxy:
        instance = await make_instance(proxy.url)
        client = await instance.watch(upload)
        await instance.until_figure("snapshots", 1)
        await worker.publish(upload, note(1))
        proxy.swallows = lambda push: push.seen in {2, 3}
        await worker.publish(upload, progress(1), note(2))
        await until(lambda: len(proxy.swallowed) == 2, "they are lost")
        own_server.drop_listeners()
        await client.saw(1, 2, 3)
        await instance.publisher.stop()


async def test_more_is_lost_than_is_kept(
    own_server: AnyServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, few = unique("upload"), fanwire.History(size=5)
    worker = await make_instance(own_server.url, history=few, start=False)
    async with broker_proxy(own_server) as proxy:
        instance = await make_instance(proxy.url, history=few)
        client = await instance.watch(upload)
        await instance.until_figure("snapshots", 1)
        await worker.publish(upload, note(1), note(2))
        await client.saw(1, 2)
        proxy.swallows = lambda push: push.seen in range(3, 10)
        await worker.publish(upload, *notes(4), progress(1), *notes(3))
        await client.saw(1, 2, RESYNC, 7, 8, 9, 10)
        await worker.publish(upload, note(4))
        await client.saw(1, 2, RESYNC, 7, 8, 9, 10, 11)
        await instance.publisher.stop()


# Another history


async def test_the_server_is_emptied(
    own_server: AnyServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(own_server.url)
    client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    await instance.publish(upload, *notes(3))
    own_server.forget()
    await instance.publish(upload, progress(1), note(4))
    await client.saw(1, 2, 3, RESYNC, 1, 2)
    assert faults(client.texts) == []
    own_server.forget()
    # One that comes now finds nothing, and is a watcher like the other from the next message on.
    late = await instance.watch(upload, user="late")
    await instance.until_figure("snapshots", 2)
    await instance.publish(upload, note(5))
    await client.saw(1, 2, 3, RESYNC, 1, 2, RESYNC, 1)
    await late.reached(1)


async def test_the_server_forgets_its_scripts(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(own_redis.url)
    client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    for number in range(1, 4):
        await instance.publish(upload, progress(number))
        own_redis.client.script_flush()
        await (await instance.watch(upload, user=f"user {number}")).saw(number)
        own_redis.client.script_flush()
    await client.saw(1, 2, 3)


async def test_a_restart_that_keeps_nothing(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload, instance = unique("upload"), await make_instance(own_redis.url)
    client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    await instance.publish(upload, *notes(3))
    await client.saw(1, 2, 3)
    own_redis.restart()
    await reconnected(instance, 1)
    worker = await make_instance(own_redis.url, start=False)
    await worker.publish(upload, progress(1), note(4))
    await client.saw(1, 2, 3, RESYNC, 1, 2)


@pytest.mark.parametrize("grown", [False, True], ids=["as it was", "and has grown past it"])
async def test_a_history_that_went_back(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique, grown: bool
) -> None:
    """A server is restored from an old copy, or a replica that was behind takes over."""
    upload = unique("upload")
    async with broker_proxy(own_redis) as proxy:
        instance = await make_instance(proxy.url)
        worker = await make_instance(own_redis.url, start=False)
        client = await instance.watch(upload)
        await instance.until_figure("snapshots", 1)
        await worker.publish(upload, note(1), progress(1), note(2))
        own_redis.client.save()
        await worker.publish(upload, note(3), note(4))
        await client.saw(1, 2, 3, 4, 5)
        own_redis.kill()
        proxy.hold_connections()
        own_redis.start()
        other = await make_instance(own_redis.url, start=False)
        if grown:
            await other.publish(upload, *(note(n, again=True) for n in range(4)))
        proxy.release_connections()
        state = [2, 3, 4, 5, 6, 7] if grown else [2, 3]
        await client.saw(1, 2, 3, 4, 5, RESYNC, *state)
        await other.publish(upload, note(9))
        await client.saw(1, 2, 3, 4, 5, RESYNC, *state, state[-1] + 1)
        await instance.publisher.stop()


# Everything at once


@pytest.mark.timeout(120)
async def test_comings_and_goings_under_faults(
    own_server: AnyServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    """Clients come, leave and come back, messages get lost, and connections are cut."""
    upload, enough = unique("upload"), asyncio.Event()
    worker = await make_instance(own_server.url, history=LARGE, start=False)
    published = 0

    async def pour() -> None:
        nonlocal published
        while not enough.is_set():
            _, published = await publish(worker.publisher, upload, note(published + 1))

    async with broker_proxy(own_server) as proxy:
        proxy.swallows = lambda push: isinstance(push.seen, int) and push.seen % 9 < 2
        instance = await make_instance(proxy.url, history=LARGE)
        staying = [await instance.watch(upload, user=f"staying {n}") for n in range(5)]
        await instance.until_figure("snapshots", 5)
        pouring = asyncio.create_task(pour())
        visits: list[tuple[int, Client]] = []
        for visit in range(60):
            client, since = Client(), visits[-1][1].at if visits else None
            await instance.watch(upload, user="visitor", client=client, since=since)
            visits.append((since[1] + 1 if since else 1, client))
            await until(lambda client=client: client.texts, "something for the visitor")  # type: ignore[misc]
            if visit % 20 == 10:
                own_server.drop_listeners()
            await instance.manager.disconnect("visitor", client)
        enough.set()
        await bounded(pouring)
        # The end must not be lost: nothing comes after it.
        proxy.swallows = lambda _: False
        await worker.publish(upload, note(published + 1))
        for client in staying:
            await client.reached(published + 1)
            assert client.seen == list(range(1, published + 2))
        for first, client in visits:
            assert client.seen == list(range(first, first + len(client.texts)))
        assert instance.figure("resyncs") == 0
        await instance.publisher.stop()
