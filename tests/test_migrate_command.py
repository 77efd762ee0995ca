"""``python -m fanwire migrate``, and publishers that need no such thing."""

import os
import subprocess
import sys

import psycopg
import pytest

import fanwire
import fanwire.postgres
from tests.conftest import PublisherFactory, WatcherFactory
from tests.deadlines import until
from tests.interpreters import ROOT, TIMEOUT_SECONDS, environment
from tests.postgres_server import GUEST, PostgresServer


def migrate(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    names = [name for name in os.environ if name.startswith(("PG", "FANWIRE_"))]
    clean = {name: value for name, value in environment().items() if name not in names}
    return subprocess.run(
        [sys.executable, "-m", "fanwire", "migrate", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env=clean | variables,
        cwd=ROOT,
        check=False,
    )


def tables(server: PostgresServer) -> set[str]:
    rows = server.rows("SELECT tablename FROM pg_tables WHERE tablename LIKE 'fanwire%%'")
    return {name for (name,) in rows}


def test_it_makes_the_tables_and_says_so(own_postgres: PostgresServer) -> None:
    # Not in the schema `public`, into which PostgreSQL 15 lets nobody but its owner put anything.
    own_postgres.client.execute("CREATE SCHEMA own; ALTER ROLE app SET search_path = own")
    own_postgres.client.execute("GRANT ALL ON SCHEMA own TO app")
    done = migrate(own_postgres.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "fanwire: made the tables and functions, version 1 in the schema own\n"
    assert "fanwire_uploads" in tables(own_postgres)
    done = migrate(own_postgres.url)
    assert done.stdout == "fanwire: up to date, version 1 in the schema own\n"
    migrated = fanwire.postgres.migrate(own_postgres.url)
    assert migrated == fanwire.postgres.Migrated(schema="own", before=1, version=1)


def test_the_environment_may_say_where(own_postgres: PostgresServer) -> None:
    assert migrate(FANWIRE_URL=own_postgres.url).returncode == 0
    host, port = str(own_postgres.directory), str(own_postgres.port)
    variables = {"PGHOST": host, "PGPORT": port, "PGUSER": "app", "PGDATABASE": "app"}
    assert "up to date" in migrate(**variables).stdout


def test_what_it_prints_makes_the_same(own_postgres: PostgresServer) -> None:
    done = migrate("--print")
    assert done.stdout == fanwire.postgres.schema_sql()
    with psycopg.connect(own_postgres.url) as connection:
        connection.execute(done.stdout.encode())
    assert "up to date" in migrate(own_postgres.url).stdout


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://localhost", "is no PostgreSQL URL"),
        ("postgresql+psycopg://a:hunter2@db/app", "write postgresql://"),
        ("postgresql://a:hunter2@127.0.0.1:1/app?sslmode=disable", "onnection refused"),
    ],
)
def test_what_cannot_be_is_said_in_words(url: str, text: str) -> None:
    done = migrate(url)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr


def test_who_may_not_is_told_who_may(own_postgres: PostgresServer) -> None:
    own_postgres.client.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    own_postgres.client.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
    done = migrate(own_postgres.url_of(GUEST))
    assert done.returncode == 2
    assert "let one that may run `python -m fanwire migrate postgresql://guest@" in done.stderr


async def test_a_publisher_with_a_history_makes_its_tables(
    own_postgres: PostgresServer, make_watcher: WatcherFactory
) -> None:
    watcher = await make_watcher(own_postgres.url, strict=True)
    await watcher.publisher.publish_progress(watcher.upload_id, {"n": 1})
    assert tables(own_postgres) == set(), "none are needed without a history"
    keeps = await make_watcher(own_postgres.url, strict=True, history=fanwire.History())
    receipt = await keeps.publisher.publish_progress(keeps.upload_id, {"n": 1}, receipt=True)
    assert receipt.offset == 1
    assert "fanwire_uploads" in tables(own_postgres)


async def test_tables_that_vanish_are_made_again(
    own_postgres: PostgresServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(own_postgres.url, strict=True, history=fanwire.History())
    await publisher.publish_progress("upload", {"n": 1})
    names = ", ".join(sorted(tables(own_postgres)))
    own_postgres.client.execute(f"DROP TABLE {names}".encode())
    receipt = await publisher.publish_progress("upload", {"n": 2}, receipt=True)
    assert (receipt.status, receipt.offset) == ("published", 1)


async def test_who_may_not_make_them_publishes_what_is_not_recorded(
    own_postgres: PostgresServer,
    make_watcher: WatcherFactory,
    make_publisher: PublisherFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own_postgres.client.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    own_postgres.client.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
    watcher = await make_watcher(own_postgres.url, strict=True)
    url = own_postgres.url_of(GUEST)
    publisher = make_publisher(url, history=fanwire.History())
    await publisher.publish_progress(watcher.upload_id, {"n": 1})
    await publisher.publish_to_user(watcher.user_id, {"n": 2})
    assert await watcher.connection.received(1) == ['{"n":2}']
    await until(lambda: "python -m fanwire migrate" in caplog.text, "the log says what to do")
    assert publisher.stats()["publish_failed"] == 1
    # Once somebody has made them, and lets everybody use them, it is as if nothing had been.
    fanwire.postgres.migrate(own_postgres.url_of("postgres"))
    own_postgres.client.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC")
    other = make_publisher(url, strict=True, history=fanwire.History())
    receipt = await other.publish_progress(watcher.upload_id, {"n": 3}, receipt=True)
    assert receipt.offset == 1
