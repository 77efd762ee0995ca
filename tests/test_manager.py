"""ConnectionManager: its three maps, and who is in them."""

import gc
import weakref
from collections.abc import Coroutine
from enum import StrEnum
from typing import Any
from unittest.mock import patch

import pytest

from fanwire import ConnectionManager
from tests.connections import NamedConnection, RecordingConnection, UnhashableConnection

ODD_IDS = [
    "",
    " ",
    "ü-検査-🚀",
    "a:b",
    "upload:*",
    "[a-z]?",
    "line\r\nbreak",
    "nul\x00byte",
    "\\",
    "x" * 10_000,
]
NOT_IDS = [None, 7, 1.5, b"bytes", ("a",), ["a"], object()]


async def test_a_new_manager_knows_nobody(manager: ConnectionManager) -> None:
    assert manager.user_connections == {}
    assert manager.upload_subscribers == {}
    assert manager.user_subscriptions == {}
    assert manager.get_upload_subscriber_ids("any") == set()


async def test_connect_and_disconnect(manager: ConnectionManager) -> None:
    first, second = RecordingConnection("first"), RecordingConnection("second")
    await manager.connect("ada", first)
    await manager.connect("ada", second)
    await manager.connect("bob", first)
    assert manager.user_connections == {"ada": {first, second}, "bob": {first}}
    await manager.disconnect("ada", first)
    assert manager.user_connections == {"ada": {second}, "bob": {first}}
    await manager.disconnect("ada", second)
    assert manager.user_connections == {"bob": {first}}


async def test_the_maps_hold_the_very_objects(manager: ConnectionManager) -> None:
    connection = RecordingConnection()
    await manager.connect("ada", connection)
    (held,) = manager.user_connections["ada"]
    assert held is connection


async def test_the_same_connection_counts_once(manager: ConnectionManager) -> None:
    connection = RecordingConnection()
    await manager.connect("ada", connection)
    await manager.connect("ada", connection)
    await manager.send_to_user("ada", {"n": 1})
    assert len(manager.user_connections["ada"]) == 1
    assert connection.texts == ['{"n":1}']
    await manager.disconnect("ada", connection)
    assert manager.user_connections == {}


async def test_connections_that_are_equal_count_once(manager: ConnectionManager) -> None:
    await manager.connect("ada", NamedConnection("tab"))
    await manager.connect("ada", NamedConnection("tab"))
    await manager.connect("ada", NamedConnection("other"))
    assert manager.user_connections == {"ada": {NamedConnection("tab"), NamedConnection("other")}}
    await manager.disconnect("ada", NamedConnection("tab"))
    assert manager.user_connections == {"ada": {NamedConnection("other")}}


async def test_subscribe_and_unsubscribe(manager: ConnectionManager) -> None:
    await manager.subscribe_upload("ada", "u1")
    await manager.subscribe_upload("ada", "u2")
    await manager.subscribe_upload("bob", "u1")
    await manager.subscribe_upload("bob", "u1")
    assert manager.upload_subscribers == {"u1": {"ada", "bob"}, "u2": {"ada"}}
    assert manager.user_subscriptions == {"ada": {"u1", "u2"}, "bob": {"u1"}}
    await manager.unsubscribe_upload("ada", "u1")
    assert manager.upload_subscribers == {"u1": {"bob"}, "u2": {"ada"}}
    assert manager.user_subscriptions == {"ada": {"u2"}, "bob": {"u1"}}
    await manager.unsubscribe_upload("bob", "u1")
    assert manager.upload_subscribers == {"u2": {"ada"}}
    assert manager.user_subscriptions == {"ada": {"u2"}}


async def test_the_last_connection_takes_the_subscriptions_along(
    manager: ConnectionManager,
) -> None:
    first, second = RecordingConnection(), RecordingConnection()
    await manager.connect("ada", first)
    await manager.connect("ada", second)
    await manager.subscribe_upload("ada", "u1")
    await manager.subscribe_upload("ada", "u2")
    await manager.subscribe_upload("bob", "u1")
    await manager.disconnect("ada", first)
    assert manager.user_subscriptions["ada"] == {"u1", "u2"}
    await manager.disconnect("ada", second)
    assert manager.upload_subscribers == {"u1": {"bob"}}
    assert manager.user_subscriptions == {"bob": {"u1"}}


async def test_disconnecting_a_user_who_only_subscribed(manager: ConnectionManager) -> None:
    await manager.subscribe_upload("ada", "u1")
    await manager.disconnect("ada", RecordingConnection())
    assert manager.user_subscriptions == {}
    assert manager.upload_subscribers == {}


async def test_disconnecting_a_stranger_leaves_the_others(manager: ConnectionManager) -> None:
    mine, stranger = RecordingConnection(), RecordingConnection()
    await manager.connect("ada", mine)
    await manager.subscribe_upload("ada", "u1")
    await manager.disconnect("ada", stranger)
    await manager.disconnect("bob", mine)
    assert manager.user_connections == {"ada": {mine}}
    assert manager.user_subscriptions == {"ada": {"u1"}}


async def test_doing_it_twice_does_nothing(manager: ConnectionManager) -> None:
    connection = RecordingConnection()
    await manager.unsubscribe_upload("ada", "u1")
    await manager.disconnect("ada", connection)
    await manager.connect("ada", connection)
    await manager.subscribe_upload("ada", "u1")
    for _ in range(2):
        await manager.unsubscribe_upload("ada", "u1")
        await manager.disconnect("ada", connection)
    await manager.disconnect_all()
    assert manager.user_connections == manager.upload_subscribers == {}
    assert manager.user_subscriptions == {}
    assert connection.closed == []


@pytest.mark.parametrize("name", ODD_IDS, ids=ascii)
async def test_ids_are_any_text(manager: ConnectionManager, name: str) -> None:
    connection = RecordingConnection()
    await manager.connect(name, connection)
    await manager.subscribe_upload(name, name)
    assert manager.user_connections == {name: {connection}}
    assert manager.upload_subscribers == {name: {name}}
    assert manager.user_subscriptions == {name: {name}}
    assert manager.get_upload_subscriber_ids(name) == {name}
    await manager.send_to_upload_subscribers(name, {"id": 1})
    await manager.send_to_user(name, {"id": 2})
    assert connection.texts == ['{"id":1}', '{"id":2}']
    await manager.unsubscribe_upload(name, name)
    await manager.disconnect(name, connection)
    assert manager.user_connections == {}


async def test_ids_differ_by_every_character(manager: ConnectionManager) -> None:
    composed, decomposed = "\u00e9", "e\u0301"
    for upload_id in [composed, decomposed, "A", "a", "a ", "a\n", "a\x00"]:
        await manager.subscribe_upload("ada", upload_id)
    assert len(manager.upload_subscribers) == 7
    await manager.unsubscribe_upload("ada", composed)
    assert decomposed in manager.upload_subscribers
    assert composed not in manager.upload_subscribers


class Names(StrEnum):
    ADA = "ada"


async def test_a_subclass_of_str_is_an_id(manager: ConnectionManager) -> None:
    connection = RecordingConnection()
    await manager.connect(Names.ADA, connection)
    assert manager.user_connections == {"ada": {connection}}
    assert Names.ADA in manager.user_connections


@pytest.mark.parametrize("name", NOT_IDS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "call",
    [
        lambda manager, name: manager.connect(name, RecordingConnection()),
        lambda manager, name: manager.disconnect(name, RecordingConnection()),
        lambda manager, name: manager.subscribe_upload(name, "u1"),
        lambda manager, name: manager.subscribe_upload("ada", name),
        lambda manager, name: manager.unsubscribe_upload(name, "u1"),
        lambda manager, name: manager.unsubscribe_upload("ada", name),
        lambda manager, name: manager.send_to_user(name, {}),
        lambda manager, name: manager.send_to_upload_subscribers(name, {}),
    ],
    ids=[
        "connect",
        "disconnect",
        "subscribe-user",
        "subscribe-upload",
        "unsubscribe-user",
        "unsubscribe-upload",
        "send_to_user",
        "send_to_upload_subscribers",
    ],
)
async def test_an_id_that_is_not_a_str(manager: ConnectionManager, call: Any, name: Any) -> None:
    with pytest.raises(TypeError):
        await call(manager, name)
    assert manager.user_connections == manager.upload_subscribers == {}
    assert manager.user_subscriptions == {}


@pytest.mark.parametrize("name", NOT_IDS, ids=lambda value: type(value).__name__)
def test_asking_for_subscribers_of_what_is_no_id(manager: ConnectionManager, name: Any) -> None:
    with pytest.raises(TypeError):
        manager.get_upload_subscriber_ids(name)


async def test_an_unhashable_connection(manager: ConnectionManager) -> None:
    with pytest.raises(TypeError, match="UnhashableConnection"):
        await manager.connect("ada", UnhashableConnection())
    assert manager.user_connections == {}


async def test_subscriptions_made_before_a_connection_outlive_it(
    manager: ConnectionManager,
) -> None:
    """Whatever becomes of the call: one that is known already, and one that is refused."""
    connection = RecordingConnection()
    await manager.connect("ada", connection)
    await manager.subscribe_upload("bob", "u1")
    await manager.connect("bob", connection)
    assert manager.user_connections == {"ada": {connection}, "bob": {connection}}
    assert manager.user_subscriptions == {"bob": {"u1"}}
    await manager.subscribe_upload("eve", "u1")
    with pytest.raises(TypeError):
        await manager.connect("eve", UnhashableConnection())
    assert manager.user_subscriptions == {"bob": {"u1"}, "eve": {"u1"}}
    assert manager.upload_subscribers == {"u1": {"bob", "eve"}}


class BadlyEqual(RecordingConnection):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __hash__(self) -> int:
        return 1


async def test_an_error_of_eq_comes_out_and_changes_nothing(manager: ConnectionManager) -> None:
    first = BadlyEqual()
    await manager.connect("ada", first)
    with pytest.raises(RuntimeError, match="no comparison"):
        await manager.connect("ada", BadlyEqual())
    assert len(manager.user_connections["ada"]) == 1


async def test_sets_grow_and_shrink(manager: ConnectionManager) -> None:
    """Beyond the size at which a set is kept in another way, and back."""
    connections = {RecordingConnection(str(n)) for n in range(60)}
    users = {f"user-{n}" for n in range(60)}
    uploads = {f"upload-{n}" for n in range(60)}
    for connection in connections:
        await manager.connect("ada", connection)
    for user_id in users:
        await manager.subscribe_upload(user_id, "u1")
    for upload_id in uploads:
        await manager.subscribe_upload("ada", upload_id)
    while uploads:
        assert manager.user_connections == {"ada": connections}
        assert manager.get_upload_subscriber_ids("u1") == users
        assert manager.user_subscriptions["ada"] == uploads
        await manager.disconnect("ada", connections.pop())
        await manager.unsubscribe_upload(users.pop(), "u1")
        upload_id = uploads.pop()
        if connections:
            await manager.unsubscribe_upload("ada", upload_id)
    assert manager.user_connections == manager.upload_subscribers == {}
    assert manager.user_subscriptions == {}


async def test_a_hash_that_looks_into_the_manager(manager: ConnectionManager) -> None:
    """The application's code runs while nothing is locked, or this would wait for ever."""

    class Curious(RecordingConnection):
        def __hash__(self) -> int:
            return len(manager.user_connections) * 0 + 1

        def __eq__(self, other: object) -> bool:
            manager.get_upload_subscriber_ids("u1")
            return self is other

    first, second = Curious("first"), Curious("second")
    await manager.connect("ada", first)
    await manager.connect("ada", second)
    assert len(manager.user_connections["ada"]) == 2
    await manager.send_to_user("ada", 1)
    assert first.texts == second.texts == ["1"]
    await manager.disconnect("ada", first)
    assert list(manager.user_connections["ada"]) == [second]


async def test_a_finalizer_that_looks_into_the_manager(manager: ConnectionManager) -> None:
    seen: list[int] = []

    class Dying(RecordingConnection):
        def __del__(self) -> None:
            seen.append(len(manager.user_connections))

    class DyingOfItsSend(Dying):
        async def send_text(self, data: str) -> None:
            raise RuntimeError("gone")

    connection = Dying()
    await manager.connect("ada", connection)
    await manager.disconnect("ada", connection)
    del connection
    await manager.connect("ada", Dying())
    await manager.disconnect_all()
    await manager.connect("ada", DyingOfItsSend())
    await manager.send_to_user("ada", 1)
    gc.collect()
    assert seen == [0, 0, 0]


async def test_subscriber_ids_are_a_copy(manager: ConnectionManager) -> None:
    await manager.subscribe_upload("ada", "u1")
    ids = manager.get_upload_subscriber_ids("u1")
    assert type(ids) is set
    ids.add("bob")
    assert manager.get_upload_subscriber_ids("u1") == {"ada"}
    await manager.unsubscribe_upload("ada", "u1")
    assert ids == {"ada", "bob"}


# An application may extend and patch it


class CountingManager(ConnectionManager):
    def __init__(self, name: str) -> None:
        super().__init__(max_queued_messages=5)
        self.name = name
        self.connects = 0

    def connect(self, user_id: str, websocket: Any) -> Coroutine[Any, Any, None]:
        self.connects += 1
        return super().connect(user_id, websocket)


async def test_a_subclass_with_its_own_constructor() -> None:
    manager, connection = CountingManager("mine"), RecordingConnection()
    await manager.connect("ada", connection)
    assert (manager.name, manager.connects) == ("mine", 1)
    assert manager.user_connections == {"ada": {connection}}


async def test_attributes_weak_references_and_patches(manager: ConnectionManager) -> None:
    manager.owner = "app"  # type: ignore[attr-defined]
    assert vars(manager) == {"owner": "app"}
    assert weakref.ref(manager)() is manager
    with patch.object(manager, "get_upload_subscriber_ids", return_value={"eve"}):
        assert manager.get_upload_subscriber_ids("u1") == {"eve"}
    with patch.object(ConnectionManager, "get_upload_subscriber_ids", return_value={"eve"}):
        assert manager.get_upload_subscriber_ids("u1") == {"eve"}
    assert manager.get_upload_subscriber_ids("u1") == set()


async def test_connections_are_let_go(manager: ConnectionManager) -> None:
    connection = RecordingConnection()
    gone = weakref.ref(connection)
    await manager.connect("ada", connection)
    await manager.send_to_user("ada", {"n": 1})
    await manager.disconnect("ada", connection)
    del connection
    gc.collect()
    assert gone() is None


async def test_a_manager_that_is_let_go_lets_its_connections_go() -> None:
    manager, connection = ConnectionManager(), RecordingConnection()
    gone = weakref.ref(connection)
    await manager.connect("ada", connection)
    del manager, connection
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("option", ["max_queued_messages", "max_queued_bytes"])
def test_limits_must_be_positive(option: str) -> None:
    make: Any = ConnectionManager
    with pytest.raises(ValueError, match=option):
        make(**{option: 0})
    with pytest.raises((ValueError, OverflowError)):
        make(**{option: -1})
    with pytest.raises(TypeError):
        make(**{option: "many"})
