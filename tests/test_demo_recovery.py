"""The demo's app in real processes: who comes late, who comes back, and what they are told."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.demo import Client, Demo, OwnInstance
from tests.redis_server import RedisServer
from tests.test_demo import check_messages

StartInstance = Callable[..., OwnInstance]


@pytest.fixture
def start_instance() -> Iterator[StartInstance]:
    with ExitStack() as instances:
        yield lambda **settings: instances.enter_context(OwnInstance(**settings))


@pytest.fixture(scope="module")
def shared() -> Iterator[OwnInstance]:
    """An instance on memory://."""
    with OwnInstance() as instance:
        yield instance


async def half_received(client: Client, upload_id: str) -> Any:
    """The message that tells it; nothing more comes until the other half is sent."""
    await client.watch(upload_id)
    while (message := await client.receive())["payload"]["progress_percent"] != 25:
        pass
    return message


async def test_who_comes_late_to_the_other_instance_is_told_at_once(
    redis_server: RedisServer,
) -> None:
    with Demo("--redis", redis_server.url, instances=2) as demo:
        one, other = demo.instances
        early = await one.sign_in("bob")
        upload_id = await one.new_upload("ada", 1000)
        pace = "?bytes_per_second=5000"
        async with one.begin("ada", upload_id, 1000, b"x" * 500, pace):
            newest = await half_received(early, upload_id)
            for instance in demo.instances:
                late = await instance.sign_in("cleo")
                await late.watch(upload_id)
                assert await late.receive() == newest
                await late.socket.close()
        failed = (await early.until_over())[-1]
        late = await other.sign_in("dora")
        await late.watch(upload_id)
        assert await late.receive() == failed
        await late.socket.close()
        await early.socket.close()


async def test_how_an_upload_ended_outlives_the_instance_that_received_it(
    start_instance: StartInstance, redis_server: RedisServer
) -> None:
    staying = start_instance(broker_url=redis_server.url)
    with OwnInstance(broker_url=redis_server.url) as receiving:
        upload_id = await receiving.instance.new_upload("ada", 4)
        assert (await receiving.instance.put("ada", upload_id, b"1\n2\n")).status == 200
    late = await staying.instance.sign_in("bob")
    await late.watch(upload_id)
    message = await late.receive()
    assert message["action"] == "upload_completed"
    assert message["description"].endswith("Lines: 2")
    await late.socket.close()


async def test_who_comes_back_gets_what_was_missed_and_nothing_twice(
    start_instance: StartInstance, redis_server: RedisServer
) -> None:
    one, other = (start_instance(broker_url=redis_server.url).instance for _ in range(2))
    upload_id = await one.new_upload("ada", 1000)
    watcher = await other.sign_in("bob")
    await watcher.watch(upload_id)
    queued = await watcher.receive()
    await watcher.socket.close()
    assert (await one.put("ada", upload_id, b"x\n" * 500, "?bytes_per_second=5000")).status == 200

    back = await other.sign_in("bob")
    await back.watch(upload_id, queued["_fanwire"])
    missed = await back.until_over()
    check_messages([queued, *missed], upload_id)
    assert queued["_fanwire"]["offset"] == 1
    assert missed[-1]["_fanwire"]["offset"] > 3, "each stage is told, and the end"
    await back.socket.close()

    up_to_date = await other.sign_in("bob")
    await up_to_date.watch(upload_id, missed[-1]["_fanwire"])
    await up_to_date.settled()
    redis_server.publish(f"upload:{upload_id}", '{"action":"what follows"}')
    assert await up_to_date.receive() == {"action": "what follows"}
    await up_to_date.watch(upload_id)  # from nothing, after all
    assert await up_to_date.receive() == {"action": "resync", "upload_id": upload_id}
    assert await up_to_date.receive() == missed[-1]
    await up_to_date.socket.close()


@pytest.mark.parametrize("epoch", ["00000000000000ff", "", "of another server"])
async def test_who_comes_back_with_what_nobody_knows_is_told_to_forget_it(
    shared: OwnInstance, epoch: str
) -> None:
    upload_id = await shared.instance.new_upload("ada", 2)
    assert (await shared.instance.put("ada", upload_id, b"x\n")).status == 200
    client = await shared.instance.sign_in("bob")
    await client.watch(upload_id, {"epoch": epoch, "offset": 1})
    assert await client.receive() == {"action": "resync", "upload_id": upload_id}
    assert (await client.receive())["action"] == "upload_completed"
    await client.watch("nobody knows it", {"epoch": epoch, "offset": 1})
    assert await client.receive() == {"action": "resync", "upload_id": "nobody knows it"}
    await client.settled()
    await client.socket.close()


async def test_a_second_tab_of_a_user_is_told_too(shared: OwnInstance) -> None:
    first, second = await shared.instance.sign_in("bob"), await shared.instance.sign_in("bob")
    upload_id = await shared.instance.new_upload("ada", 2)
    await first.watch(upload_id)
    assert (await shared.instance.put("ada", upload_id, b"x\n")).status == 200
    completed = (await first.until_over())[-1]
    # A subscription is the user's, so this tab has heard of it.
    assert (await second.until_over())[-1] == completed
    # But it has made nothing of that.
    await second.watch(upload_id)
    assert await second.receive() == {"action": "resync", "upload_id": upload_id}
    assert await second.receive() == completed
    for client in (first, second):
        await client.socket.close()
