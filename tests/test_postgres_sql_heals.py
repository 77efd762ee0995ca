"""schema.sql where it is put in at once under any isolation, and where some of it is missing."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql

from tests.deadlines import DEADLINE_SECONDS, until_blocking
from tests.postgres_server import GUEST
from tests.postgres_sql import (
    SCHEMA,
    Connect,
    Connection,
    Message,
    connect,
    hash_of,
    install,
    read_one,
    record,
    works,
)

__all__ = ["connect"]

AT_ONCE = 4
TIMES = 3
ISOLATIONS = ["read committed", "repeatable read", "serializable"]
# What has settings of its own, without which a caller's search_path would decide.
SETTINGS = (
    "SELECT proname, proconfig FROM pg_proc WHERE proname LIKE 'fanwire%' AND proconfig IS NOT NULL"
)
FUNCTIONS = "SELECT proname FROM pg_proc WHERE proname LIKE 'fanwire%'"


def isolated(connection: Connection, isolation: str) -> Connection:
    """As where the database or the role says so for everybody."""
    query = "SELECT set_config('default_transaction_isolation', %s, false)"
    connection.execute(query, (isolation,))
    return connection


def names(connection: Connection, query: str) -> set[str]:
    return {str(row[0]) for row in connection.execute(query.encode())}


def settings(connection: Connection) -> dict[str, list[str]]:
    return dict(connection.execute(SETTINGS.encode()).fetchall())


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("_time", range(TIMES))
def test_many_at_once_under_any_isolation(connect: Connect, isolation: str, _time: int) -> None:
    gate = threading.Barrier(AT_ONCE, timeout=DEADLINE_SECONDS)

    def run(connection: Connection) -> None:
        # A publisher looks first; then its session knows that there is nothing.
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT version, needs FROM fanwire_schema")
        gate.wait()
        install(connection)

    connections = [isolated(connect(), isolation) for _ in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(run, connection) for connection in connections]:
            done.result()
    connection = connect()
    assert connection.execute("SELECT version, needs FROM fanwire_schema").fetchall() == [(1, 1)]
    assert works(connection)
    assert len(settings(connection)) == 7


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_who_waited_hears_of_what_was_made_meanwhile(connect: Connect, isolation: str) -> None:
    """A session that knows the catalog by heart, and in it that there is no table."""
    first, second = connect(autocommit=False), isolated(connect(), isolation)
    for _ in range(3):
        with second.transaction(force_rollback=True):
            install(second)
        assert second.execute("SELECT to_regclass('fanwire_schema')").fetchall() == [(None,)]
    second.execute(f"SET lock_timeout = '{DEADLINE_SECONDS}s'".encode())
    install(first)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(install, second)
        query = "SELECT FROM pg_locks WHERE pid = %s AND NOT granted"
        watch, pid = connect(), second.info.backend_pid
        until_blocking(lambda: watch.execute(query, (pid,)).fetchall(), "it waits for the first")
        first.commit()
        done.result()
    assert works(second)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_what_was_made_after_the_transaction_began(connect: Connect, isolation: str) -> None:
    late = isolated(connect(autocommit=False), isolation)
    late.commit()
    late.execute("SELECT 1 FROM pg_class LIMIT 1")
    owner = connect()
    install(owner)
    before = settings(owner)
    install(late)
    late.commit()
    assert owner.execute("SELECT version, needs FROM fanwire_schema").fetchall() == [(1, 1)]
    assert settings(owner) == before
    assert works(late)


def test_a_newer_one_that_came_meanwhile_is_not_taken_back(connect: Connect) -> None:
    owner, late = connect(), isolated(connect(autocommit=False), "repeatable read")
    install(owner)
    late.commit()
    late.execute("SELECT 1 FROM pg_class LIMIT 1")
    newer = SCHEMA.replace("this_version constant integer := 1", "this_version integer := 2")
    owner.execute(newer.encode())
    with pytest.raises(psycopg.errors.SerializationFailure):
        install(late)
    late.rollback()
    install(late)
    late.commit()
    assert owner.execute("SELECT version, needs FROM fanwire_schema").fetchall() == [(2, 1)]


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(
    "lost",
    [
        ("TABLE fanwire_schema",),
        ("TABLE fanwire_uploads",),
        ("TABLE fanwire_messages",),
        ("TABLE fanwire_keys",),
        ("INDEX fanwire_uploads_expires",),
        ("TABLE fanwire_schema, fanwire_messages",),
        ("TABLE fanwire_schema, fanwire_uploads, fanwire_messages, fanwire_keys",),
    ],
    ids=lambda lost: lost[0].replace(" ", "_"),
)
def test_what_was_dropped_is_made_again(connect: Connect, lost: tuple[str], isolation: str) -> None:
    connection = isolated(connect(), isolation)
    install(connection)
    assert works(connection, "old") and works(connection, "older")
    connection.execute(f"DROP {lost[0]}".encode())
    install(connection)
    relations = names(connection, "SELECT relname FROM pg_class WHERE relname LIKE 'fanwire%'")
    assert {
        "fanwire_schema",
        "fanwire_uploads",
        "fanwire_uploads_expires",
        "fanwire_messages",
        "fanwire_keys",
    } <= relations
    assert connection.execute("SELECT version, needs FROM fanwire_schema").fetchall() == [(1, 1)]
    assert works(connection, "new") and works(connection, "old")


def test_a_row_that_was_deleted_is_written_again(connect: Connect) -> None:
    connection = isolated(connect(), "repeatable read")
    install(connection)
    connection.execute("DELETE FROM fanwire_schema")
    install(connection)
    assert connection.execute("SELECT version, needs FROM fanwire_schema").fetchall() == [(1, 1)]


def test_each_function_is_made_again(connect: Connect) -> None:
    connection = connect()
    install(connection)
    all_of_them, before = names(connection, FUNCTIONS), settings(connection)
    for name in sorted(all_of_them):
        connection.execute(sql.SQL("DROP FUNCTION {}").format(sql.Identifier(name)))
        install(connection)
        assert names(connection, FUNCTIONS) == all_of_them
    assert settings(connection) == before
    assert works(connection)


def test_a_function_of_the_same_name_is_left_alone(connect: Connect) -> None:
    connection = connect()
    own = "CREATE FUNCTION fanwire_publish(text, jsonb) RETURNS void LANGUAGE sql AS ''"
    connection.execute(own.encode())
    install(connection)
    install(connection)
    query = "SELECT proconfig FROM pg_proc WHERE oid = 'fanwire_publish(text, jsonb)'::regprocedure"
    assert connection.execute(query.encode()).fetchall() == [(None,)]


@pytest.mark.parametrize(
    ("lost", "kept"),
    [("fanwire_uploads", "fanwire_messages"), ("fanwire_messages", "fanwire_uploads")],
)
def test_no_history_gets_what_belonged_to_another_one(
    connect: Connect, lost: str, kept: str
) -> None:
    connection = connect()
    install(connection)
    (before,) = record(connection, Message("a", key="k"))
    connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(lost)))
    install(connection)
    for table in (kept, "fanwire_keys"):
        count = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
        assert connection.execute(count).fetchall() == [(0,)]
    (after,) = record(connection, Message("b", key="k"))
    assert (after.status, after.offset) == (0, 1)
    assert after.epoch != before.epoch
    assert read_one(connection, "b").offsets == [1]


def test_histories_are_kept_where_they_are_whole(connect: Connect) -> None:
    connection = connect()
    install(connection)
    (before,) = record(connection, Message("u"))
    connection.execute("DROP TABLE fanwire_schema, fanwire_keys")
    install(connection)
    past = read_one(connection, "u", (before.epoch, 0))
    assert (past.epoch, past.offsets) == (before.epoch, [1])


def test_it_is_made_whole_where_the_rest_is(connect: Connect) -> None:
    connection = connect(search_path="nearer, public")
    install(connection)
    connection.execute("CREATE SCHEMA nearer")
    connection.execute("DROP TABLE fanwire_schema")
    install(connection)
    query = "SELECT schemaname FROM pg_tables WHERE tablename LIKE 'fanwire%'"
    assert names(connection, query) == {"public"}


def test_who_may_not_make_what_is_missing_is_told(connect: Connect) -> None:
    owner, guest = connect(), connect(GUEST)
    install(owner)
    owner.execute("DROP TABLE fanwire_messages")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        install(guest)


def test_it_does_not_wait_for_who_publishes(connect: Connect) -> None:
    owner, publisher = connect(), connect(autocommit=False)
    install(owner)
    record(publisher, Message("u"))
    owner.execute("SET lock_timeout = '1ms'")
    install(owner)
    publisher.commit()
    query = "SELECT count(*) FROM fanwire_uploads WHERE upload = %s"
    assert owner.execute(query, (hash_of("u"),)).fetchall() == [(1,)]
