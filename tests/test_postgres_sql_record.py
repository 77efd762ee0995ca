"""``fanwire_record``: what it answers, keeps, sends and forgets."""

import re

import pytest
from psycopg import sql

from tests.conftest import Unique
from tests.deadlines import until_blocking
from tests.postgres_server import PostgresServer, Template
from tests.postgres_sql import (
    DUPLICATE,
    HAD_COME,
    PUBLISHED,
    STALE,
    Answer,
    Connection,
    Ear,
    Message,
    connected,
    database,
    ear,
    hash_of,
    install,
    messages_of,
    read,
    read_one,
    record,
)

__all__ = ["database", "ear"]


def statuses(answers: list[Answer]) -> list[tuple[int, int | None]]:
    return [(answer.status, answer.offset) for answer in answers]


def test_messages_are_numbered_kept_and_sent_as_they_are(
    database: Connection, ear: Ear, unique: Unique
) -> None:
    one, other = unique("upload"), unique('ünï"\\')
    batch = [
        Message(one, '{"n":1,'),
        Message(other, '{"n":2,', milestone=True),
        Message(one, "{", milestone=True),
        Message(one, '{"n":"é\\u0000",'),
    ]
    answers = record(database, *batch)
    assert statuses(answers) == [(0, 1), (0, 1), (0, 2), (0, 3)]
    epoch = answers[0].epoch
    assert re.fullmatch("[0-9a-f]{16}", epoch) and int(epoch, 16)
    assert [answer.epoch for answer in answers] == [epoch, answers[1].epoch, epoch, epoch]
    payloads = [
        message.at(answer.epoch, answer.offset or 0)
        for message, answer in zip(batch, answers, strict=True)
    ]
    assert ear.rest() == [
        ("fanwire", f"~m{len(channel.encode())}:{channel}{payload}")
        for channel, payload in zip(
            (f"upload:{message.upload}" for message in batch), payloads, strict=True
        )
    ]
    past, other_past, nothing = read(database, (one, None), (other, None), ("nothing", None))
    assert past is not None and other_past is not None and nothing is None
    assert (past.epoch, past.last, past.milestone) == (epoch, 3, 2)
    assert past.entries == ((2, payloads[2]), (3, payloads[3]))
    assert other_past.entries == ((1, payloads[1]),)
    assert statuses(record(database, Message(one))) == [(0, 4)]
    assert read_one(database, one, (epoch, 3)).offsets == [2, 3, 4]
    assert read_one(database, one, (epoch, 4)).entries == ()


def test_keys_and_versions_are_published_once(
    database: Connection, ear: Ear, unique: Unique
) -> None:
    upload, other = unique("upload"), unique("other")

    def send(key: str | None, version: int | None) -> tuple[int, int | None]:
        (answer,) = record(database, Message(upload, key=key, version=version))
        return answer.status, answer.offset

    assert send("k", 3) == (PUBLISHED, 1)
    assert send("k", 9) == (DUPLICATE, 1)
    assert send("l", 3) == (STALE, None)
    assert send(None, 4) == (PUBLISHED, 2)
    assert send(None, None) == (PUBLISHED, 3)
    assert send(None, 2) == (STALE, None)
    assert send("l", None) == (PUBLISHED, 4)
    assert send("l" * 100_000, None) == (PUBLISHED, 5)
    assert send("l" * 100_000, None) == (DUPLICATE, 5)
    # In one call, between messages that have neither.
    mixed = record(
        database,
        Message(other),
        Message(upload, key="m"),
        Message(upload),
        Message(other),
        Message(upload, key="m"),
        Message(other, version=7),
        Message(other, version=7),
    )
    assert statuses(mixed) == [(0, 1), (0, 6), (0, 7), (0, 2), (1, 6), (0, 3), (2, None)]
    sent = [channel for channel, _ in ear.messages()]
    assert (sent.count(f"upload:{upload}"), sent.count(f"upload:{other}")) == (7, 3)


def test_what_is_sent_again_is_known_by_its_number(
    database: Connection, ear: Ear, unique: Unique
) -> None:
    upload, other = unique("upload"), unique("other")
    first = [Message(upload, number=1), Message(other, number=2), Message(upload, number=3)]
    record(database, *first, source="a")
    again = record(database, *first, Message(other, number=4), source="a")
    assert statuses(again) == [(HAD_COME, None)] * 3 + [(PUBLISHED, 2)]
    assert statuses(record(database, *first, source="b")) == [(0, 3), (0, 3), (0, 4)]
    assert statuses(record(database, Message(upload, number=3), source="a")) == [(HAD_COME, None)]
    assert statuses(record(database, Message(upload, number=5), source="a")) == [(0, 5)]
    assert len(ear.messages()) == 8


def test_publishers_that_come_and_go_leave_little_behind(
    database: Connection, unique: Unique
) -> None:
    upload = unique("upload")
    for number in range(200):
        record(database, Message(upload, number=number), source=f"s{number:016x}")
    query = "SELECT jsonb_object_keys(sources) FROM fanwire_uploads WHERE upload = %s"
    known = [row[0] for row in database.execute(query, (hash_of(upload),))]
    assert len(known) <= 64 and f"s{199:016x}" in known
    assert read_one(database, upload).last == 200


@pytest.mark.parametrize("one_by_one", [True, False])
def test_so_many_are_kept_and_the_milestone(
    database: Connection, unique: Unique, one_by_one: bool
) -> None:
    upload = unique("upload")

    def send(count: int, *, milestone: bool = False) -> None:
        messages = [Message(upload, milestone=milestone)] * count
        for batch in [[message] for message in messages] if one_by_one else [messages]:
            record(database, *batch, size=4)

    def rows() -> int:
        query = (
            "SELECT coalesce(sum(cardinality(heads)), 0) FROM fanwire_messages"
            " JOIN fanwire_uploads USING (history) WHERE upload = %s"
        )
        return int(database.execute(query, (hash_of(upload),)).fetchall()[0][0])

    send(6)
    assert read_one(database, upload).offsets == [3, 4, 5, 6]
    send(1, milestone=True)
    send(9)
    assert read_one(database, upload).offsets == [7, 13, 14, 15, 16]
    send(1, milestone=True)
    assert read_one(database, upload).offsets == [17]
    epoch = read_one(database, upload).epoch
    assert read_one(database, upload, (epoch, 1)).offsets == [14, 15, 16, 17]
    send(4)
    assert read_one(database, upload, (epoch, 1)).offsets == [17, 18, 19, 20, 21]
    assert rows() <= 7 if one_by_one else rows() <= 16
    # Another publisher's setting holds for its own messages; what is gone does not come back.
    record(database, Message(upload), size=100)
    assert read_one(database, upload, (epoch, 1)).offsets == [17, 18, 19, 20, 21, 22]


def test_a_long_history_is_bounded_too(database: Connection, unique: Unique) -> None:
    upload = unique("upload")
    for batch in range(100):
        record(
            database, *[Message(upload, key=f"{batch}-{number}") for number in range(2)], size=64
        )
        record(database, *[Message(upload)] * 10, size=64)
    assert read_one(database, upload).offsets == list(range(1_137, 1_201))
    for table, most in (("fanwire_messages", 64 + 32 + 12), ("fanwire_keys", 64 + 8)):
        rows = database.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table)))
        assert rows.fetchall()[0][0] <= most
    assert record(database, Message(upload, key="99-1"), size=64)[0].status == DUPLICATE
    assert record(database, Message(upload, key="0-1"), size=64)[0].status == PUBLISHED


def test_what_has_expired_begins_anew(database: Connection, unique: Unique) -> None:
    upload = unique("upload")
    (first,) = record(database, Message(upload, key="k", version=7, number=9), source="a", ttl_ms=9)
    until_blocking(lambda: read(database, (upload, None)) == [None])
    again = Message(upload, key="k", version=1, number=3)
    (anew,) = record(database, again, source="a")
    assert statuses([anew]) == [(PUBLISHED, 1)] and anew.epoch != first.epoch
    assert read_one(database, upload, (first.epoch, 1)).entries == ((1, again.at(anew.epoch, 1)),)


def test_what_has_expired_is_deleted_though_nobody_asks_for_it(
    database: Connection, unique: Unique
) -> None:
    uploads = [unique(f"upload{number}-") for number in range(12)]
    record(database, *[Message(upload, key="k") for upload in uploads])

    def shift(where: str) -> None:
        """As if much time had passed for these."""
        query = f"UPDATE fanwire_uploads SET expires = now() + {where}"
        database.execute(query.encode(), ([hash_of(upload) for upload in uploads],))

    def left() -> tuple[int, ...]:
        """Of how many uploads something is there, by tables."""
        tables = ("fanwire_uploads", "fanwire_messages", "fanwire_keys")
        query = "SELECT count(DISTINCT history) FROM {}"
        rows = (database.execute(sql.SQL(query).format(sql.Identifier(name))) for name in tables)
        return tuple(row.fetchall()[0][0] for row in rows)

    shift("'-1 hour' WHERE upload = ANY (%s)")
    # Each upload that begins takes two away, ...
    record(database, Message(unique("new")))
    assert left() == (11, 11, 10)
    record(database, Message(unique("new")))
    assert left() == (11, 11, 10)
    # ... each that begins anew, ...
    kept = {bytes(row[0]) for row in database.execute("SELECT upload FROM fanwire_uploads")}
    anew = next(upload for upload in uploads if hash_of(upload) in kept)
    record(database, Message(anew))
    assert left() == (9, 9, 7)
    # ... and each that goes on for longer.
    shift("'30 minutes' WHERE upload <> ALL (%s)")
    record(database, Message(unique("new")))
    assert left() == (7, 7, 5)
    for _ in range(9):
        record(database, Message(anew), Message(unique("new")))
    assert left() == (7, 7, 5)
    assert database.execute("SELECT fanwire_sweep(3)").fetchall() == [(3,)]
    assert database.execute("SELECT fanwire_sweep()").fetchall() == [(2,)]
    assert left() == (2, 2, 0)


def test_a_clock_that_was_set_back_does_not_keep_uploads_for_ever(
    database: Connection, unique: Unique
) -> None:
    upload = unique("upload")
    record(database, Message(upload))
    ahead = "UPDATE fanwire_uploads SET expires = expires + interval '1 year' WHERE upload = %s"
    database.execute(ahead, (hash_of(upload),))
    record(database, Message(upload))
    near = "SELECT expires < now() + interval '70 minutes' FROM fanwire_uploads WHERE upload = %s"
    assert database.execute(near, (hash_of(upload),)).fetchall() == [(True,)]
    late = "UPDATE fanwire_uploads SET expires = now() + interval '50 minutes' WHERE upload = %s"
    database.execute(late, (hash_of(upload),))
    record(database, Message(upload, version=1))
    still = "SELECT expires > now() + interval '59 minutes' FROM fanwire_uploads WHERE upload = %s"
    assert database.execute(still, (hash_of(upload),)).fetchall() == [(True,)]


@pytest.mark.parametrize("character", ["x", "é", "€", "\U0001f41d"])
@pytest.mark.parametrize("key", [None, "k"])
def test_long_messages_come_in_parts_and_are_kept_whole(
    database: Connection, ear: Ear, unique: Unique, character: str, key: str | None
) -> None:
    for extra in range(4):
        upload = unique(f"upload{extra}-")
        size = 1_000_000 if extra == 0 else 40_000
        text = "a" * extra + character * (size // len(character.encode()))
        message = Message(upload, f'{{"text":"{text}",', key=key)
        (answer,) = record(database, message)
        whole = message.at(answer.epoch, 1)
        heard = ear.rest()
        assert len(heard) == -(-len(f"~m{len(upload) + 7}:upload:{upload}{whole}".encode()) // 7950)
        ids = {payload[:18] for _, payload in heard}
        assert len(ids) == 1 and re.fullmatch("~c[0-9a-f]{16}", ids.pop())
        assert list(messages_of(heard)) == [(f"upload:{upload}", whole)]
        assert read_one(database, upload).entries == ((1, whole),)


def test_a_frame_of_just_the_longest_length_is_one(
    database: Connection, ear: Ear, unique: Unique
) -> None:
    for length, count in ((7_999, 1), (8_000, 2)):
        upload = unique(f"upload{length}-")
        empty = f"~m{len(upload) + 7}:upload:{upload}" + Message(upload, '{"":"",').at("0" * 16, 1)
        record(database, Message(upload, f'{{"":"{"x" * (length - len(empty))}",'))
        heard = ear.rest()
        assert len(heard) == count
        if count == 1:
            assert len(heard[0][1]) == length


def test_a_rollback_gives_the_offset_back_and_sends_nothing(
    database: Connection, ear: Ear, unique: Unique
) -> None:
    upload, other = unique("upload"), unique("other")
    record(database, Message(upload))
    with database.transaction(force_rollback=True):
        answers = record(database, Message(upload, key="k"), Message(other, version=3))
        assert statuses(answers) == [(0, 2), (0, 1)]
    with database.transaction():
        with database.transaction(force_rollback=True):
            record(database, Message(upload, key="k"))
        assert statuses(record(database, Message(upload, key="k"))) == [(PUBLISHED, 2)]
    assert statuses(record(database, Message(other, version=1))) == [(PUBLISHED, 1)]
    assert [channel for channel, _ in ear.messages()] == [
        f"upload:{name}" for name in (upload, upload, other)
    ]


def test_most_updates_stay_on_their_page(postgres_template: Template) -> None:
    """On a server of its own: while anybody has a snapshot, no page is made room on."""
    uploads = [f"upload-{number}" for number in range(8)]
    query = (
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'fanwire_uploads'"
    )
    with (
        PostgresServer(postgres_template, settings={"autovacuum": "off"}) as server,
        connected(server) as database,
        connected(server) as fresh,
    ):
        install(database)
        for _ in range(100):
            record(database, *[Message(upload, milestone=True) for upload in uploads])
        before = fresh.execute(query).fetchall()[0]
        for _ in range(200):
            record(database, *[Message(upload, milestone=True) for upload in uploads])

        def figures() -> tuple[int, int]:
            now = fresh.execute(query).fetchall()[0]
            return now[0] - before[0], now[1] - before[1]

        until_blocking(lambda: figures()[0] >= 1_600, "the statistics are up to date")
        updates, hot = figures()
    assert hot > 0.95 * updates
