# ruff: noqa: T201 (an app prints, and imports as it likes)
"""How an app uses fanwire, for the type checkers alone: mypy --strict and pyright pass it."""

import logging
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, Literal, assert_type

import structlog
from fastapi import UploadFile, WebSocket
from pydantic import BaseModel

import fanwire
from fanwire import (
    BrokerError,
    ConfigError,
    ConnectionManager,
    Error,
    EventPublisher,
    PublishError,
    Tracker,
    TrackerEvent,
    UploadProgressPublisher,
    events,
    get_manager,
    get_publisher,
    init_manager,
    init_publisher,
)
from fanwire.tracking import upload_message


class Progress(BaseModel):
    percent: int


class OwnConnection:
    """Any hashable object with these two coroutines will do."""

    async def send_text(self, data: str) -> None: ...

    async def close(self, code: int = 1000, reason: str | None = None) -> None: ...


class AppPublisher(UploadProgressPublisher):
    def __init__(self, url: str, app_name: str) -> None:
        super().__init__(url, connect_timeout_seconds=1, strict=True)
        self.app_name = app_name

    async def finish(self, upload_id: str) -> None:
        await self.publish_progress(upload_id, {"app": self.app_name, "done": True})


class AppManager(ConnectionManager):
    async def greet(self, user_id: str) -> None:
        await self.send_to_user(user_id, "welcome")


async def connections(manager: ConnectionManager, websocket: WebSocket) -> None:
    await manager.connect("ada", websocket)
    await manager.connect("ada", OwnConnection())
    await manager.subscribe_upload("ada", "u1")
    await manager.send_to_user("ada", Progress(percent=1))
    await manager.send_to_upload_subscribers("u1", {"any": ["json", 1, None]})
    assert_type(manager.get_upload_subscriber_ids("u1"), set[str])
    assert_type(manager.stats(), dict[str, Any])
    await manager.unsubscribe_upload("ada", "u1")
    await manager.disconnect("ada", websocket)
    await manager.disconnect_all()


def views(manager: ConnectionManager) -> None:
    assert_type("ada" in manager.user_connections, bool)
    assert_type(len(manager.upload_subscribers), int)
    for upload_id, user_ids in manager.upload_subscribers.items():
        assert_type(upload_id, str)
        assert_type(user_ids, frozenset[Any])
    assert_type(manager.user_subscriptions["ada"], frozenset[Any])
    assert_type(manager.user_subscriptions.get("ada"), frozenset[Any] | None)
    print(manager.user_connections == {"ada": {1}})


async def publisher_(publisher: UploadProgressPublisher) -> None:
    await publisher.start()
    assert_type(publisher.running, bool)
    assert_type(publisher.url, str)
    await publisher.publish_progress("u1", Progress(percent=1))
    await publisher.publish_to_user("ada", b'{"already":"encoded"}')
    assert_type(publisher.publish_nowait("u1", [1, 2]), bool)
    assert_type(publisher.publish_to_user_nowait("ada", None), bool)
    coroutine: Coroutine[Any, Any, None] = publisher.publish_progress("u1", 1)
    coroutine.close()
    assert_type(publisher.stats(), dict[str, Any])
    await publisher.stop()


def own_message(event: TrackerEvent) -> Progress | None:
    assert_type(event.kind, Literal["progress", "completed", "failed", "retrying"])
    return Progress(percent=event.percent) if event.percent is not None else None


async def tracking(publisher: UploadProgressPublisher, file: UploadFile) -> None:
    async with publisher.track("u1", file.size, user_id="ada", stage="receiving") as tracker:
        assert_type(tracker, Tracker)
        async for chunk in tracker.wrap(file):
            assert_type(chunk, bytes)
        async for chunk in tracker.wrap(file, chunk_size=1024, size=len):
            assert_type(chunk, bytes)
        async for line in tracker.wrap(lines()):
            assert_type(line, str)
        async for number in tracker.wrap([1, 2]):
            assert_type(number, int)
        tracker.stage("indexing", "nearly there")
        tracker.result(description="a cat", audit_score=7)


def blocking_tracking(publisher: UploadProgressPublisher, rows: list[str]) -> None:
    with publisher.track(
        "u1",
        total=2.5,
        min_interval=1,
        version=3,
        to_message=own_message,
        describe=str,
        exit_timeout_seconds=0.5,
        retrying=(OSError, ValueError),
    ) as tracker:
        for row in tracker.wrap(rows, size=len):
            assert_type(row, str)
        with Path("cat.jpg").open("rb") as picture:
            for part in tracker.wrap(picture, chunk_size=65_536):
                assert_type(part, bytes)
        tracker.advance()
        tracker.advance(0.5)
        tracker.message("a text")
        tracker.total = None
        assert_type(tracker.percent, int | None)
        assert_type(tracker.done, float)
        assert_type(tracker.upload_id, str)
    assert_type(publisher.flush(), bool)
    assert_type(publisher.flush(timeout_seconds=0.5), bool)
    publisher.track("u1", retrying=OSError)
    publisher.track("u1", retrying=lambda error: isinstance(error, OSError))
    publisher.track("u1", to_message=lambda event: upload_message(event) | {"host": "worker-1"})


async def lines() -> AsyncIterator[str]:
    yield "a line"


class Daemon(EventPublisher):
    CHANNEL_LOGS = "daemon:logs"


def events_(publisher: EventPublisher, line: dict[str, object]) -> None:
    assert_type(EventPublisher.CHANNEL_LOGS, str)
    publisher.publish_log(line)
    publisher.publish_event("cycle_started")
    publisher.publish_event("cycle_started", {"repo": "fan", "paths": [1, None]})
    publisher.publish_stats({"done": 1})
    assert_type(publisher.flush(), bool)
    assert_type(publisher.flush(timeout_seconds=0.5), bool)
    assert_type(publisher.stats(), dict[str, Any])
    with Daemon("redis://localhost", namespace="worm", max_pending_messages=10) as daemon:
        assert_type(daemon, Daemon)
    assert_type(events.init_publisher("redis://localhost", namespace="worm"), EventPublisher)
    assert_type(events.init_publisher(), EventPublisher)
    assert_type(events.get_publisher(), EventPublisher | None)
    structlog.configure(
        processors=[events.redis_log_processor, structlog.processors.JSONRenderer()]
    )
    logging.getLogger().addHandler(events.RedisLogHandler(publisher, level="INFO"))


async def module_functions() -> None:
    assert_type(init_manager(max_queued_messages=10, max_queued_bytes=1_000), ConnectionManager)
    assert_type(get_manager(), ConnectionManager)
    assert_type(init_publisher(), UploadProgressPublisher)
    assert_type(init_publisher("redis://localhost", strict=True), UploadProgressPublisher)
    assert_type(get_publisher(), UploadProgressPublisher)
    UploadProgressPublisher("memory://", manager=AppManager(), max_pending_messages=10)
    await AppPublisher("memory://", "app").finish("u1")
    assert_type(fanwire.__version__, str)


def errors() -> None:
    caught: list[type[Error]] = [ConfigError, BrokerError, PublishError]
    value_error: type[ValueError] = ConfigError
    connection_errors: list[type[ConnectionError]] = [BrokerError, PublishError]
    print(caught, value_error, connection_errors)


class NoConnection:
    async def send_text(self, data: int) -> None: ...


async def rejected(manager: ConnectionManager, publisher: UploadProgressPublisher) -> None:
    """Each of these is an error, and the checkers complain if one stops being so."""
    await manager.connect("ada", NoConnection())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await manager.connect(7, OwnConnection())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await publisher.publish_progress(7, {})  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    manager.user_connections["ada"] = frozenset()  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    publisher.running = True  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    publisher.track("u1", "10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    publisher.track("u1").wrap(7)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    UploadProgressPublisher("memory://", manager=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
