"""ConnectionManager against a model of it in plain dicts of sets, on random histories."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fanwire import ConnectionManager
from tests.connections import RecordingConnection

USERS = ["", "ada", "bob", "üser:*[1]\r\n"]
UPLOADS = ["", "u1", "u2", "üpload:*\x00"]

users = st.sampled_from(USERS)
uploads = st.sampled_from(UPLOADS)
slots = st.integers(0, 5)


class Connection(RecordingConnection):
    """Works until the machine breaks it."""

    broken = False

    async def send_text(self, data: str) -> None:
        if self.broken:
            raise RuntimeError("broken")
        await super().send_text(data)


class Model:
    """What the manager has to do, said with dicts."""

    def __init__(self) -> None:
        self.connections: dict[str, set[Connection]] = {}
        self.subscribers: dict[str, set[str]] = {}
        self.subscriptions: dict[str, set[str]] = {}

    def connect(self, user: str, connection: Connection) -> None:
        self.connections.setdefault(user, set()).add(connection)

    def disconnect(self, user: str, connection: Connection) -> None:
        left = self.connections.get(user, set()) - {connection}
        if left:
            self.connections[user] = left
            return
        self.connections.pop(user, None)
        for upload in self.subscriptions.pop(user, set()):
            self._drop(self.subscribers, upload, user)

    def subscribe(self, user: str, upload: str) -> None:
        self.subscribers.setdefault(upload, set()).add(user)
        self.subscriptions.setdefault(user, set()).add(upload)

    def unsubscribe(self, user: str, upload: str) -> None:
        self._drop(self.subscribers, upload, user)
        self._drop(self.subscriptions, user, upload)

    def receivers(self, upload: str) -> list[Connection]:
        """One entry per delivery: a connection of two subscribers is served for each of them."""
        return [
            connection
            for user in self.subscribers.get(upload, ())
            for connection in self.connections.get(user, ())
        ]

    @staticmethod
    def _drop(sets: dict[str, set[str]], key: str, member: str) -> None:
        left = sets.get(key, set()) - {member}
        if left:
            sets[key] = left
        else:
            sets.pop(key, None)


class ManagerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.manager = ConnectionManager()
        self.model = Model()
        self.slots = [Connection(f"c{n}") for n in range(6)]
        self.sent = 0

    def teardown(self) -> None:
        self.loop.close()

    def run(self, awaitable: Coroutine[Any, Any, Any]) -> None:
        self.loop.run_until_complete(awaitable)

    @rule(user=users, slot=slots)
    def connect(self, user: str, slot: int) -> None:
        self.run(self.manager.connect(user, self.slots[slot]))
        self.model.connect(user, self.slots[slot])

    @rule(user=users, slot=slots)
    def disconnect(self, user: str, slot: int) -> None:
        self.run(self.manager.disconnect(user, self.slots[slot]))
        self.model.disconnect(user, self.slots[slot])

    @rule(user=users, upload=uploads)
    def subscribe(self, user: str, upload: str) -> None:
        self.run(self.manager.subscribe_upload(user, upload))
        self.model.subscribe(user, upload)

    @rule(user=users, upload=uploads)
    def unsubscribe(self, user: str, upload: str) -> None:
        self.run(self.manager.unsubscribe_upload(user, upload))
        self.model.unsubscribe(user, upload)

    @rule(user=users)
    def send_to_user(self, user: str) -> None:
        self.sent += 1
        self.run(self.manager.send_to_user(user, self.sent))
        self.check_sent(list(self.model.connections.get(user, ())))

    @rule(upload=uploads)
    def send_to_upload(self, upload: str) -> None:
        self.sent += 1
        self.run(self.manager.send_to_upload_subscribers(upload, self.sent))
        self.check_sent(self.model.receivers(upload))

    def check_sent(self, receivers: list[Connection]) -> None:
        text = str(self.sent)
        for connection in self.slots:
            assert connection.texts.count(text) == receivers.count(connection)

    def owners(self, slot: int) -> list[str]:
        return [user for user, held in self.model.connections.items() if self.slots[slot] in held]

    @precondition(lambda self: any(len(self.owners(slot)) == 1 for slot in range(6)))
    @rule(data=st.data())
    def send_to_a_broken_connection(self, data: st.DataObject) -> None:
        """Of one owner: whether another owner loses it with the first failure is left open."""
        slot = data.draw(st.sampled_from([n for n in range(6) if len(self.owners(n)) == 1]))
        connection, (owner,) = self.slots[slot], self.owners(slot)
        connection.broken = True
        self.sent += 1
        self.run(self.manager.send_to_user(owner, self.sent))
        connection.broken = False
        self.model.disconnect(owner, connection)
        self.check_sent(list(self.model.connections.get(owner, ())))

    @rule()
    def disconnect_all(self) -> None:
        held = [c for connections in self.model.connections.values() for c in connections]
        before = [len(connection.closed) for connection in self.slots]
        self.run(self.manager.disconnect_all())
        for connection, closed in zip(self.slots, before, strict=True):
            assert (len(connection.closed) > closed) == (connection in held)
        self.model = Model()

    @rule(name=st.text(max_size=3))
    def look_for_anything(self, name: str) -> None:
        for view, modelled in self.views():
            assert view[name] == modelled.get(name, set())
            assert view.get(name) == modelled.get(name)
            assert (name in view) == (name in modelled)

    def views(self) -> list[tuple[Any, dict[str, Any]]]:
        return [
            (self.manager.user_connections, self.model.connections),
            (self.manager.upload_subscribers, self.model.subscribers),
            (self.manager.user_subscriptions, self.model.subscriptions),
        ]

    @invariant()
    def the_views_equal_the_model(self) -> None:
        for view, modelled in self.views():
            assert view == modelled
            assert modelled == view
            assert len(view) == len(modelled)
            assert set(view) == set(modelled)
        for upload in UPLOADS:
            expected = self.model.subscribers.get(upload, set())
            assert self.manager.get_upload_subscriber_ids(upload) == expected


ManagerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestManagerModel = ManagerMachine.TestCase
