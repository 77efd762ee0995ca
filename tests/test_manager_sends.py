"""ConnectionManager: what it sends, to whom, and what happens to connections that misbehave."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import AsyncMock

import pytest

from fanwire import ConnectionManager
from tests.connections import (
    FailingConnection,
    PlainConnection,
    RecordingConnection,
    SlowConnection,
    StallingCloseConnection,
    StallingConnection,
)
from tests.deadlines import until
from tests.messages import completed, progress

Send = Callable[[ConnectionManager, Any], Awaitable[None]]


@pytest.fixture(params=["user", "upload"])
def send(request: pytest.FixtureRequest) -> Send:
    """Both ways reach the connections of ada, who watches u1."""
    if request.param == "user":
        return lambda manager, message: manager.send_to_user("ada", message)
    return lambda manager, message: manager.send_to_upload_subscribers("u1", message)


async def watching(manager: ConnectionManager, *connections: Any) -> None:
    for connection in connections:
        await manager.connect("ada", connection)
    await manager.subscribe_upload("ada", "u1")


@pytest.mark.parametrize("message", [progress("u1", 40), completed("u1")], ids=["progress", "done"])
async def test_the_text_is_that_of_send_json(
    manager: ConnectionManager, send: Send, message: Any
) -> None:
    connection = RecordingConnection()
    await watching(manager, connection)
    await send(manager, message)
    # What Starlette's send_json makes of model_dump(mode="json").
    expected = json.dumps(
        message.model_dump(mode="json"), separators=(",", ":"), ensure_ascii=False
    )
    assert connection.texts == [expected] == [message.model_dump_json()]


async def test_every_connection_of_the_user_and_no_other(manager: ConnectionManager) -> None:
    first, second, other = (RecordingConnection() for _ in range(3))
    await manager.connect("ada", first)
    await manager.connect("ada", second)
    await manager.connect("bob", other)
    await manager.send_to_user("ada", {"n": 1})
    assert (first.texts, second.texts, other.texts) == (['{"n":1}'], ['{"n":1}'], [])


async def test_every_subscriber_and_no_other(manager: ConnectionManager) -> None:
    connections = {name: RecordingConnection(name) for name in ("ada", "bob", "eve", "dan")}
    for name, connection in connections.items():
        await manager.connect(name, connection)
    for name in ("ada", "bob"):
        await manager.subscribe_upload(name, "u1")
    await manager.subscribe_upload("eve", "u10")
    await manager.subscribe_upload("nobody-connected", "u1")
    await manager.send_to_upload_subscribers("u1", {"n": 1})
    assert {name: len(c.texts) for name, c in connections.items()} == {
        "ada": 1,
        "bob": 1,
        "eve": 0,
        "dan": 0,
    }


async def test_sending_to_nobody(manager: ConnectionManager) -> None:
    await manager.send_to_user("nobody", {"n": 1})
    await manager.send_to_upload_subscribers("nothing", {"n": 1})
    assert manager.user_connections == manager.upload_subscribers == {}


async def test_it_returns_when_the_sends_are_done(manager: ConnectionManager, send: Send) -> None:
    slow = SlowConnection(turns=50)
    await watching(manager, slow)
    await send(manager, {"n": 1})
    assert slow.texts == ['{"n":1}']


async def test_connections_are_served_side_by_side(manager: ConnectionManager, send: Send) -> None:
    stalled, healthy = StallingConnection(), [RecordingConnection() for _ in range(20)]
    await watching(manager, healthy[0], stalled, *healthy[1:])
    sending = asyncio.ensure_future(send(manager, {"n": 1}))
    for connection in healthy:
        await connection.received(1)
    await stalled.stalled()
    assert not sending.done()
    stalled.release()
    await sending
    assert stalled.texts == ['{"n":1}']
    assert stalled in manager.user_connections["ada"]


async def test_a_later_message_passes_a_stalled_connection(
    manager: ConnectionManager, send: Send
) -> None:
    stalled, healthy = StallingConnection(), RecordingConnection()
    await watching(manager, stalled, healthy)
    sending = [asyncio.ensure_future(send(manager, {"n": n})) for n in range(5)]
    assert await healthy.received(5) == [f'{{"n":{n}}}' for n in range(5)]
    assert not any(task.done() for task in sending)
    stalled.release()
    await asyncio.gather(*sending)
    assert stalled.texts == healthy.texts


async def test_order_and_one_send_at_a_time(manager: ConnectionManager, send: Send) -> None:
    slow = SlowConnection()
    await watching(manager, slow)
    await asyncio.gather(*(send(manager, {"n": n}) for n in range(100)))
    assert slow.texts == [f'{{"n":{n}}}' for n in range(100)]
    assert not slow.overlapped


@pytest.mark.parametrize(
    "error",
    [RuntimeError("gone"), ConnectionResetError(), asyncio.CancelledError(), TimeoutError()],
    ids=lambda error: type(error).__name__,
)
async def test_a_failing_connection_is_disconnected(
    manager: ConnectionManager, send: Send, error: BaseException
) -> None:
    failing, healthy = FailingConnection(error=error), RecordingConnection()
    await watching(manager, failing, healthy)
    await send(manager, {"n": 1})
    assert manager.user_connections == {"ada": {healthy}}
    assert manager.user_subscriptions == {"ada": {"u1"}}
    await send(manager, {"n": 2})
    assert healthy.texts == ['{"n":1}', '{"n":2}']
    assert failing.attempts == 1


async def test_the_last_connection_that_fails_takes_the_subscriptions_along(
    manager: ConnectionManager, send: Send
) -> None:
    await watching(manager, FailingConnection())
    await manager.subscribe_upload("bob", "u1")
    await send(manager, {"n": 1})
    assert manager.user_connections == {}
    assert manager.upload_subscribers == {"u1": {"bob"}}
    assert manager.user_subscriptions == {"bob": {"u1"}}


async def test_a_failing_connection_is_in_the_log(
    manager: ConnectionManager, send: Send, caplog: pytest.LogCaptureFixture
) -> None:
    await watching(manager, FailingConnection(error=RuntimeError("the cable is cut")))
    with caplog.at_level(logging.DEBUG, logger="fanwire"):
        await send(manager, {"n": 1})
    # Not through getMessage alone: the cause may be in the traceback of the record.
    assert "the cable is cut" in caplog.text
    assert {record.name for record in caplog.records} == {"fanwire"}


async def test_what_waited_behind_a_failing_send_ends_too(manager: ConnectionManager) -> None:
    class FailsWhenReleased(StallingConnection):
        async def send_text(self, data: str) -> None:
            await super().send_text(data)
            raise RuntimeError("gone")

    connection = FailsWhenReleased()
    await manager.connect("ada", connection)
    sending = [asyncio.ensure_future(manager.send_to_user("ada", {"n": n})) for n in range(3)]
    await connection.stalled()
    connection.release()
    await asyncio.gather(*sending)
    assert connection.texts == ['{"n":0}']
    assert manager.user_connections == {}


async def test_a_connection_that_is_disconnected_while_it_stalls(
    manager: ConnectionManager, send: Send
) -> None:
    stalled, healthy = StallingConnection(), RecordingConnection()
    await watching(manager, stalled, healthy)
    sending = [asyncio.ensure_future(send(manager, {"n": n})) for n in range(3)]
    await stalled.stalled()
    await manager.disconnect("ada", stalled)
    stalled.release()
    await asyncio.gather(*sending)
    assert await healthy.received(3)
    assert manager.user_connections == {"ada": {healthy}}


async def test_what_sends_and_disconnects_itself(manager: ConnectionManager, send: Send) -> None:
    """An app may well disconnect from within a send: nothing may be locked while it runs."""

    class Leaving(RecordingConnection):
        async def send_text(self, data: str) -> None:
            await super().send_text(data)
            await manager.disconnect("ada", self)

    leaving, healthy = Leaving(), RecordingConnection()
    await watching(manager, leaving, healthy)
    await send(manager, {"n": 1})
    assert leaving.texts == healthy.texts == ['{"n":1}']
    assert manager.user_connections == {"ada": {healthy}}


async def test_a_send_to_another_from_within_a_send(manager: ConnectionManager) -> None:
    other = RecordingConnection()

    class Forwarding(RecordingConnection):
        async def send_text(self, data: str) -> None:
            await super().send_text(data)
            await manager.send_to_user("bob", {"from": "ada"})

    await manager.connect("ada", Forwarding())
    await manager.connect("bob", other)
    await manager.send_to_user("ada", {"n": 1})
    assert other.texts == ['{"from":"ada"}']


async def test_user_code_runs_in_a_task(manager: ConnectionManager, send: Send) -> None:
    class UsesTheTask(RecordingConnection):
        async def send_text(self, data: str) -> None:
            assert asyncio.current_task() is not None
            async with asyncio.timeout(60):
                await asyncio.sleep(0)
            await super().send_text(data)

    connection = UsesTheTask()
    await watching(manager, connection)
    await send(manager, {"n": 1})
    assert connection.texts == ['{"n":1}']


async def test_a_cancelled_send_leaves_the_connection_usable(manager: ConnectionManager) -> None:
    stalled, healthy = StallingConnection(), RecordingConnection()
    await watching(manager, stalled, healthy)
    sending = asyncio.ensure_future(manager.send_to_user("ada", {"n": 1}))
    await stalled.stalled()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    stalled.release()
    await manager.send_to_user("ada", {"n": 2})
    assert healthy.texts == ['{"n":1}', '{"n":2}']
    assert stalled.texts[-1] == '{"n":2}'


async def test_a_mock_is_a_connection(manager: ConnectionManager, send: Send) -> None:
    connection = AsyncMock()
    await watching(manager, connection)
    await send(manager, {"n": 1})
    connection.send_text.assert_awaited_once_with('{"n":1}')
    connection.close.assert_not_called()


async def test_nothing_else_of_a_connection_is_touched(
    manager: ConnectionManager, send: Send
) -> None:
    connection = PlainConnection()
    await watching(manager, connection)
    await send(manager, {"n": 1})
    await manager.disconnect_all()
    assert connection.texts == ['{"n":1}', "closed 1012 Server reloading"]
    assert connection.touched == []


async def test_a_send_that_is_not_a_coroutine_fails_alone(
    manager: ConnectionManager, send: Send
) -> None:
    class Plain(RecordingConnection):
        def send_text(self, data: str) -> None:  # type: ignore[override]
            self.texts.append(data)

    plain, healthy = Plain(), RecordingConnection()
    await watching(manager, plain, healthy)
    await send(manager, {"n": 1})
    assert healthy.texts == ['{"n":1}']
    assert manager.user_connections == {"ada": {healthy}}


async def test_a_message_that_cannot_be_encoded(manager: ConnectionManager, send: Send) -> None:
    connection = RecordingConnection()
    await watching(manager, connection)
    with pytest.raises(TypeError, match="object"):
        await send(manager, {"payload": object()})
    with pytest.raises(ValueError):
        await send(manager, {"payload": float("nan")})
    assert connection.texts == []
    assert manager.user_connections == {"ada": {connection}}


async def test_text_and_bytes_as_messages(manager: ConnectionManager, send: Send) -> None:
    connection = RecordingConnection()
    await watching(manager, connection)
    await send(manager, "text")
    await send(manager, b'{"already": "encoded"}')
    assert connection.texts == ['"text"', '{"already": "encoded"}']


# A connection that lets too much wait


@pytest.mark.parametrize(
    "limits",
    [{"max_queued_messages": 3}, {"max_queued_bytes": 64}],
    ids=lambda limits: next(iter(limits)),
)
async def test_a_connection_over_its_limit_is_disconnected(
    limits: dict[str, Any], send: Send
) -> None:
    manager = ConnectionManager(**limits)
    stalled, healthy = StallingConnection(), SlowConnection(turns=1)
    await watching(manager, stalled, healthy)
    sending = []
    for n in range(40):
        sending.append(asyncio.ensure_future(send(manager, {"n": n})))
        await healthy.received(n + 1)
    await until(lambda: stalled not in manager.user_connections["ada"], "the stalled one is out")
    assert manager.user_connections == {"ada": {healthy}}
    # Its send is given up, and so nobody waits for it any longer.
    await asyncio.gather(*sending)
    assert stalled.texts == []
    assert healthy.texts == [f'{{"n":{n}}}' for n in range(40)]


async def test_a_message_larger_than_the_limit_goes_to_an_idle_connection() -> None:
    manager, connection = ConnectionManager(max_queued_bytes=10), RecordingConnection()
    await manager.connect("ada", connection)
    await manager.send_to_user("ada", "x" * 100)
    assert connection.texts == ['"' + "x" * 100 + '"']


# disconnect_all


async def test_disconnect_all(manager: ConnectionManager) -> None:
    connections = [RecordingConnection(), FailingConnection(), RecordingConnection()]
    for user_id, connection in zip(["ada", "ada", "bob"], connections, strict=True):
        await manager.connect(user_id, connection)
        await manager.subscribe_upload(user_id, "u1")
    await manager.subscribe_upload("eve", "u2")
    await manager.disconnect_all()
    assert [c.closed for c in connections] == [[(1012, "Server reloading")]] * 3
    assert manager.user_connections == manager.upload_subscribers == {}
    assert manager.user_subscriptions == {}
    await manager.disconnect_all()
    assert [len(c.closed) for c in connections] == [1, 1, 1]


async def test_disconnect_all_closes_a_shared_connection(manager: ConnectionManager) -> None:
    connection = RecordingConnection()
    await manager.connect("ada", connection)
    await manager.connect("bob", connection)
    await manager.disconnect_all()
    assert set(connection.closed) == {(1012, "Server reloading")}
    assert manager.user_connections == {}


async def test_one_that_does_not_close_holds_up_nobody(manager: ConnectionManager) -> None:
    stalled, healthy = StallingCloseConnection(), [RecordingConnection() for _ in range(10)]
    await watching(manager, healthy[0], stalled, *healthy[1:])
    closing = asyncio.ensure_future(manager.disconnect_all())
    await until(lambda: all(c.closed for c in healthy), "the others are closed")
    assert stalled.closed == [(1012, "Server reloading")]
    assert manager.user_connections == {}
    stalled.release()
    await closing


async def test_disconnect_all_while_a_send_stalls(manager: ConnectionManager) -> None:
    stalled = StallingConnection()
    await manager.connect("ada", stalled)
    sending = asyncio.ensure_future(manager.send_to_user("ada", {"n": 1}))
    await stalled.stalled()
    await manager.disconnect_all()
    assert stalled.closed == [(1012, "Server reloading")]
    stalled.release()
    await sending


async def test_a_manager_works_on_after_disconnect_all(manager: ConnectionManager) -> None:
    connection = RecordingConnection()
    await manager.connect("ada", connection)
    await manager.disconnect_all()
    await manager.connect("ada", connection)
    await manager.send_to_user("ada", {"n": 1})
    assert connection.texts == ['{"n":1}']
