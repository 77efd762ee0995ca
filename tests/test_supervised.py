"""Whatever happens to the broker, the listener says so, comes back, and is subscribed again."""

import logging
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis

import fanwire
from tests import histories
from tests.conftest import RedisFactory, Unique
from tests.connections import RecordingConnection
from tests.deadlines import bounded, until
from tests.histories import RESYNC, Client, InstanceFactory, note, progress
from tests.postgres_server import OWNER, PostgresServer
from tests.pubsub import Recorder
from tests.redis_server import RedisServer

make_instance = histories.make_instance

Change = tuple[str, str, str | None]
# So that who begins to listen does so at the first attempt.
PATIENT = {"connect_timeout_seconds": 10.0}
ACL = {"password": "right", "acl_user": "app"}
TOPICS = [f"t{number}" for number in range(20)]


@dataclass(frozen=True)
class Trouble:
    """What is done to a server that has ``options``, and what ends it.

    ``says`` is a part of what is wrong then. ``lines`` are in the log, one for each change of the
    state, and one more where it turns out that waiting alone cannot help.
    """

    begin: Callable[[RedisServer], Any]
    end: Callable[[RedisServer], Any]
    says: str
    lines: int = 3
    passes: bool = False


def acl(*rules: str) -> Callable[[RedisServer], Any]:
    words = ("ACL", "SETUSER", "app", *rules)
    return lambda server: server.client.execute_command(*words)  # type: ignore[no-untyped-call]


def locked_out(rule: str) -> Callable[[RedisServer], Any]:
    def begin(server: RedisServer) -> None:
        acl(rule)(server)
        server.drop_clients()

    return begin


TROUBLES = {
    "killed and restarted": Trouble(RedisServer.kill, RedisServer.start, "127.0.0.1"),
    "cut off": Trouble(
        RedisServer.drop_clients, lambda _: None, "closed the connection", passes=True
    ),
    "stands still": Trouble(RedisServer.pause, RedisServer.resume, "no answer within"),
    "channels revoked": Trouble(acl("resetchannels"), acl("allchannels"), "NOPERM", 4),
    "commands revoked": Trouble(locked_out("-psubscribe"), acl("allcommands"), "NOPERM", 4),
    "user locked out": Trouble(locked_out("off"), acl("on"), "WRONGPASS", 4),
}


# A topic that may not be subscribed to ends, so who listens to topics alone is soon live again.
CASES = [
    pytest.param(trouble, uploads, id=f"{name}, {'uploads and topics' if uploads else 'topics'}")
    for name, trouble in TROUBLES.items()
    for uploads in (True, False)
    if uploads or not name.endswith("revoked")
]


@pytest.mark.parametrize(("trouble", "uploads"), CASES)
async def test_the_listener_says_so_and_comes_back(
    make_redis: RedisFactory,
    caplog: pytest.LogCaptureFixture,
    trouble: Trouble,
    uploads: bool,
) -> None:
    caplog.set_level(logging.INFO, "fanwire")
    server, changes = make_redis(**ACL), list[Change]()
    recorder, connection = Recorder(), RecordingConnection()
    listener = await made(server, uploads, connection, changes)
    await bounded(listener.start())
    for topic in TOPICS:
        await bounded(listener.subscribe_topic("s", topic, recorder))
    await wanted_is_subscribed(server, uploads)

    trouble.begin(server)
    if not trouble.passes:
        await until(lambda: listener.health()["state"] == "degraded", "it is noticed")
        await until(lambda: trouble.says in listener.health()["error"], "what is wrong is known")
        assert listener.health()["confirmed_topics"] == 0
    trouble.end(server)
    await until(lambda: listener.health()["reconnects"] == 1, "it is back")
    assert listener.health()["state"] == "live"
    assert trouble.says in listener.health()["error"]
    await wanted_is_subscribed(server, uploads)
    health = listener.health()
    assert (health["wanted_topics"], health["confirmed_topics"]) == (len(TOPICS),) * 2

    for number, topic in enumerate(TOPICS):
        server.publish(f"pyview:{topic}", f'{{"topic":"{topic}","message":{number}}}')
    assert await recorder.received(len(TOPICS)) == list(range(len(TOPICS)))
    if uploads:
        server.publish("user:ada", "there")
        await connection.received_text("there")
    await bounded(listener.stop())
    expected = [
        ("stopped", "connecting"),
        ("connecting", "live"),
        ("live", "degraded"),
        ("degraded", "live"),
        ("live", "stopped"),
    ]
    await until(lambda: len(changes) >= len(expected), "every change is told")
    assert [(old, new) for old, new, _ in changes] == expected
    assert [error is not None for _, _, error in changes] == [False, False, True, False, False]
    lines = [record.getMessage() for record in caplog.records if record.name == "fanwire"]
    first, *between, last = lines
    assert "connecting" in first and "stopped" in last
    assert len(between) == trouble.lines, lines
    assert all("receiving" in line for line in between)
    assert "right" not in caplog.text


async def made(
    server: RedisServer, uploads: bool, connection: RecordingConnection, changes: list[Change]
) -> fanwire.UploadProgressPublisher | fanwire.RedisPubSub:
    options: dict[str, Any] = {"on_state_change": lambda *change: changes.append(change), **PATIENT}
    if not uploads:
        return fanwire.RedisPubSub(server.url, **options)
    manager = fanwire.ConnectionManager()
    await manager.connect("ada", connection)
    return fanwire.UploadProgressPublisher(server.url, manager=manager, **options)


async def wanted_is_subscribed(server: RedisServer, uploads: bool) -> None:
    """Returns when the server has every topic and every pattern once."""
    channels = [f"pyview:{topic}" for topic in TOPICS]
    await until(
        lambda: {count for _, count in server.client.pubsub_numsub(*channels)} == {1},
        "every topic is subscribed once",
    )
    assert server.client.pubsub_numpat() == (2 if uploads else 0)
    assert len(server.client.pubsub_channels("pyview:*")) == len(TOPICS)


# Servers that answer, and do not do what they are told


class LoadingServer(RedisServer):
    """Loads what it has saved so slowly that it does nothing else, until it is told to be quick."""

    def begin(self) -> None:
        slowly = ["--key-load-delay", "100000", "--loading-process-events-interval-bytes", "1024"]
        self._process = subprocess.Popen(
            [*self._command(), *slowly], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def is_loading(self) -> bool:
        try:
            self.client.get("anything")
        except redis.BusyLoadingError:
            return True
        except redis.ConnectionError:
            return False
        return False

    def be_quick(self) -> None:
        self.client.config_set("key-load-delay", 0)


@pytest.fixture
def loading_server() -> Iterator[LoadingServer]:
    with LoadingServer() as server:
        yield server


async def test_a_server_that_loads(
    loading_server: LoadingServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    """It lets clients listen, and neither publishes what is to be recorded nor reads."""
    server, upload, changes = loading_server, unique("upload"), list[Change]()
    instance = await make_instance(
        server.url, on_state_change=lambda *change: changes.append(change), **PATIENT
    )
    client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    await instance.publish(upload, note(1), progress(1), note(2))
    await client.saw(1, 2, 3)
    # It looks up from its work after each KiB of what it has saved.
    server.client.config_set("rdbcompression", "no")
    for number in range(200):
        server.client.set(f"filler {number}", "x" * 2_000)
    server.client.save()
    server.kill()
    await until(lambda: instance.publisher.health()["state"] == "degraded", "it is noticed")
    server.begin()
    await until(server.is_loading, "it loads")
    late = await bounded(instance.watch(upload, user="late"))
    receipt = await bounded(instance.publisher.publish_progress(upload, note(3), receipt=True))
    assert receipt.queued
    assert server.is_loading() and late.texts == []
    server.be_quick()
    await client.saw(1, 2, 3, 4)
    await late.saw(2, 3, 4)
    assert instance.publisher.health()["state"] == "live"
    assert [new for _, new, _ in changes] == ["connecting", "live", "degraded", "live"]


async def test_a_replica_that_may_not_be_written_to(
    make_redis: RedisFactory,
    make_instance: InstanceFactory,
    unique: Unique,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Listening and reading go on; what is to be recorded waits until the replica is promoted."""
    primary, replica = make_redis(), make_redis()
    upload, changes = unique("upload"), list[Change]()
    seeding = await make_instance(primary.url, start=False)
    await seeding.publish(upload, note(1), progress(1), note(2))
    primary.client.config_set("repl-diskless-sync-delay", 0)
    replica.client.replicaof("127.0.0.1", str(primary.port))
    await until(lambda: is_linked(replica), "it is a replica")
    instance = await make_instance(
        replica.url, on_state_change=lambda *change: changes.append(change)
    )
    client = await instance.watch(upload)
    await client.saw(2, 3)
    for number in range(3, 6):
        receipt = await bounded(
            instance.publisher.publish_progress(upload, note(number), receipt=True)
        )
        assert receipt.queued
    late = await instance.watch(upload, user="late")
    await late.saw(2, 3)
    replica.client.replicaof("NO", "ONE")
    for watching in (client, late):
        await watching.saw(2, 3, 4, 5, 6)
    await until(lambda: not instance.publisher.stats()["pending_messages"], "it knows that too")
    await instance.publish(upload, note(6))
    await client.saw(2, 3, 4, 5, 6, 7)
    assert instance.publisher.health()["publish_outages"] == 1
    assert [new for _, new, _ in changes] == ["connecting", "live"]
    lines = [line for line in caplog.messages if "READONLY" in line]
    assert len(lines) == 1


def is_linked(replica: RedisServer) -> bool:
    state: dict[str, Any] = replica.client.info("replication")
    return state.get("master_link_status") == "up"


async def test_commands_of_the_history_revoked_and_granted(
    make_redis: RedisFactory,
    make_instance: InstanceFactory,
    unique: Unique,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It hears, and may not read: clients get what comes, and are told what they miss."""
    server, upload = make_redis(**ACL), unique("upload")
    worker = await make_instance(f"redis://127.0.0.1:{server.port}", start=False)
    instance = await make_instance(server.url)
    client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    await worker.publish(upload, progress(1), note(1))
    await client.saw(1, 2)
    acl("-evalsha")(server)
    await worker.publish(upload, note(2))
    await client.saw(1, 2, 3)
    health = instance.publisher.health
    assert health()["history_error"] is None
    late = await instance.watch(upload, user="late")
    await instance.until_figure("snapshots", 2)
    await until(lambda: "evalsha" in str(health()["history_error"]), "the health says why")
    assert health()["state"] == "live"
    acl("allcommands")(server)
    await until(lambda: health()["history_error"] is None, "it can be read again")
    later = await instance.watch(upload, user="later")
    await later.saw(1, 2, 3)
    # Who came meanwhile is told, and has no less than the others.
    await late.saw(RESYNC, 1, 2, 3)
    await worker.publish(upload, note(3))
    await client.saw(1, 2, 3, 4)
    await late.saw(RESYNC, 1, 2, 3, 4)
    lines = [line for line in caplog.messages if "history" in line]
    assert len(lines) == 2, lines


async def test_what_is_published_is_not_lost_by_the_listener(
    own_redis: RedisServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    """One trouble after another, with a history: the client has all of it in the end."""
    upload = unique("upload")
    instance = await make_instance(own_redis.url, **PATIENT)
    worker = await make_instance(own_redis.unix_url, start=False)
    client: Client = await instance.watch(upload)
    await instance.until_figure("snapshots", 1)
    number = 0

    def back() -> int:
        return int(instance.publisher.health()["reconnects"])

    for round_ in range(1, 3):
        own_redis.drop_listeners()
        for _ in range(10):
            number += 1
            await worker.publish(upload, note(number))
        await until(lambda: back() == 2 * round_ - 1, "it is back")  # noqa: B023
        own_redis.pause()
        try:
            await until(lambda: instance.publisher.health()["state"] == "degraded", "noticed")
        finally:
            own_redis.resume()
        await until(lambda: back() == 2 * round_, "it is back again")  # noqa: B023
        number += 1
        await worker.publish(upload, note(number))
        await client.reached(number)
    assert client.seen == list(range(1, number + 1))


async def test_trouble_with_the_history_ends_though_nobody_asks_any_more(
    own_postgres: PostgresServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    """There is no connection left for who reads, and then there is."""
    instance = await make_instance(own_postgres.url)
    health = instance.publisher.health
    await until(lambda: health()["state"] == "live", "it listens")
    own_postgres.client.execute(f"ALTER ROLE {OWNER} CONNECTION LIMIT 1".encode())
    client = await instance.watch(unique("upload"), user="ada")
    await until(lambda: "too many connections" in str(health()["history_error"]), "it cannot read")
    await instance.manager.disconnect("ada", client)
    own_postgres.client.execute(f"ALTER ROLE {OWNER} CONNECTION LIMIT -1".encode())
    await until(lambda: health()["history_error"] is None, "it can")
    assert health()["state"] == "live"
