"""What an ``EventPublisher`` publishes, and where."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import orjson
import pytest

import fanwire
from tests.conftest import Unique, WatcherFactory
from tests.deadlines import until, until_blocking
from tests.events import Tap, flushed, settled
from tests.servers import AnyServer

Make = Callable[..., fanwire.EventPublisher]


@pytest.fixture
def make(any_server: AnyServer) -> Iterator[Make]:
    made: list[fanwire.EventPublisher] = []

    def make(url: str = any_server.url, **options: Any) -> fanwire.EventPublisher:
        made.append(fanwire.EventPublisher(url, **options))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()


@pytest.fixture
def tap(any_server: AnyServer) -> Iterator[Tap]:
    tap = Tap(any_server)
    yield tap
    tap.close()


def is_now(text: str, begun: datetime) -> bool:
    """A naive local time, as ``datetime.now().isoformat()`` writes it."""
    moment = datetime.fromisoformat(text)
    assert moment.isoformat() == text
    return begun <= moment <= datetime.now()


def test_the_payloads_are_those_of_the_replaced_code(make: Make, tap: Tap) -> None:
    begun = datetime.now()
    publisher = make()
    line = {"event": "analysed", "level": "info", "path": "/ä", "n": 3, "ok": True, "none": None}
    publisher.publish_log(line)
    publisher.publish_event("cycle_started", {"repo": "fan", "files": [1, 2.5]})
    publisher.publish_event("cycle_ended")
    publisher.publish_event("idle", {})
    publisher.publish_stats({"done": 7, "queue": {"waiting": 0}})
    publisher.publish_stats({"a": 1, "timestamp": "theirs", "b": 2})
    flushed(publisher)
    payloads = tap.payloads()
    assert payloads[0] == ("logs", orjson.dumps(line))
    assert [channel for channel, _ in payloads] == ["logs", *["events"] * 3, *["stats"] * 2]
    started, ended, idle, stats, dated = (orjson.loads(payload) for _, payload in payloads[1:])
    assert list(started) == ["type", "timestamp", "data"]
    assert (started["type"], started["data"]) == (
        "cycle_started",
        {"repo": "fan", "files": [1, 2.5]},
    )
    assert (ended["type"], ended["data"], idle["data"]) == ("cycle_ended", {}, {})
    assert list(stats) == ["timestamp", "done", "queue"]
    assert (stats["done"], stats["queue"]) == (7, {"waiting": 0})
    assert all(is_now(message["timestamp"], begun) for message in (started, ended, idle, stats))
    assert list(dated.items()) == [("timestamp", "theirs"), ("a", 1), ("b", 2)]


def test_the_channels(make: Make, any_server: AnyServer, unique: Unique) -> None:
    def channels(of: Any) -> list[str]:
        return [of.CHANNEL_LOGS, of.CHANNEL_EVENTS, of.CHANNEL_STATS]

    standard = ["codeworm:logs", "codeworm:events", "codeworm:stats"]
    assert channels(fanwire.EventPublisher) == channels(make()) == standard

    class Own(fanwire.EventPublisher):
        CHANNEL_LOGS = unique("own") + ":logs"
        CHANNEL_EVENTS = unique("own") + ":events"
        CHANNEL_STATS = unique("own") + ":stats"

    named = make(namespace=unique("named"))
    assert channels(named) == [f"{unique('named')}:{name}" for name in ("logs", "events", "stats")]
    assert channels(fanwire.EventPublisher) == standard
    with Own(any_server.url) as own:
        for publisher, namespace in ((named, unique("named")), (own, unique("own"))):
            tap = Tap(any_server, namespace)
            publisher.publish_log({"n": 1})
            publisher.publish_event("e", {"n": 2})
            publisher.publish_stats({"n": 3})
            flushed(publisher)
            assert [channel for channel, _ in tap.payloads()] == ["logs", "events", "stats"]
            tap.close()


async def test_over_the_embedded_broker(make_watcher: WatcherFactory) -> None:
    # Its listeners hear what is published for uploads.
    watcher = await make_watcher("memory://", upload_id="logs")
    with fanwire.EventPublisher("memory://", namespace="upload") as publisher:
        publisher.publish_log({"n": 1})
        publisher.publish_log({"n": 2})
        assert await watcher.connection.received(2) == ['{"n":1}', '{"n":2}']
        await until(lambda: publisher.stats()["published"] == 2)


def test_every_thread_finds_its_messages_in_order(make: Make, tap: Tap) -> None:
    publisher, threads, each = make(), 8, 400

    def work(thread: int) -> None:
        for n in range(each):
            publisher.publish_log({"thread": thread, "n": n})
            if n % 10 == 0:
                publisher.publish_event("step", {"thread": thread, "n": n})

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    flushed(publisher)
    steps: list[tuple[str, int, int]] = []
    for channel, message in tap.messages():
        data = message if channel == "logs" else message["data"]
        steps.append((channel, data["thread"], data["n"]))
    for thread in range(threads):
        mine = [(channel, n) for channel, by, n in steps if by == thread]
        assert mine == [
            step
            for n in range(each)
            for step in ([("logs", n), ("events", n)] if n % 10 == 0 else [("logs", n)])
        ]


def test_from_inside_an_event_loop(make: Make, tap: Tap) -> None:
    publisher = make()

    async def job(n: int) -> None:
        publisher.publish_event("job", {"n": n})
        assert await asyncio.to_thread(publisher.flush, 20)

    for n in range(20):
        asyncio.run(job(n))
    assert [message["data"]["n"] for _, message in tap.messages()] == list(range(20))


def test_flush_and_figures(make: Make) -> None:
    publisher = make()
    assert publisher.flush(0)  # nothing waits
    before = publisher.stats()
    assert before["published"] == before["pending_messages"] == before["pending_bytes"] == 0
    assert not before["connected"]
    for n in range(1000):
        publisher.publish_log({"n": n})
    flushed(publisher)
    after = publisher.stats()
    assert (after["published"], after["pending_messages"]) == (1000, 0)
    assert after["connected"]
    assert not any(after[name] for name in after if name.endswith(("dropped", "failed")))


def test_flush_wants_a_time(make: Make) -> None:
    for value in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout_seconds"):
            make().flush(value)


def test_closing_lets_out_what_waits(make: Make, tap: Tap) -> None:
    publisher = make()
    for n in range(500):
        publisher.publish_log({"n": n})
    publisher.close()
    assert [line["n"] for line in tap.logs()] == list(range(500))
    assert publisher.closed and not publisher.stats()["connected"]
    publisher.close()
    with pytest.raises(RuntimeError, match="closed"):
        publisher.publish_event("e")
    with pytest.raises(RuntimeError, match="closed"):
        publisher.publish_stats({})
    publisher.publish_log({"event": "late"})
    publisher.publish_log({"event": "later"})
    assert publisher.stats()["after_close"] == 2
    assert publisher.flush(0)
    assert tap.payloads() == []


def test_as_a_context_manager(make: Make, tap: Tap) -> None:
    publisher = make()

    def work() -> None:
        with publisher as entered:
            assert entered is publisher
            publisher.publish_event("begun")
            raise LookupError

    with pytest.raises(LookupError):
        work()
    assert publisher.closed
    assert [message["type"] for _, message in tap.messages()] == ["begun"]


def test_closed_by_many_threads_at_once(make: Make, tap: Tap) -> None:
    publisher, barrier = make(), threading.Barrier(4)
    publisher.publish_event("once")

    def close(_: int) -> None:
        barrier.wait()
        publisher.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(close, range(4)))
    assert [message["type"] for _, message in tap.messages()] == ["once"]


def test_one_that_is_let_go_still_publishes(any_server: AnyServer, tap: Tap) -> None:
    for n in range(20):
        fanwire.EventPublisher(any_server.url).publish_event("let go", {"n": n})
    seen: list[int] = []

    def has_all() -> bool:
        seen.extend(message["data"]["n"] for _, message in tap.messages())
        return len(seen) >= 20

    until_blocking(has_all, "a message of each")
    assert sorted(seen) == list(range(20))


def test_it_can_be_extended(any_server: AnyServer, tap: Tap) -> None:
    class Daemon(fanwire.EventPublisher):
        def __init__(self, name: str) -> None:
            self.name = name
            super().__init__(any_server.url)

        def publish_event(self, event_type: str, data: Any = None) -> None:
            super().publish_event(event_type, {"daemon": self.name, **(data or {})})

    with Daemon("worm") as daemon:
        daemon.publish_event("woke")
    assert [message["data"] for _, message in tap.messages()] == [{"daemon": "worm"}]

    class Forgetful(fanwire.EventPublisher):
        def __init__(self) -> None:
            pass

    with pytest.raises(RuntimeError, match="__init__"):
        Forgetful().publish_event("e")


def test_a_broker_that_refuses_a_channel(make_redis: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = make_redis(
        password="pw", acl_user="worker", acl_rules="allcommands resetchannels &codeworm:events"
    )
    tap = Tap(server)
    with fanwire.EventPublisher(server.url) as publisher:
        publisher.publish_event("one")
        publisher.publish_log({"n": 1})
        publisher.publish_log({"n": 2})
        publisher.publish_event("two")
        stats = settled(publisher)
        assert (stats["published"], stats["publish_failed"], stats["outages"]) == (2, 2, 0)
        assert not publisher.flush(0) or publisher.stats()["pending_messages"] == 0
    assert [message["type"] for _, message in tap.messages()] == ["one", "two"]
    tap.close()
    refusals = [r.getMessage() for r in caplog.records if "refuse" in r.getMessage()]
    assert len(refusals) == 1 and "pw" not in refusals[0].replace("channel", "")
