"""An application's own transaction that has recorded for an upload, and is left open."""

import asyncio
import json
from functools import partial
from typing import Any

import psycopg
import pytest

import fanwire
import fanwire.postgres
from tests import histories
from tests.conftest import Unique
from tests.deadlines import bounded, until
from tests.histories import InstanceFactory, note
from tests.postgres_server import OWNER, PostgresServer

make_instance = histories.make_instance

SLEEPS = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"


async def test_only_its_upload_waits(
    own_postgres: PostgresServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    held, free = unique("held"), unique("free")
    instance = await make_instance(own_postgres.url)
    publisher = instance.publisher
    heard: asyncio.Queue[Any] = asyncio.Queue()

    async def handler(topic: str, message: Any) -> None:
        await heard.put(message)

    await bounded(publisher.subscribe_topic("s", "t", handler))
    watchers = [await instance.watch(upload, user=upload) for upload in (held, free)]
    await instance.publish(held, note(1))
    await watchers[0].saw(1)
    with psycopg.connect(own_postgres.url) as application:
        application.execute("SELECT fanwire_publish_upload(%s, '{}', 256)", [held])
        before = len(own_postgres.backends())
        for number in range(2, 12):
            assert publisher.publish_nowait(held, note(number))
            assert publisher.publish_nowait(free, note(number))
        await bounded(publisher.broadcast("t", "passes"))
        assert await bounded(heard.get()) == "passes"
        await watchers[1].saw(*range(1, 11))
        failed = publisher.stats()["outages"]
        assert failed, "who waits is known to wait"
        await until(lambda: publisher.stats()["pending_messages"] == 10, "the others are through")
        await until(lambda: len(own_postgres.backends()) <= before, "no backend is left behind")
        application.rollback()
    await watchers[0].saw(*range(1, 12))
    await until(lambda: not publisher.stats()["pending_messages"], "all is published")
    assert publisher.stats()["publish_failed"] == 0


async def test_a_role_whose_transactions_see_nothing_later(
    own_postgres: PostgresServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    own_postgres.client.execute(
        f"ALTER ROLE {OWNER} SET default_transaction_isolation = 'repeatable read'".encode()
    )
    upload = unique("upload")
    instance = await make_instance(own_postgres.url)
    publisher = instance.publisher
    watcher = await instance.watch(upload, user="ada")
    await instance.publish(upload, note(1))
    # In one statement, for nobody waits for long.
    own_postgres.client.execute(
        """
        CREATE FUNCTION record_until_somebody_waits(upload text, message json) RETURNS void
        LANGUAGE plpgsql AS $$ BEGIN
          PERFORM fanwire_publish_upload(upload, message, 256);
          WHILE NOT EXISTS (SELECT FROM pg_locks WHERE NOT granted) LOOP
            PERFORM pg_sleep(0.001);
          END LOOP;
        END $$
        """
    )
    for number in (2, 4):
        options = "-c default_transaction_isolation=read\\ committed -c statement_timeout=20s"
        with psycopg.connect(own_postgres.url, autocommit=True, options=options) as application:
            record = "SELECT record_until_somebody_waits(%s, %s)"
            recorded = asyncio.to_thread(
                application.execute, record, [upload, json.dumps(note(number))]
            )
            recording, pid = asyncio.create_task(recorded), application.info.backend_pid
            await until(partial(own_postgres.rows, SLEEPS, pid), "it is recorded")
            publisher.publish_nowait(upload, note(number + 1))
            await bounded(recording)
    await watcher.saw(*range(1, 6))
    assert publisher.stats()["outages"] == 0


async def test_who_may_record_at_last_does(
    own_postgres: PostgresServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    upload = unique("upload")
    own_postgres.client.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    publisher = fanwire.UploadProgressPublisher(
        own_postgres.url_of("guest"), history=fanwire.History()
    )
    receipt = await bounded(publisher.publish_progress(upload, note(1), receipt=True))
    assert receipt.status == "failed"
    fanwire.postgres.migrate(own_postgres.url)
    tables = "fanwire_schema, fanwire_uploads, fanwire_messages, fanwire_keys"
    own_postgres.client.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO guest")

    def is_published() -> bool:
        publisher.publish_nowait(upload, note(2))
        return bool(publisher.stats()["published"])

    await until(is_published, "what is granted is noticed on the same connection")
    await publisher.stop()


async def test_tables_that_are_dropped_meanwhile_are_made_again(
    own_postgres: PostgresServer, make_instance: InstanceFactory, unique: Unique
) -> None:
    publisher = (await make_instance(own_postgres.url)).publisher
    for number, dropped in enumerate(
        ("TABLE fanwire_messages", "TABLE fanwire_schema", "FUNCTION fanwire_record")
    ):
        await publisher.publish_progress(unique("upload"), note(number))
        own_postgres.client.execute(f"DROP {dropped}".encode())
        receipt = await bounded(publisher.publish_progress(unique("upload"), note(0), receipt=True))
        assert receipt.status == "published", dropped


@pytest.mark.parametrize("failing", [1, 2, 3])
async def test_what_must_be_sent_again_is_not_overtaken(
    own_postgres: PostgresServer, make_instance: InstanceFactory, unique: Unique, failing: int
) -> None:
    """One upload is held, so that each is sent by itself; another one's first message fails once.

    Its second message is in another call, behind one that is not recorded.
    """
    alone, held, other = unique("alone"), unique("held"), unique("other")
    publisher = (await make_instance(own_postgres.url)).publisher
    for upload in (alone, held, other):
        await publisher.publish_progress(upload, note(0))
    own_postgres.client.execute(
        f"""
        CREATE SEQUENCE attempt;
        GRANT ALL ON SEQUENCE attempt TO PUBLIC;
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          IF NEW.heads[1] LIKE '%101%' AND nextval('attempt') = {failing} THEN
            RAISE EXCEPTION 'once' USING ERRCODE = 'serialization_failure';
          END IF;
          RETURN NEW;
        END $$;
        CREATE TRIGGER fail BEFORE INSERT ON fanwire_messages FOR EACH ROW EXECUTE FUNCTION fail();
        """.encode()
    )
    with psycopg.connect(own_postgres.url) as application:
        for upload in (alone, held):
            application.execute("SELECT fanwire_publish_upload(%s, '{}', 256)", [upload])
        await asyncio.gather(
            publisher.publish_progress(alone, note(1)),  # the others come while it is under way
            publisher.publish_progress(held, note(1)),
            publisher.publish_progress(other, note(101)),
            publisher.broadcast("t", "in between"),
            publisher.publish_progress(other, note(102)),
        )
        application.rollback()
    await until(lambda: not publisher.stats()["pending_messages"], "all is published")
    numbers = [message["number"] for message in histories.kept(own_postgres, other)]
    assert numbers == [0, 101, 102]
