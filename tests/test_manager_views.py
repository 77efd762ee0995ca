"""ConnectionManager: its maps can be looked at as the dicts of sets that they stand for."""

import gc
from collections.abc import Mapping
from typing import Any

import pytest

from fanwire import ConnectionManager
from tests.connections import RecordingConnection


async def filled(manager: ConnectionManager) -> list[RecordingConnection]:
    connections = [RecordingConnection("a"), RecordingConnection("b")]
    for user_id, connection in zip(["ada", "bob"], connections, strict=True):
        await manager.connect(user_id, connection)
        await manager.subscribe_upload(user_id, "u1")
    await manager.subscribe_upload("ada", "u2")
    return connections


async def test_a_view_reads_as_a_dict(manager: ConnectionManager) -> None:
    ada, bob = await filled(manager)
    view = manager.user_connections
    assert isinstance(view, Mapping)
    assert len(view) == 2
    assert "ada" in view and "eve" not in view
    assert sorted(view) == sorted(view.keys()) == ["ada", "bob"]
    assert list(view.items()) == list(zip(view.keys(), view.values(), strict=True))
    assert dict(view) == {"ada": frozenset({ada}), "bob": frozenset({bob})}
    assert view["ada"] == {ada}
    assert view.get("ada") == frozenset({ada})
    assert view.get("eve") is None
    assert view.get("eve", "nobody") == "nobody"
    assert {**view} == view
    assert ada in view["ada"]
    assert bool(view)


async def test_a_view_equals_a_dict_of_the_same_content(manager: ConnectionManager) -> None:
    await filled(manager)
    view = manager.upload_subscribers
    same = {"u1": {"ada", "bob"}, "u2": {"ada"}}
    assert view == same and same == view
    assert not view != same and not same != view
    assert view == manager.upload_subscribers
    assert view == {name: frozenset(ids) for name, ids in same.items()}
    for other in [
        {},
        {"u1": {"ada", "bob"}},
        {"u1": {"ada"}, "u2": {"ada"}},
        {"u1": {"ada", "bob"}, "u2": {"ada"}, "u3": set()},
        {"u1": ["ada", "bob"], "u2": ["ada"]},
        manager.user_subscriptions,
        None,
        "u1",
        7,
    ]:
        assert view != other and other != view
        assert not view == other


async def test_looking_for_what_is_missing_creates_nothing(manager: ConnectionManager) -> None:
    for view in (manager.user_connections, manager.upload_subscribers, manager.user_subscriptions):
        assert view["nobody"] == frozenset()
        assert "nobody" not in view
        assert len(view) == 0
        assert not view


async def test_a_key_that_is_not_text_is_not_in_a_view(manager: ConnectionManager) -> None:
    await filled(manager)
    keys: list[Any] = [None, 7, b"ada", ("ada",)]
    for key in keys:
        assert key not in manager.user_connections
        assert manager.user_connections.get(key) is None


async def test_a_view_is_live(manager: ConnectionManager) -> None:
    view, connection = manager.user_connections, RecordingConnection()
    await manager.connect("ada", connection)
    assert view == {"ada": {connection}}
    await manager.disconnect("ada", connection)
    assert view == {}


async def test_a_set_taken_from_a_view_stays_as_it_was(manager: ConnectionManager) -> None:
    ada, _ = await filled(manager)
    taken = manager.user_connections["ada"]
    assert isinstance(taken, frozenset)
    await manager.disconnect("ada", ada)
    assert taken == {ada}


async def test_a_view_cannot_be_written(manager: ConnectionManager) -> None:
    await filled(manager)
    view: Any = manager.user_connections
    with pytest.raises(TypeError):
        view["ada"] = set()
    with pytest.raises(TypeError):
        del view["ada"]
    for method in ("pop", "clear", "update", "setdefault", "popitem"):
        assert not hasattr(view, method)
    with pytest.raises(AttributeError):
        manager.user_connections = {}  # type: ignore[misc,assignment]
    assert len(manager.user_connections) == 2


async def test_maps_may_change_while_someone_iterates(manager: ConnectionManager) -> None:
    # The code that a manager replaces is full of ``for … in list(manager.user_connections)``.
    connections = {f"user-{n}": RecordingConnection() for n in range(50)}
    for user_id, connection in connections.items():
        await manager.connect(user_id, connection)
    for user_id in list(manager.user_connections):
        for connection_ in list(manager.user_connections[user_id]):
            await manager.disconnect(user_id, connection_)
    assert manager.user_connections == {}


async def test_a_view_says_what_it_holds(manager: ConnectionManager) -> None:
    await manager.subscribe_upload("ada", "u1")
    assert "u1" in repr(manager.upload_subscribers)
    assert "ada" in repr(manager.upload_subscribers)


def test_a_view_is_unhashable_as_a_dict_is(manager: ConnectionManager) -> None:
    with pytest.raises(TypeError):
        hash(manager.user_connections)


async def test_a_view_outlives_its_manager() -> None:
    manager = ConnectionManager()
    await manager.subscribe_upload("ada", "u1")
    view = manager.upload_subscribers
    del manager
    gc.collect()
    assert view == {"u1": {"ada"}}
