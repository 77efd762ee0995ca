"""examples/logging_to_redis/dashboard.py: what a program publishes, in a browser."""

from pathlib import Path

import orjson
import pytest
from playwright.sync_api import expect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.browser import NewPerson, needs_chromium
from tests.deadlines import DEADLINE_SECONDS
from tests.examples import Example
from tests.redis_server import RedisServer, free_port


def watch(port: int) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{port}/live", proxy=None)


def test_the_dashboard_shows_what_is_published(redis_server: RedisServer, tmp_path: Path) -> None:
    example, port = Example("logging_to_redis", tmp_path, redis_server.url), free_port()
    with (
        example.running("uvicorn", {"8000": str(port)}, serves=port),
        watch(port) as first,
        watch(port) as second,
    ):
        both = (first, second)
        for each in both:
            assert orjson.loads(each.recv(DEADLINE_SECONDS)) == {"event": "listening"}
        assert example.run("python with_logging.py").returncode == 0
        for each in both:
            seen = [orjson.loads(each.recv(DEADLINE_SECONDS)) for _ in range(8)]
            assert seen[0]["type"] == "run_started" and seen[-1]["files"] == 2
            assert [line["level"] for line in seen[1:-1]] == ["info"] * 5 + ["error"]


def test_the_dashboard_lets_the_page_come_back(own_redis: RedisServer, tmp_path: Path) -> None:
    example, port = Example("logging_to_redis", tmp_path, own_redis.url), free_port()
    with example.running("uvicorn", {"8000": str(port)}, serves=port):
        with watch(port) as page:
            assert page.recv(DEADLINE_SECONDS)
            own_redis.kill()
            with pytest.raises(ConnectionClosed) as closed:
                page.recv(DEADLINE_SECONDS)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1013
        own_redis.start()
        with watch(port) as page:
            assert orjson.loads(page.recv(DEADLINE_SECONDS)) == {"event": "listening"}


@needs_chromium
def test_the_page_in_a_browser(
    own_redis: RedisServer, tmp_path: Path, new_person: NewPerson
) -> None:
    example, port = Example("logging_to_redis", tmp_path, own_redis.url), free_port()
    with example.running("uvicorn", {"8000": str(port)}, serves=port):
        page, failures = new_person().new_page(), list[str]()
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/")
        lines = page.locator("#lines")
        expect(lines).to_contain_text("listening")
        own_redis.restart()
        page.wait_for_function("lines.textContent.split('listening').length === 3")
        own_redis.publish("linecount:logs", '{"event": "<b>no markup</b>"}')
        expect(lines).to_contain_text("<b>no markup</b>")
        assert not failures
