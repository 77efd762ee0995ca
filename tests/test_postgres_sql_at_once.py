"""Many connections at once: no deadlock, no offset twice, notifications in the order of offsets."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.conftest import Unique
from tests.deadlines import DEADLINE_SECONDS
from tests.postgres_server import PostgresServer
from tests.postgres_sql import (
    PUBLISHED,
    Connection,
    Ear,
    Message,
    connected,
    database,
    ear,
    hash_of,
    member,
    read_one,
    record,
)

__all__ = ["database", "ear"]

CONNECTIONS = 4
CALLS = 30


def at_once(server: PostgresServer, job: Callable[[Connection, int], None]) -> None:
    """Does it on several connections; what one of them raises is raised."""
    gate = threading.Barrier(CONNECTIONS, timeout=DEADLINE_SECONDS)

    def run(number: int) -> None:
        with connected(server) as connection:
            connection.execute("SET synchronous_commit = off")
            gate.wait()
            job(connection, number)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for done in [pool.submit(run, number) for number in range(CONNECTIONS)]:
            done.result()


@pytest.mark.parametrize("marked", [False, True])
def test_calls_over_the_same_uploads_in_any_order(
    postgres_server: PostgresServer, database: Connection, ear: Ear, unique: Unique, marked: bool
) -> None:
    uploads = [unique(f"upload{number}-") for number in range(8)]

    def job(connection: Connection, place: int) -> None:
        order = random.Random(place)
        for call in range(CALLS):
            names = [name for name in uploads for _ in range(2)]
            order.shuffle(names)
            key = f"{place}-{call}" if marked and call % 3 == 0 else None
            batch = [
                Message(name, key=key and f"{key}-{number}", number=call * 100 + number)
                for number, name in enumerate(names)
            ]
            answers = record(connection, *batch, source=f"{place}", size=16)
            assert {answer.status for answer in answers} == {PUBLISHED}

    at_once(postgres_server, job)
    heard: dict[str, list[int]] = {name: [] for name in uploads}
    epochs: set[tuple[str, str]] = set()
    for channel, payload in ear.messages():
        name = channel.removeprefix("upload:")
        epoch, offset = member(payload)
        heard[name].append(offset)
        epochs.add((name, epoch))
    assert len(epochs) == len(uploads)
    total = CONNECTIONS * CALLS * 2
    for name in uploads:
        assert heard[name] == list(range(1, total + 1))
        assert read_one(database, name).offsets == list(range(total - 15, total + 1))


def test_the_first_messages_of_new_uploads(
    postgres_server: PostgresServer, database: Connection, ear: Ear, unique: Unique
) -> None:
    names = [[unique(f"{call}-{number}-") for number in range(6)] for call in range(CALLS)]

    def job(connection: Connection, place: int) -> None:
        for call in range(CALLS):
            order = names[call] if place % 2 else names[call][::-1]
            record(connection, *[Message(name) for name in order])

    at_once(postgres_server, job)
    heard: dict[str, list[int]] = {}
    for channel, payload in ear.messages():
        heard.setdefault(channel, []).append(member(payload)[1])
    assert len(heard) == CALLS * 6
    assert all(offsets == [1, 2, 3, 4] for offsets in heard.values())


def test_uploads_that_expire_meanwhile(
    postgres_server: PostgresServer, database: Connection, ear: Ear, unique: Unique
) -> None:
    uploads = [unique(f"upload{number}-") for number in range(4)]

    def job(connection: Connection, place: int) -> None:
        order = random.Random(place)
        for _ in range(CALLS):
            names = order.sample(uploads, 4)
            ttl_ms = order.choice([1, 3, 10])
            record(connection, *[Message(name) for name in names], ttl_ms=ttl_ms)

    at_once(postgres_server, job)
    at: dict[str, tuple[str, int]] = {}
    for channel, payload in ear.messages():
        epoch, offset = member(payload)
        before = at.get(channel)
        assert offset == (before[1] + 1 if before and before[0] == epoch else 1)
        at[channel] = epoch, offset
    assert len(at) == 4


def test_a_message_is_there_to_be_read_when_it_is_heard_of(
    postgres_server: PostgresServer, database: Connection, ear: Ear, unique: Unique
) -> None:
    upload = unique("upload")

    def job(connection: Connection, place: int) -> None:
        for _ in range(CALLS):
            record(connection, Message(upload))

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(at_once, postgres_server, job)
        for offset in range(1, CONNECTIONS * CALLS + 1):
            ((_, payload),) = ear.raw(1)
            assert member(payload.partition(":")[2].removeprefix(f"upload:{upload}"))[1] == offset
            assert read_one(database, upload).last >= offset
        writing.result()


def test_who_reads_repeatably_is_told_to_try_again(
    postgres_server: PostgresServer, database: Connection, unique: Unique
) -> None:
    upload = unique("upload")
    record(database, Message(upload))
    with connected(postgres_server, autocommit=False) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT")
        record(database, Message(upload))
        with pytest.raises(psycopg.errors.SerializationFailure):
            record(connection, Message(upload))
        connection.rollback()
        assert record(connection, Message(upload))[0].offset == 3


def test_sweeping_passes_by_what_somebody_holds(
    postgres_server: PostgresServer, database: Connection, unique: Unique
) -> None:
    held, other = unique("held"), unique("other")
    record(database, Message(held), Message(other))
    expired = "UPDATE fanwire_uploads SET expires = now() - interval '1 hour'"
    database.execute(expired)
    with connected(postgres_server, autocommit=False) as connection:
        connection.execute(
            "SELECT FROM fanwire_uploads WHERE upload = %s FOR UPDATE", (hash_of(held),)
        )
        swept = database.execute("SELECT fanwire_sweep(10)").fetchall()
        assert swept == [(1,)]
        assert record(connection, Message(held))[0].offset == 1
        connection.commit()
    assert read_one(database, held).offsets == [1]
