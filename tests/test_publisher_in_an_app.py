"""A publisher as an application sees it: extended, patched, and configured."""

import gc
import weakref
from typing import Any
from unittest.mock import patch

import pytest

import fanwire
from tests.conftest import Broker, PublisherFactory, Unique, WatcherFactory
from tests.connections import RecordingConnection


class NotedPublisher(fanwire.UploadProgressPublisher):
    def __init__(self, url: str, notes: list[str], **options: Any) -> None:
        super().__init__(url, **options)
        self.notes = notes

    async def publish_progress(self, upload_id: str, message: Any, **options: Any) -> Any:
        self.notes.append(upload_id)
        return await super().publish_progress(upload_id, message, **options)


async def test_a_subclass_with_its_own_constructor(
    broker: Broker, make_watcher: WatcherFactory
) -> None:
    watcher, notes = await make_watcher(broker.url), list[str]()
    publisher = NotedPublisher(broker.url, notes, strict=True)
    await publisher.publish_progress(watcher.upload_id, 1)
    assert notes == [watcher.upload_id]
    assert await watcher.connection.received(1) == ["1"]
    await publisher.stop()


async def test_a_subclass_of_the_manager_delivers(
    broker: Broker, make_publisher: PublisherFactory, unique: Unique
) -> None:
    class AppManager(fanwire.ConnectionManager):
        def __init__(self) -> None:
            super().__init__()
            self.owner = "app"

    manager, connection = AppManager(), RecordingConnection()
    publisher = make_publisher(broker.url, manager=manager)
    await manager.connect(unique("user"), connection)
    await publisher.start()
    await publisher.publish_to_user(unique("user"), 1)
    assert await connection.received(1) == ["1"]


async def test_attributes_weak_references_and_patches(broker: Broker) -> None:
    publisher = fanwire.UploadProgressPublisher(broker.url)
    publisher.owner = "app"  # type: ignore[attr-defined]
    assert vars(publisher) == {"owner": "app"}
    reference = weakref.ref(publisher)
    assert reference() is publisher
    calls: list[str] = []

    async def fake(upload_id: str, message: Any) -> None:
        calls.append(upload_id)

    with patch.object(publisher, "publish_progress", fake):
        await publisher.publish_progress("on the instance", {})
    with patch.object(
        fanwire.UploadProgressPublisher, "publish_progress", lambda self, *args: fake(*args)
    ):
        await publisher.publish_progress("on the class", {})
    assert calls == ["on the instance", "on the class"]
    assert "publish_progress" not in vars(publisher)
    del publisher
    gc.collect()
    assert reference() is None


# URLs


def test_the_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://from-redis-url:1")
    assert fanwire.UploadProgressPublisher().url == "redis://from-redis-url:1"
    monkeypatch.setenv("FANWIRE_URL", "redis://from-fanwire-url:2")
    assert fanwire.UploadProgressPublisher().url == "redis://from-fanwire-url:2"
    assert fanwire.UploadProgressPublisher("redis://given:3").url == "redis://given:3"


def test_without_any_url_one_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("FANWIRE_URL", raising=False)
    assert fanwire.UploadProgressPublisher().url == "memory://"
    warnings = [r for r in caplog.records if r.name == "fanwire" and r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "memory://" in warnings[0].getMessage()
    caplog.clear()
    fanwire.UploadProgressPublisher("memory://")
    assert caplog.records == []


@pytest.mark.parametrize(
    "option",
    [
        {"connect_timeout_seconds": 0},
        {"connect_timeout_seconds": -1.0},
        {"connect_timeout_seconds": float("nan")},
        {"publish_timeout_seconds": 0},
        {"publish_timeout_seconds": float("inf")},
        {"max_message_bytes": 0},
        {"max_pending_messages": 0},
        {"max_pending_bytes": 0},
    ],
    ids=str,
)
def test_options_that_make_no_sense(option: dict[str, Any]) -> None:
    with pytest.raises(fanwire.ConfigError, match=next(iter(option))):
        fanwire.UploadProgressPublisher("memory://", **option)


def test_options_that_do_not_exist() -> None:
    with pytest.raises(TypeError):
        fanwire.UploadProgressPublisher("memory://", no_such_option=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        fanwire.UploadProgressPublisher("memory://", manager="no manager")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        fanwire.UploadProgressPublisher(7)  # type: ignore[arg-type]
