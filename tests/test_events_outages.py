"""A broker that is down, stands still, comes and goes.

Nobody waits for it, and what is missing is told.
"""

import itertools
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import pytest
import redis

import fanwire
from tests.conftest import RedisFactory
from tests.deadlines import until_blocking
from tests.events import Outage, Tap, flushed, outage, settled
from tests.redis_server import RedisServer


@pytest.fixture
def server(make_redis: RedisFactory) -> RedisServer:
    """One that can refuse the publisher, and nobody else."""
    return make_redis(password="pw", acl_user="worker")


@pytest.fixture
def tap(server: RedisServer) -> Iterator[Tap]:
    tap = Tap(server)
    yield tap
    tap.close()


def reports(messages: list[tuple[str, Any]]) -> list[Any]:
    return [
        message
        for channel, message in messages
        if channel == "events" and message["type"] == "fanwire.dropped"
    ]


def test_made_while_the_broker_is_down(own_redis: RedisServer) -> None:
    own_redis.kill()
    with fanwire.EventPublisher(own_redis.url) as publisher:
        for n in range(100):
            publisher.publish_log({"n": n})
        publisher.publish_event("e")
        publisher.publish_stats({"n": 1})
        until_blocking(lambda: publisher.stats()["outages"] == 1, "the outage is noticed")
        assert not publisher.flush(0)
        assert publisher.stats()["pending_messages"] == 102
        own_redis.start()
        flushed(publisher)
        stats = publisher.stats()
        assert (stats["published"], stats["pending_messages"], stats["unclear"]) == (102, 0, 0)


def test_what_waits_goes_out_in_order(server: RedisServer, tap: Tap) -> None:
    publisher = fanwire.EventPublisher(server.url)
    publisher.publish_log({"n": -1})
    flushed(publisher)
    with outage(server):
        for n in range(1000):
            publisher.publish_log({"n": n})
        assert publisher.stats()["pending_messages"] > 0
    publisher.publish_log({"n": 1000})
    flushed(publisher)
    messages = tap.messages()
    assert [message["n"] for _, message in messages] == list(range(-1, 1001))
    publisher.close()


def test_lines_make_room_events_do_not_and_it_is_told_once(server: RedisServer, tap: Tap) -> None:
    begun = datetime.now()
    trouble = Outage(server)
    trouble.begin()
    publisher = fanwire.EventPublisher(server.url, max_pending_messages=100)
    for n in range(200):
        publisher.publish_log({"log": n})
        if n % 10 == 0:
            publisher.publish_event("event", {"n": n})
            publisher.publish_stats({"stats": n})
    stats = publisher.stats()
    assert stats["pending_messages"] == 100
    assert (stats["events_dropped"], stats["published"]) == (0, 0)
    assert stats["logs_dropped"] + stats["stats_dropped"] == 140
    assert not publisher.flush(0)
    trouble.end()
    settled(publisher)
    flushed(publisher)
    messages = tap.messages()
    assert len(messages) == 101
    (report,) = reports(messages)
    assert messages[0] == ("events", report)
    assert report["data"] == {
        "logs": stats["logs_dropped"], "stats": stats["stats_dropped"], "events": 0,
    }  # fmt: skip
    assert begun <= datetime.fromisoformat(report["timestamp"]) <= datetime.now()
    rest = [message for channel, message in messages[1:] if channel != "events"]
    events = [message["data"]["n"] for channel, message in messages[1:] if channel == "events"]
    assert events == list(range(0, 200, 10))
    # Of the others those that came last, in their order.
    everything: list[Any] = []
    for n in range(200):
        everything += [{"log": n}, {"stats": n}] if n % 10 == 0 else [{"log": n}]
    for message in rest:
        message.pop("timestamp", None)
    assert rest == everything[-80:]
    publisher.close()


def test_events_make_room_where_nothing_else_is_left(server: RedisServer, tap: Tap) -> None:
    trouble = Outage(server)
    trouble.begin()
    publisher = fanwire.EventPublisher(server.url, max_pending_messages=10)
    publisher.publish_log({"n": 1})
    for n in range(15):
        publisher.publish_event("event", {"n": n})
    publisher.publish_log({"n": 2})
    stats = publisher.stats()
    assert (stats["logs_dropped"], stats["events_dropped"]) == (2, 5)
    trouble.end()
    settled(publisher)
    flushed(publisher)
    report, *events = tap.messages()
    assert report[1]["data"] == {"logs": 2, "stats": 0, "events": 5}
    assert [message["data"]["n"] for _, message in events] == list(range(5, 15))
    publisher.close()


def test_bytes_are_bounded_too(server: RedisServer, tap: Tap) -> None:
    trouble = Outage(server)
    trouble.begin()
    publisher = fanwire.EventPublisher(server.url, max_pending_bytes=10_000)
    for n in range(1000):
        publisher.publish_log({"n": n, "text": "x" * 100})
        assert publisher.stats()["pending_bytes"] <= 10_000
    waiting = publisher.stats()["pending_messages"]
    assert 70 < waiting < 100
    trouble.end()
    settled(publisher)
    flushed(publisher)
    (_, report), *lines = tap.messages()
    assert report["data"]["logs"] == 1000 - waiting
    assert [line["n"] for _, line in lines] == list(range(1000 - waiting, 1000))
    publisher.close()


def test_the_log_tells_of_an_outage_once(
    server: RedisServer, tap: Tap, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = fanwire.EventPublisher(server.url, max_pending_messages=5)
    publisher.publish_event("before")
    flushed(publisher)
    with outage(server):
        for n in range(8):
            publisher.publish_log({"n": n})
        until_blocking(lambda: publisher.stats()["outages"] == 1, "the outage is noticed")
        # What the task has to say is said by the next call.
        publisher.publish_log({"n": 8})
    settled(publisher)

    def said() -> list[str]:
        publisher.stats()
        return [r.getMessage() for r in caplog.records if r.name == "fanwire"]

    until_blocking(lambda: any("published again" in line for line in said()), "its end is told")
    lines = said()
    assert len(lines) == 2, lines
    assert "wait" in lines[0] and "published again; 4 log lines" in lines[1]
    assert not any(":pw@" in line for line in lines)
    # And none of it went out as a log line.
    assert [message["n"] for message in tap.logs()] == [4, 5, 6, 7, 8]
    publisher.close()


def test_a_broker_that_stands_still(own_redis: RedisServer) -> None:
    """No call waits for it, and what was not under way then goes out later, once."""
    tap = Tap(own_redis)
    # Longer than a busy machine holds a broker up. This one stands still for as long as it takes.
    publisher = fanwire.EventPublisher(
        own_redis.url, publish_timeout_seconds=3.5, connect_timeout_seconds=3.5
    )
    publisher.publish_event("first")
    flushed(publisher)
    before = publisher.stats()["outages"]
    own_redis.pause()
    try:
        for n in range(3000):
            publisher.publish_log({"n": n})
        publisher.publish_event("second")
        assert not publisher.flush(0.01)
        until_blocking(lambda: publisher.stats()["outages"] == before + 1, "the outage is noticed")
    finally:
        own_redis.resume()
    stats = settled(publisher)
    assert stats["published"] + stats["unclear"] == 3002
    assert 1 <= stats["unclear"] <= 512
    messages = tap.messages()
    (report,) = reports(messages)
    assert report["data"] == {"logs": 0, "stats": 0, "events": 0, "unclear": stats["unclear"]}
    numbers = [message["n"] for channel, message in messages if channel == "logs"]
    # The broker may have found them when it went on, but no two of them the same.
    assert len(set(numbers)) == len(numbers) >= 3000 - stats["unclear"]
    assert numbers == sorted(numbers)
    publisher.close()
    tap.close()


def test_a_connection_that_breaks_again_and_again(server: RedisServer, tap: Tap) -> None:
    """Each message comes once or not at all, and in order; what may be missing is counted."""
    publisher, done = fanwire.EventPublisher(server.url), threading.Event()

    def cut() -> None:
        while not done.wait(0.01):
            Outage(server).cut()

    cutting = threading.Thread(target=cut)
    cutting.start()
    total = 20_000
    for n in range(total):
        publisher.publish_event("e", {"n": n})
        if n % 100 == 0:
            until_blocking(lambda: publisher.stats()["pending_messages"] < 5000)
    stats = settled(publisher)
    done.set()
    cutting.join()
    # What is told of the last break goes out with what comes next.
    publisher.publish_event("last")
    flushed(publisher)
    stats = settled(publisher)
    assert stats["published"] + stats["unclear"] == total + 1
    assert stats["publish_failed"] == stats["events_dropped"] == 0
    messages = tap.messages()
    numbers = [m["data"]["n"] for _, m in messages if m["type"] == "e"]
    assert all(a < b for a, b in itertools.pairwise(numbers))
    assert stats["published"] - 1 <= len(numbers) <= total
    assert sum(r["data"].get("unclear", 0) for r in reports(messages)) >= stats["unclear"]
    publisher.close()


def test_restarted_while_nothing_is_published(own_redis: RedisServer) -> None:
    """A connection that broke while idle costs nothing."""
    publisher = fanwire.EventPublisher(own_redis.url)
    for _ in range(3):
        publisher.publish_event("e")
        flushed(publisher)
        own_redis.restart()
        # Over a socket it is known when the broker has gone.
        tap = Tap(own_redis)
        until_blocking(lambda: not own_redis.client.client_list(_type="normal")[1:])
        publisher.publish_event("e")
        flushed(publisher)
        assert len(tap.payloads()) == 1
        tap.close()
    assert publisher.stats()["unclear"] == 0
    publisher.close()


@pytest.mark.parametrize("how", ["down", "still"])
def test_closing_without_a_broker(own_redis: RedisServer, how: str) -> None:
    with ExitStack() as cleaning:
        publishers = [fanwire.EventPublisher(own_redis.url) for _ in range(2)]
        if how == "down":
            own_redis.kill()
        else:
            for publisher in publishers:
                publisher.publish_event("warm")
                flushed(publisher)
            own_redis.pause()
            cleaning.callback(own_redis.resume)
        for publisher in publishers:
            publisher.publish_log({"n": 1})
            publisher.publish_event("e")
            publisher.close()
            stats = publisher.stats()
            lost = stats["logs_dropped"] + stats["events_dropped"] + stats["unclear"]
            assert (stats["pending_messages"], lost, stats["connected"]) == (0, 2, False)


def test_a_server_that_is_none() -> None:
    publisher = fanwire.EventPublisher("redis://127.0.0.1:1", connect_timeout_seconds=0.1)
    publisher.publish_event("e")
    until_blocking(lambda: publisher.stats()["outages"] == 1, "the outage is noticed")
    assert publisher.stats()["pending_messages"] == 1
    publisher.close()
    assert publisher.stats()["events_dropped"] == 1


def test_what_is_refused_for_now_waits(server: RedisServer, tap: Tap) -> None:
    """A server that is busy with a script says so to everybody: nothing of the batch was taken."""
    publisher = fanwire.EventPublisher(server.url)
    publisher.publish_event("e", {"n": 0})
    flushed(publisher)
    server.client.config_set("busy-reply-threshold", 1)
    other = redis.Redis(unix_socket_path=str(server.socket_path))

    def run_for_ever() -> None:
        with pytest.raises(redis.ResponseError, match="SCRIPT KILL"):
            other.eval("while true do end", 0)

    script = threading.Thread(target=run_for_ever)
    script.start()
    try:
        until_blocking(lambda: is_busy(server), "the script runs")
        for n in range(1, 100):
            publisher.publish_event("e", {"n": n})
        until_blocking(lambda: publisher.stats()["outages"] == 1, "the outage is noticed")
    finally:
        server.client.script_kill()
        script.join()
        other.close()
    flushed(publisher)
    stats = publisher.stats()
    assert (stats["published"], stats["unclear"], stats["publish_failed"]) == (100, 0, 0)
    assert [message["data"]["n"] for _, message in tap.messages()] == list(range(100))
    publisher.close()


def is_busy(server: RedisServer) -> bool:
    try:
        server.client.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False
