"""``fanwire_notify`` and what is built on it: what goes over the wire, and what is refused."""

import json
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Unique
from tests.postgres_server import GUEST, PostgresServer
from tests.postgres_sql import (
    Connection,
    Ear,
    connected,
    database,
    ear,
    messages_of,
    name_of,
    read,
    read_one,
)

__all__ = ["database", "ear"]

CHANNELS = [
    "t",
    "Topic Of Mine",
    "qu\"ote's; DROP TABLE x; --",
    "ünï\n\t%_\\",
    "x" * 63,
    "x" * 64,
    "é" * 31 + "x",
    "é" * 32,
    "y" * 10_000,
    "fanwire",
    "fanwire_9f86d081884c7d659a2feaa0c55ad015",
    "upload",
    "userx:1",
]


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_channel_of_any_name(
    postgres_server: PostgresServer, database: Connection, channel: str
) -> None:
    with Ear(postgres_server, name_of(channel)) as ear:
        database.execute("SELECT fanwire_notify(%s, %s)", (channel, '{"a": 1}'))
        heard = ear.rest()
    assert {name for name, _ in heard} == {name_of(channel)}
    assert list(messages_of(heard)) == [(channel, '{"a": 1}')]
    if name_of(channel) == channel:
        assert heard == [(channel, '{"a": 1}')]


def test_what_is_for_uploads_and_users_goes_one_way(database: Connection, ear: Ear) -> None:
    database.execute("SELECT fanwire_publish_user(%s, %s)", ("ada", '{"n":1}'))
    database.execute("SELECT fanwire_publish_upload(%s, %s)", ("é", '[2, "\\u0000"]'))
    database.execute("SELECT fanwire_publish_user('', 'null')")
    assert ear.rest() == [
        ("fanwire", '~m8:user:ada{"n":1}'),
        ("fanwire", '~m9:upload:é[2, "\\u0000"]'),
        ("fanwire", "~m5:user:null"),
    ]


def test_a_topic_is_published_as_in_the_guide(
    postgres_server: PostgresServer, database: Connection
) -> None:
    with Ear(postgres_server, "pyview_Counter", "mine:x") as ear:
        database.execute("SELECT fanwire_publish('Counter', '  {\"a\" : [1,2]}\n')")
        database.execute("SELECT fanwire_publish('x', '7', channel_prefix => 'mine:')")
        assert ear.rest() == [("pyview_Counter", '  {"a" : [1,2]}'), ("mine:x", "7")]


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["1", "1 ", "1\t\n", "[]"]))))
def test_equal_messages_of_a_transaction_all_come(
    postgres_server: PostgresServer, database: Connection, sent: list[tuple[str, str]]
) -> None:
    with Ear(postgres_server, "pyview_a", "pyview_b") as ear:
        with database.transaction():
            for topic, payload in sent:
                database.execute("SELECT fanwire_publish(%s, %s)", (topic, payload))
        heard = ear.rest()
        assert [(name, json.loads(payload)) for name, payload in heard] == [
            (f"pyview_{topic}", json.loads(payload)) for topic, payload in sent
        ]
        assert all(payload == payload.lstrip() for _, payload in heard)


def test_an_equal_notification_of_ones_own_is_the_same_one(
    postgres_server: PostgresServer, database: Connection
) -> None:
    """PostgreSQL cannot tell them apart, as docs/postgresql-wire.md says."""
    with Ear(postgres_server, "pyview_own") as ear:
        with database.transaction():
            database.execute("SELECT fanwire_publish('own', '1'), pg_notify('pyview_own', '1')")
        assert ear.rest() == [("pyview_own", "1")]


def test_the_white_space_counts_to_the_base_of_four(
    postgres_server: PostgresServer, database: Connection
) -> None:
    with Ear(postgres_server, "pyview_t") as ear:
        with database.transaction():
            for _ in range(18):
                database.execute("SELECT fanwire_publish('t', '1')")
            with database.transaction(force_rollback=True):
                database.execute("SELECT fanwire_publish('t', '2')")
            database.execute("SELECT fanwire_publish('t', '1')")
        database.execute("SELECT fanwire_publish('t', '1')")
        digits = ["", *"123", *(a + b for a in "123" for b in "0123"), "100", "101", "102", ""]
        marks = [digit.translate(str.maketrans("0123", " \t\n\r")) for digit in digits]
        assert ear.rest() == [("pyview_t", "1" + mark) for mark in marks]


@pytest.mark.parametrize("character", ["x", "é", "€", "\U0001f41d"])
def test_a_megabyte_comes_in_parts(
    postgres_server: PostgresServer, database: Connection, character: str
) -> None:
    channels = ["t", "T" * 100, "user:ada"]
    with Ear(postgres_server, *map(name_of, channels)) as ear:
        text = json.dumps(
            "a" + character * (1_000_000 // len(character.encode())), ensure_ascii=False
        )
        for channel in channels:
            database.execute("SELECT fanwire_notify(%s, %s)", (channel, text))
        # One that fits only without the white space of an equal one.
        just = json.dumps("x" * 7_997)
        with database.transaction():
            for _ in range(2):
                database.execute("SELECT fanwire_notify('t', %s)", (just,))
        heard = ear.rest()
        assert [(channel, payload.rstrip()) for channel, payload in messages_of(heard)] == [
            *((channel, text) for channel in channels),
            ("t", just),
            ("t", just),
        ]
        assert [payload[0] for _, payload in heard[-3:]] == ['"', "~", "~"]


REFUSED: list[tuple[str, tuple[Any, ...], str]] = [
    ("SELECT fanwire_publish(%s, %s)", (None, "1"), "the channel is NULL"),
    ("SELECT fanwire_publish(%s, %s)", ("t", None), "the message is NULL"),
    ("SELECT fanwire_publish_user(%s, %s)", (None, "1"), "the channel is NULL"),
    ("SELECT fanwire_publish(%s, %s)", ("t", "{'a': 1}"), "invalid input syntax for type json"),
    ("SELECT fanwire_notify(%s, %s)", ("t", "NaN"), "invalid input syntax for type json"),
    ("SELECT fanwire_notify(%s, %s)", ("t", ""), "invalid input syntax for type json"),
    ("SELECT fanwire_publish_upload(%s, %s, 0)", ("u", "{}"), "history_size is less than 1: 0"),
    ("SELECT fanwire_publish_upload(%s, %s, 9, '0')", ("u", "{}"), "ttl is not longer than 0"),
    ("SELECT fanwire_publish_upload(%s, %s, 9, NULL)", ("u", "{}"), "ttl is NULL"),
    ("SELECT fanwire_publish_upload(%s, %s, 9)", (None, "{}"), "upload_id is NULL"),
    ("SELECT fanwire_publish_upload(%s, %s, 9)", ("u", None), "payload is NULL"),
    ("SELECT fanwire_publish_upload(%s, %s, 9)", ("u", "[]"), "must be a JSON object, not array"),
    ("SELECT fanwire_publish_upload(%s, %s, version => 1)", ("u", "{}"), "needs history_size"),
    (
        "SELECT fanwire_publish_upload(%s, %s, idempotency_key => 'k')",
        ("u", "{}"),
        "idempotency_key needs history_size",
    ),
    (
        "SELECT fanwire_publish_upload(%s, %s, 9, version => -1)",
        ("u", "{}"),
        "version is not between 0 and 9007199254740991: -1",
    ),
    *(
        ("SELECT fanwire_publish_upload(%s, %s, 9)", ("u", reserved), "_fanwire of a recorded")
        for reserved in ('{"_fanwire":null}', '{"a":"\\ud800","\\u005ffanwire":{}}')
    ),
]


@pytest.mark.parametrize(("query", "arguments", "text"), REFUSED)
def test_what_is_refused_and_why(
    database: Connection, ear: Ear, query: str, arguments: tuple[Any, ...], text: str
) -> None:
    with pytest.raises(psycopg.DataError) as raised:
        database.execute(query.encode(), arguments)
    assert text in str(raised.value)
    assert ear.rest() == []
    assert read(database, ("u", None)) == [None]


@pytest.mark.parametrize(
    ("message", "milestone"),
    [
        ('{"action":"upload_progress"}', True),
        ('{"action":"batch_progress"}', True),
        ('{"action":"file_progress"}', True),
        ('{"action":"upload_completed"}', True),
        ('{"\\u0061ction":"upload_failed","x":"\\u0000 \\\\ud800 \\uD83D"}', True),
        ('{"action":"note"}', False),
        ('{"action":null}', False),
        ("{}", False),
        (' \n{ "a" : {"_fanwire": 1} } \t', False),
    ],
)
def test_an_upload_is_recorded_by_a_transaction(
    database: Connection, ear: Ear, unique: Unique, message: str, milestone: bool
) -> None:
    upload = unique("upload")
    query = "SELECT fanwire_publish_upload(%s, %s, history_size => 4)"
    for offset in (1, 2):
        assert database.execute(query, (upload, message)).fetchall() == [(offset,)]
    past = read_one(database, upload)
    assert past.milestone == (2 if milestone else None)
    inside = message.strip()[1:-1].strip()
    head = "{" + inside + ("," if inside else "")
    payloads = [
        f'{head}"_fanwire":{{"epoch":"{past.epoch}","offset":{offset}}}}}' for offset in (1, 2)
    ]
    assert ear.messages() == [(f"upload:{upload}", payload) for payload in payloads]
    assert read_one(database, upload, (past.epoch, 0)).entries == tuple(enumerate(payloads, 1))


def test_a_key_and_a_version_of_a_transaction(
    database: Connection, ear: Ear, unique: Unique
) -> None:
    upload = unique("upload")

    def publish(version: int | None = None, key: str | None = None) -> int | None:
        query = (
            "SELECT fanwire_publish_upload(%s, '{}', history_size => 9, ttl => '2 days',"
            " version => %s, idempotency_key => %s)"
        )
        offset: int | None = database.execute(query, (upload, version, key)).fetchall()[0][0]
        return offset

    assert publish(3, "k") == 1
    assert publish(9, "k") == 1
    assert publish(3, "l") is None
    assert publish(2**53 - 1) == 2
    assert len(ear.rest()) == 2
    query = "SELECT expires BETWEEN now() + '2 days' AND now() + '2.3 days' FROM fanwire_uploads"
    assert database.execute(query).fetchall() == [(True,)]


def test_who_may_do_nothing_may_publish_what_is_not_recorded(
    postgres_server: PostgresServer, database: Connection, ear: Ear
) -> None:
    with psycopg.connect(postgres_server.url_of(GUEST), autocommit=True) as guest:
        guest.execute("SELECT fanwire_publish_user('ada', '1')")
        guest.execute("SELECT fanwire_publish('t', '1')")
        for query in (
            b"SELECT fanwire_publish_upload('u', '{}', history_size => 9)",
            b"SELECT * FROM fanwire_read('{a}', '{NULL}', '{NULL}')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="fanwire_uploads"):
                guest.execute(query)
    assert ear.rest() == [("fanwire", "~m8:user:ada1")]


def test_nothing_is_left_in_a_session(
    postgres_server: PostgresServer, database: Connection
) -> None:
    """A pool gives the same connection to another program in the next transaction."""
    with connected(postgres_server) as connection:
        connection.execute("SELECT fanwire_publish('t', '1')")
        before = connection.execute("SELECT name, setting FROM pg_settings").fetchall()
        connection.execute("SELECT fanwire_publish('t', '1')")
        connection.execute("SELECT fanwire_publish_upload('u', '{}', 9)")
        assert connection.execute("SELECT name, setting FROM pg_settings").fetchall() == before
        assert connection.execute("SHOW fanwire.number").fetchall() == [("",)]
