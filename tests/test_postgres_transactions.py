"""What an application publishes in a transaction of its own, with the drivers that it has."""

import json
import runpy
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy as sa
from psycopg.types.json import Json
from sqlalchemy.ext.asyncio import create_async_engine

from tests.postgres_server import PostgresServer
from tests.postgres_sql import Connection, Ear, database, ear, read_one

__all__ = ["database", "ear"]

EXAMPLE = Path(__file__).parent.parent / "examples/postgres_transaction"
MESSAGE = {"action": "upload_completed", "upload_id": "é"}
Transaction = Callable[[PostgresServer, bool], Awaitable[int | None]]


class UndoError(Exception):
    """Raised in a transaction that is to be rolled back."""


async def with_psycopg(server: PostgresServer, fails: bool) -> int | None:
    async with (
        await psycopg.AsyncConnection.connect(server.url) as connection,
        connection.transaction(),
    ):
        cursor = await connection.execute(
            "SELECT fanwire_publish_upload(%s, %s, %s)", ("é", Json(MESSAGE), 16)
        )
        row = await cursor.fetchone()
        await connection.execute("SELECT fanwire_publish(%s, %s)", ("t", Json(MESSAGE)))
        if fails:
            raise UndoError
    return row[0] if row else None


async def with_asyncpg(server: PostgresServer, fails: bool) -> int | None:
    connection: Any = await asyncpg.connect(server.url)
    try:
        async with connection.transaction():
            offset: int | None = await connection.fetchval(
                "SELECT fanwire_publish_upload($1, $2, history_size => $3)",
                "é",
                json.dumps(MESSAGE),
                16,
            )
            await connection.execute("SELECT fanwire_publish($1, $2)", "t", json.dumps(MESSAGE))
            if fails:
                raise UndoError
        return offset
    finally:
        await connection.close()


def _statements() -> tuple[sa.Select[Any], sa.Select[Any]]:
    message = sa.cast(sa.bindparam("message", MESSAGE, type_=sa.JSON), sa.JSON)
    return (
        sa.select(sa.func.fanwire_publish_upload("é", message, 16)),
        sa.select(sa.func.fanwire_publish("t", message)),
    )


async def with_sqlalchemy(server: PostgresServer, fails: bool) -> int | None:
    engine = sa.create_engine(server.url.replace("postgresql:", "postgresql+psycopg:"))
    upload, topic = _statements()
    try:
        with engine.begin() as connection:
            offset: int | None = connection.scalar(upload)
            connection.execute(topic)
            if fails:
                raise UndoError
        return offset
    finally:
        engine.dispose()


async def with_asyncio_sqlalchemy(server: PostgresServer, fails: bool) -> int | None:
    engine = create_async_engine(server.url.replace("postgresql:", "postgresql+asyncpg:"))
    upload, topic = _statements()
    try:
        async with engine.begin() as connection:
            offset: int | None = await connection.scalar(upload)
            await connection.execute(topic)
            if fails:
                raise UndoError
        return offset
    finally:
        await engine.dispose()


@pytest.mark.parametrize(
    "transaction", [with_psycopg, with_asyncpg, with_sqlalchemy, with_asyncio_sqlalchemy]
)
async def test_it_is_delivered_at_the_commit_and_not_at_a_rollback(
    postgres_server: PostgresServer, database: Connection, transaction: Transaction
) -> None:
    with Ear(postgres_server, "fanwire", "pyview_t") as ear:
        with pytest.raises(UndoError):
            await transaction(postgres_server, True)
        assert await transaction(postgres_server, False) == 1
        with pytest.raises(UndoError):
            await transaction(postgres_server, True)
        assert await transaction(postgres_server, False) == 2
        heard = [(channel, json.loads(payload)) for channel, payload in ear.messages()]
    positions = [message.pop("_fanwire", {}).get("offset") for _, message in heard]
    assert heard == [("upload:é", MESSAGE), ("pyview_t", MESSAGE)] * 2
    assert positions == [1, None, 2, None]
    assert read_one(database, "é").offsets == [2]


def test_nothing_comes_before_the_commit(
    postgres_server: PostgresServer, database: Connection, ear: Ear
) -> None:
    with psycopg.connect(postgres_server.url) as connection:
        connection.execute("SELECT fanwire_publish_user('ada', '1')")
        assert ear.rest() == []
        connection.commit()
        assert ear.raw(1) == [("fanwire", "~m8:user:ada1")]


def test_a_trigger_publishes(database: Connection, ear: Ear) -> None:
    with database.transaction(force_rollback=True):
        database.execute("CREATE TABLE jobs (id text, done integer)")
        database.execute(
            "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " PERFORM fanwire_publish_upload(NEW.id, json_build_object("
            "   'action', 'upload_progress', 'percent', NEW.done), 16);"
            " RETURN NEW; END $$"
        )
        database.execute(
            "CREATE TRIGGER tell AFTER UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION tell()"
        )
        database.execute("INSERT INTO jobs VALUES ('a', 0), ('b', 0)")
        database.execute("UPDATE jobs SET done = 50")
        assert json.loads(read_one(database, "a").entries[0][1])["percent"] == 50
    assert ear.rest() == []


def test_the_example(
    postgres_server: PostgresServer, database: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(EXAMPLE / "app.py"))["main"]
    with Ear(postgres_server, "fanwire", "pyview_finished") as ear:
        try:
            main(postgres_server.url)
        finally:
            database.execute("DROP TABLE IF EXISTS descriptions")
        heard = ear.messages()
    assert [channel for channel, _ in heard] == ["upload:u1", "pyview_finished"]
    assert json.loads(heard[0][1])["description"] == "a cat on a wall"
    assert json.loads(heard[1][1]) == "u1"
    assert capsys.readouterr().out.splitlines() == [
        "u1: committed, and everybody was told",
        "u2: rolled back, and nobody was told",
    ]
