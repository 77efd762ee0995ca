"""Progress that waits is overwritten by newer progress; nothing else ever is."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fanwire import CoalesceRule, ConfigError, ConnectionManager
from tests.conftest import Broker
from tests.connections import StallingConnection
from tests.delivery import Message, delivering, through_a_stalled_lane, until_slow
from tests.messages import completed, progress

TIMESTAMP = "2026-02-20T12:52:01.250000Z"


def on_upload(upload: str, percent: int) -> Message:
    return f"upload:{upload}", progress(upload, percent)


def of_batch(batch: str, processed: int, user: str = "ada") -> Message:
    payload = {"batch_id": batch, "status": "processing", "total": 9, "processed": processed}
    return f"user:{user}", {
        "action": "batch_progress",
        "payload": payload,
        "timestamp": TIMESTAMP,
    }


def of_file(batch: str, upload: str, percent: float, user: str = "ada") -> Message:
    payload = {
        "batch_id": batch,
        "upload_id": upload,
        "file_name": "Größe.csv",
        "file_size": 5_000_000_000,
        "progress_percentage": percent,
        "status": "processing",
    }
    return f"user:{user}", {"action": "file_progress", "payload": payload, "timestamp": TIMESTAMP}


def failed(channel: str, upload: str) -> Message:
    return channel, {
        "action": "upload_failed",
        "upload_id": upload,
        "error_message": "no",
        "timestamp": TIMESTAMP,
    }


def plain(message: Any) -> Any:
    return message.model_dump(mode="json") if hasattr(message, "model_dump") else message


async def check(messages: Sequence[Message], kept: Sequence[int], **options: Any) -> None:
    """Of the messages those at these places come out, in this order, and the rest is counted."""
    outcome = await through_a_stalled_lane(messages, **options)
    assert outcome.messages == [plain(messages[place][1]) for place in kept]
    assert outcome.figures["coalesced"] == len(messages) - len(kept)
    assert outcome.figures["queued_messages"] == len(kept)
    assert outcome.figures["queued_bytes"] == sum(len(text.encode()) for text in outcome.texts)


async def test_the_newest_progress_of_an_upload_is_what_comes(broker: Broker) -> None:
    messages = [on_upload("u1", percent) for percent in range(100)]
    await check(messages, [99], url=broker.url)


async def test_it_takes_the_place_of_the_older_one() -> None:
    messages = [
        on_upload("u1", 1),
        on_upload("u2", 1),
        ("user:ada", {"action": "ping"}),
        on_upload("u1", 50),
        on_upload("u3", 1),
        on_upload("u2", 60),
    ]
    await check(messages, [3, 5, 2, 4])


async def test_nothing_overtakes_what_came_after_it(broker: Broker) -> None:
    messages = [
        on_upload("u1", 1),
        ("upload:u1", completed("u1")),
        on_upload("u1", 2),
        on_upload("u1", 3),
        failed("upload:u1", "u1"),
        on_upload("u1", 4),
    ]
    await check(messages, [0, 1, 3, 4, 5], url=broker.url)


@pytest.mark.parametrize(
    "other",
    [
        ("upload:u1", "text"),
        ("upload:u1", None),
        ("upload:u1", {"action": "upload_progressed"}),
        ("upload:u1", {"payload": {"action": "upload_progress"}}),
        ("upload:u1", [{"action": "upload_progress"}]),
        ("upload:u1", {"action": ["upload_progress"]}),
        ("upload:u1", {"upload_id": "u2"}),
        failed("user:ada", "u1"),
        ("user:ada", {"action": "note", "payload": {"upload_id": "u1"}}),
        of_file("b1", "u1", 1.0),
    ],
    ids=repr,
)
async def test_anything_else_of_the_upload_lies_between(other: Message) -> None:
    await check([on_upload("u1", 1), other, on_upload("u1", 2)], [0, 1, 2])


@pytest.mark.parametrize(
    "other",
    [
        ("user:ada", {"action": "ping"}),
        ("user:ada", "u1"),
        failed("user:ada", "u2"),
        failed("upload:u2", "u1"),  # whatever its payload says, it is of the channel's upload
        of_batch("u11", 1),
        of_file("u1", "u2", 1.0),  # of the upload, not of the batch
        ("user:ada", {"upload": {"upload_id": "u1"}}),
        ("user:ada", {"upload_id": None}),
    ],
    ids=repr,
)
async def test_what_is_of_another_upload_or_of_none_does_not(other: Message) -> None:
    await check([on_upload("u1", 1), other, on_upload("u1", 2)], [2, 1])


async def test_everything_else_is_kept_in_order() -> None:
    same: list[Message] = [("upload:u1", {"action": "upload_completed", "upload_id": "u1"})] * 20
    pings: list[Message] = [("user:ada", {"action": "ping"})] * 20
    numbers: list[Message] = [("user:ada", n) for n in range(20)]
    messages = [*same, *pings, *numbers]
    await check(messages, range(len(messages)))


async def test_a_user_s_progress_by_action_and_id(broker: Broker) -> None:
    messages = [
        of_batch("b1", 1),
        of_batch("b2", 1),
        of_file("b1", "u1", 0.5),
        of_file("b1", "u2", 0.5),
        of_batch("b1", 2),
        of_file("b1", "u1", 99.5),
        of_batch("b2", 2),
        of_file("b2", "u2", 1.5),
    ]
    await check(messages, [4, 6, 5, 7], url=broker.url)


async def test_another_action_of_the_same_id_is_another_key() -> None:
    messages = [
        of_batch("same", 1),
        of_file("b", "same", 1.0),
        of_batch("same", 2),
        of_batch("same", 3),
    ]
    await check(messages, [0, 1, 3])


async def test_progress_of_nobody_knows_what_is_kept() -> None:
    nameless: Message = ("user:ada", {"action": "file_progress", "payload": {"n": 1}})
    await check([nameless] * 5, range(5))


async def test_an_id_may_be_a_number_and_stand_at_the_top() -> None:
    at_the_top: list[Message] = [
        ("user:ada", {"action": "file_progress", "upload_id": 7, "n": n}) for n in range(3)
    ]
    inside: Message = ("user:ada", {"action": "file_progress", "payload": {"upload_id": "7"}})
    await check([*at_the_top, inside], [3])


async def test_users_who_share_a_connection_keep_theirs_apart() -> None:
    messages = [
        of_batch("b1", 1),
        of_batch("b2", 1, user="bob"),
        of_batch("b1", 2),
        of_batch("b2", 2, user="bob"),
        of_batch("b2", 3, user="ada"),
    ]
    await check(messages, [2, 3, 4], users=["ada", "bob"], uploads=())


@pytest.mark.parametrize("coalesce", [False, []], ids=["False", "no rules"])
async def test_off_by_one_argument(coalesce: Any, broker: Broker) -> None:
    messages = [on_upload("u1", percent) for percent in range(50)]
    messages += [of_batch("b1", n) for n in range(50)]
    await check(messages, range(100), coalesce=coalesce, url=broker.url)


async def test_a_lane_that_keeps_up_is_given_everything() -> None:
    async with delivering() as delivery:
        connection = StallingConnection()
        connection.release()
        await delivery.connect(connection)
        for percent in range(20):
            delivery.publish(on_upload("u1", percent))
            await connection.received(percent + 1)
        assert delivery.figures()["coalesced"] == 0


async def test_each_lane_for_itself() -> None:
    """What one connection misses is not lost to another."""
    async with delivering() as delivery:
        stalled, second = StallingConnection(), StallingConnection()
        await delivery.connect(stalled, second)
        delivery.publish(("upload:u1", "in the way"))
        await stalled.stalled()
        await second.stalled()
        delivery.publish(on_upload("u1", 1))
        await delivery.routed()
        second.release()
        await second.received(2)
        delivery.publish(on_upload("u1", 2))
        await second.received(3)
        stalled.release()
        await stalled.received(2)
        await delivery.until_figures(coalesced=1, queued_messages=0, delivered=5)
        texts = [message.model_dump_json() for message in (progress("u1", 1), progress("u1", 2))]
        assert second.texts == ['"in the way"', *texts]
        assert stalled.texts == ['"in the way"', texts[1]]


async def test_the_bytes_that_wait_stay_within_their_limit() -> None:
    """Newer progress may be larger than the older one."""
    limit = 5_000
    small = [("user:ada", {"action": "file_progress", "upload_id": n}) for n in range(50)]
    large = [(channel, {**message, "text": "x" * 1_000}) for channel, message in small]
    async with delivering(max_queued_bytes=limit, overflow="drop-oldest") as delivery:
        connection = StallingConnection()
        await delivery.connect(connection)
        delivery.publish(("user:ada", "in the way"))
        await until_slow(connection)
        delivery.publish(*small, *large)
        await delivery.routed()
        queued = delivery.figures()["queued_bytes"]
        connection.release()
        assert queued <= limit


# Sends of this process


Send = Callable[[ConnectionManager, Any], Any]


@pytest.mark.parametrize(
    "send",
    [
        lambda manager, message: manager.send_to_user("ada", message),
        lambda manager, message: manager.send_to_upload_subscribers("u1", message),
    ],
    ids=["send_to_user", "send_to_upload_subscribers"],
)
async def test_a_local_send_is_never_overwritten(send: Send) -> None:
    """Whoever waits for it is told that it was sent, and then it was."""
    async with delivering() as delivery:
        connection = StallingConnection()
        await delivery.connect(connection)
        delivery.publish(("user:ada", "in the way"))
        await connection.stalled()
        local = [
            asyncio.ensure_future(send(delivery.manager, progress("u1", percent)))
            for percent in (1, 2)
        ]
        await delivery.routed()
        delivery.publish(on_upload("u1", 3), on_upload("u1", 4))
        await delivery.routed()
        local.append(asyncio.ensure_future(send(delivery.manager, progress("u1", 5))))
        await delivery.routed()
        assert not any(task.done() for task in local)
        assert delivery.figures()["coalesced"] == 1
        connection.release()
        await asyncio.gather(*local)
        expected = [progress("u1", percent).model_dump_json() for percent in (1, 2, 4, 5)]
        assert connection.texts[1:] == expected


# Options


@pytest.mark.parametrize("pointer", ["action", "a/b", " /action", "#/action", "$.action"])
@pytest.mark.parametrize("where", ["pointer", "ids"])
def test_a_pointer_that_is_none_is_named(where: str, pointer: str) -> None:
    rule = (
        CoalesceRule(pointer, ("x",))
        if where == "pointer"
        else CoalesceRule("/action", ("x",), ids=("/upload_id", pointer))
    )
    with pytest.raises(ConfigError) as raised:
        ConnectionManager(coalesce=[CoalesceRule("/good", ("x",)), rule])
    assert f'"{pointer}"' in str(raised.value)
    assert "coalesce" in str(raised.value)


def test_more_pointers_than_there_is_room_for() -> None:
    def rules(count: int) -> list[CoalesceRule]:
        return [CoalesceRule(f"/p{n}", ("x",), ids=()) for n in range(count)]

    ConnectionManager(coalesce=rules(32))
    ConnectionManager(coalesce=rules(1) * 100)  # the same one takes no more room
    with pytest.raises(ConfigError, match="32"):
        ConnectionManager(coalesce=rules(33))


@pytest.mark.parametrize("wrong", [7, ["/action"], [("/action", ("x",))], "/action"], ids=repr)
def test_what_is_no_rule(wrong: Any) -> None:
    with pytest.raises((TypeError, AttributeError)):
        ConnectionManager(coalesce=wrong)
