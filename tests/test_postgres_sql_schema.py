"""schema.sql: put into a database any number of times, by whom, and into which schema."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql

from tests.conftest import Unique
from tests.deadlines import DEADLINE_SECONDS
from tests.postgres_server import GUEST, PostgresServer
from tests.postgres_sql import (
    SCHEMA,
    Connect,
    Connection,
    Ear,
    Message,
    connect,
    install,
    read_one,
    record,
    works,
)

__all__ = ["connect"]

OBJECTS = (
    "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE c.relname LIKE 'fanwire%' UNION SELECT n.nspname, p.oid::regprocedure::text"
    " FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.proname LIKE 'fanwire%'"
)


def objects(connection: Connection) -> set[tuple[str, str]]:
    return {(schema, name) for schema, name in connection.execute(OBJECTS.encode())}


def test_it_is_put_in_twice_without_a_word_and_keeps_what_is_there(connect: Connect) -> None:
    connection = connect()
    notices: list[object] = []
    connection.add_notice_handler(notices.append)
    install(connection)
    made = objects(connection)
    assert {schema for schema, _ in made} == {"public"}
    assert works(connection)
    install(connection)
    assert objects(connection) == made
    assert read_one(connection, "u").last == 1
    assert notices == []
    assert connection.execute("SELECT version FROM fanwire_schema").fetchall() == [(1,)]


def test_many_that_put_it_in_at_once(connect: Connect) -> None:
    connections = [connect() for _ in range(6)]
    gate = threading.Barrier(len(connections), timeout=DEADLINE_SECONDS)

    def run(connection: Connection) -> bool:
        gate.wait()
        install(connection)
        return works(connection, str(connection.info.backend_pid))

    with ThreadPoolExecutor(len(connections)) as pool:
        assert all(pool.map(run, connections))
    assert connect().execute("SELECT count(*) FROM fanwire_schema").fetchall() == [(1,)]


def test_it_is_all_or_nothing_and_leaves_the_transaction_as_it_was(connect: Connect) -> None:
    connection = connect(autocommit=False, search_path="public, pg_catalog")
    install(connection)
    assert connection.execute("SHOW search_path").fetchall() == [("public, pg_catalog",)]
    assert works(connection)
    connection.rollback()
    assert objects(connection) == set()


def test_it_goes_into_the_first_schema_and_is_found_from_everywhere(connect: Connect) -> None:
    odd = 'My "Schema"; --'
    path = f"no_such, {sql.Identifier(odd).as_string()}, public"
    connection = connect(search_path=path)
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(odd)))
    install(connection)
    assert {schema for schema, _ in objects(connection)} == {odd}
    assert works(connection)
    # Another schema comes first now. Everybody goes on with what is there.
    connection.execute("CREATE SCHEMA no_such")
    install(connection)
    assert {schema for schema, _ in objects(connection)} == {odd}
    assert works(connection, "v")
    # The functions find their tables, although the caller does not, or has others of that name.
    elsewhere = connect(search_path="pg_temp, public")
    elsewhere.execute("CREATE TABLE pg_temp.fanwire_uploads (wrong text)")
    call = sql.SQL("SELECT {}.fanwire_publish_upload('u', '{{}}', 9)").format(sql.Identifier(odd))
    assert elsewhere.execute(call).fetchall() == [(2,)]
    assert read_one(connection, "u").last == 2


def test_two_schemas_are_two_sets_of_histories(connect: Connect) -> None:
    first, second = connect(search_path="public"), connect(search_path="other")
    second.execute("CREATE SCHEMA other")
    install(first)
    install(second)
    for _ in range(2):
        record(first, Message("u"))
    record(second, Message("u"))
    assert (read_one(first, "u").last, read_one(second, "u").last) == (2, 1)


def test_what_a_role_needs(connect: Connect) -> None:
    owner, guest = connect(), connect(GUEST)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="schema public"):
        install(guest)
    install(owner)
    # All is there already, so there is nothing that it is not allowed to do.
    install(guest)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="fanwire_uploads"):
        record(guest, Message("u"))
    listens = "GRANT SELECT ON fanwire_uploads, fanwire_messages TO guest"
    owner.execute(listens.encode())
    record(owner, Message("u"))
    assert read_one(guest, "u").last == 1
    publishes = (
        "GRANT SELECT, INSERT, UPDATE, DELETE ON fanwire_uploads, fanwire_messages, fanwire_keys"
        " TO guest"
    )
    owner.execute(publishes.encode())
    assert works(guest, "v")


def test_without_a_schema_it_says_so(connect: Connect) -> None:
    connection = connect(search_path="no_such, nor_this")
    with pytest.raises(psycopg.DatabaseError, match="search_path is no_such, nor_this"):
        install(connection)


@pytest.mark.parametrize(("needs", "is_fit"), [(1, True), (2, False)])
def test_a_newer_schema_is_left_alone(connect: Connect, needs: int, is_fit: bool) -> None:
    connection = connect()
    install(connection)
    connection.execute("UPDATE fanwire_schema SET version = 2, needs = %s", (needs,))
    connection.execute("DROP FUNCTION fanwire_publish")
    if is_fit:
        install(connection)
    else:
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="in version 2, and this fan"):
            install(connection)
    assert connection.execute("SELECT version FROM fanwire_schema").fetchall() == [(2,)]
    assert connection.execute("SELECT to_regproc('fanwire_publish')").fetchall() == [(None,)]


def test_another_encoding_is_refused(postgres_server: PostgresServer, unique: Unique) -> None:
    name = sql.Identifier(unique("latin"))
    create = "CREATE DATABASE {} ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    postgres_server.client.execute(sql.SQL(create).format(name))
    url = postgres_server.url_of("postgres", name.as_string().strip('"'))
    with (
        psycopg.connect(url) as connection,
        pytest.raises(psycopg.errors.FeatureNotSupported, match="UTF8, and this one has LATIN1"),
    ):
        install(connection)
    postgres_server.client.execute(sql.SQL("DROP DATABASE {}").format(name))


def test_a_database_without_an_encoding(postgres_server: PostgresServer, unique: Unique) -> None:
    name = unique("ascii")
    create = "CREATE DATABASE {} ENCODING SQL_ASCII TEMPLATE template0"
    postgres_server.client.execute(sql.SQL(create).format(sql.Identifier(name)))
    url = postgres_server.url_of("postgres", name, client_encoding="UTF8")
    with psycopg.connect(url, autocommit=True) as connection:
        install(connection)
        head = f'{{"é":"{"é" * 9_000}",'
        (answer,) = record(connection, Message("ü", head))
        assert read_one(connection, "ü").entries == ((1, Message("ü", head).at(answer.epoch, 1)),)
    postgres_server.client.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))


def test_a_standby_says_that_it_is_one(own_postgres: PostgresServer) -> None:
    with psycopg.connect(own_postgres.url, autocommit=True) as connection:
        install(connection)
        connection.execute("SET default_transaction_read_only = on")
        for query in (
            b"SELECT fanwire_publish_upload('u', '{}', 9)",
            SCHEMA.encode().replace(
                b"this_version constant integer := 1", b"this_version int := 2"
            ),
        ):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                connection.execute(query)


def test_offsets_outlive_a_crash(own_postgres: PostgresServer) -> None:
    with psycopg.connect(own_postgres.url, autocommit=True) as connection:
        install(connection)
        (before,) = record(connection, Message("u", milestone=True))
    own_postgres.kill()
    own_postgres.start()
    with psycopg.connect(own_postgres.url, autocommit=True) as connection:
        (after,) = record(connection, Message("u"))
        assert (after.epoch, after.offset) == (before.epoch, 2)
        assert read_one(connection, "u").offsets == [1, 2]


def test_a_pool_may_share_the_connection(own_postgres: PostgresServer) -> None:
    """Everything is done in one transaction, and no session keeps anything."""
    with Ear(own_postgres, "fanwire") as ear:
        for upload in "ab":
            with psycopg.connect(own_postgres.url, autocommit=True) as connection:
                install(connection)
                assert works(connection, upload)
        assert [channel for channel, _ in ear.messages()] == ["upload:a", "upload:b"]
