"""How uploads and users travel on PostgreSQL: over one channel for all."""

import json

import pytest

import fanwire
from tests.conftest import PublisherFactory, Unique, WatcherFactory
from tests.deadlines import until
from tests.notifications import SHARED, tap
from tests.postgres_server import PostgresServer


async def test_uploads_and_users_share_a_channel(
    postgres_server: PostgresServer, make_publisher: PublisherFactory
) -> None:
    publisher = make_publisher(postgres_server.url)
    with tap(postgres_server, SHARED) as heard:
        await publisher.publish_progress("größe", {"n": 1})
        await publisher.publish_to_user("ada", [1, 2])
        payloads = heard.payloads()
    assert payloads == ['~m14:upload:größe{"n":1}', "~m8:user:ada[1,2]"]


async def test_what_is_recorded_ends_with_the_reserved_member(
    postgres_server: PostgresServer, make_publisher: PublisherFactory, unique: Unique
) -> None:
    publisher, upload = make_publisher(postgres_server.url, history=fanwire.History()), unique("u")
    with tap(postgres_server, SHARED) as heard:
        receipt = await publisher.publish_progress(upload, {"a": [1, "}"]}, receipt=True)
        (payload,) = heard.payloads()
    channel = f"upload:{upload}"
    member = f'"_fanwire":{{"epoch":"{receipt.epoch}","offset":1}}}}'
    assert payload == f'~m{len(channel)}:{channel}{{"a":[1,"}}"],{member}'
    assert receipt.receivers is None


async def test_text_that_others_write_is_forwarded(
    postgres_server: PostgresServer, make_watcher: WatcherFactory
) -> None:
    """But for white space at its end, which tells equal notifications apart."""
    watcher = await make_watcher(postgres_server.url)
    texts = ["plain text, no JSON", "ü 🚀 \n\r\t \x01", "x" * 7_900, '{"a": 1}']
    for text in texts:
        postgres_server.publish(f"upload:{watcher.upload_id}", f"{text} \t\r\n")
        postgres_server.publish(f"user:{watcher.user_id}", text)
    assert await watcher.connection.received(2 * len(texts)) == [
        text for each in texts for text in (each, each)
    ]


async def test_ids_of_any_kind(
    postgres_server: PostgresServer, make_publisher: PublisherFactory, make_watcher: WatcherFactory
) -> None:
    worker = make_publisher(postgres_server.url, strict=True, history=fanwire.History())
    for upload in ("x" * 5_000, "ü検🚀", '"quoted"', "~m3:abc", "a\r\nb", "", " "):
        watcher = await make_watcher(postgres_server.url, upload_id=upload)
        await worker.publish_progress(upload, {"of": upload})
        (text,) = await watcher.connection.received(1)
        assert json.loads(text)["of"] == upload
        await watcher.publisher.stop()


async def test_an_id_with_a_nul_cannot_be_carried(
    postgres_server: PostgresServer, make_publisher: PublisherFactory
) -> None:
    for history in (None, fanwire.History()):
        strict = make_publisher(postgres_server.url, strict=True, history=history)
        with pytest.raises(fanwire.PublishError, match="NUL"):
            await strict.publish_progress("nul\0inside", {})
        await strict.publish_progress("fine", {})
        assert strict.stats()["published"] == 1


async def test_malformed_frames_are_counted(
    postgres_server: PostgresServer, make_watcher: WatcherFactory
) -> None:
    """What is no frame is for a channel of that name, which is nobody's."""
    watcher = await make_watcher(postgres_server.url)
    for payload in ("", "~m99:upload:x", "~c1,2:3", "~m8:upload:u", "no frame", '{"json":1}'):
        postgres_server.notify(SHARED, payload)
    postgres_server.publish(f"upload:{watcher.upload_id}", "after it")
    assert await watcher.connection.received(1) == ["after it"]
    await until(lambda: watcher.publisher.stats()["malformed"] == 4, "they are counted")
