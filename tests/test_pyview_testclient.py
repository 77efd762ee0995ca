"""PyView apps in Starlette's ``TestClient``: again and again, as test suites do."""

import gc
import json
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from pyview import live_socket
from pyview.vendor.flet.pubsub import PubSub
from starlette.testclient import TestClient, WebSocketTestSession

import fanwire
from fanwire.pyview import serving
from tests.apps.pyview_app import TOPIC, make_app
from tests.deadlines import until_blocking
from tests.phoenix import SOCKET_PATH, Page, Rendered
from tests.redis_server import RedisServer

PYVIEWS_OWN = live_socket.pub_sub_hub


class OpenPage:
    """A page that was joined. Diffs are read when they are asked for."""

    def __init__(self, page: Page, socket: WebSocketTestSession) -> None:
        self._page = page
        self._socket = socket
        socket.send_text(json.dumps(page.join()))
        *_, payload = json.loads(socket.receive_text())
        self.rendered = Rendered(payload["response"]["rendered"])

    def click(self) -> None:
        self._socket.send_text(json.dumps(self._page.click("add", "2")))

    def shows(self, count: int) -> None:
        while self.rendered.count != count:
            *_, event, payload = json.loads(self._socket.receive_text())
            self.rendered.apply(payload if event == "diff" else payload["response"]["diff"])


@contextmanager
def opened(client: TestClient) -> Iterator[OpenPage]:
    url = "http://testserver/"
    page = Page.of(url, client.get(url).text)
    with client.websocket_connect(SOCKET_PATH) as socket:
        yield OpenPage(page, socket)


def two_pages_share_a_counter(client: TestClient) -> None:
    with opened(client) as one, opened(client) as other:
        one.click()
        for page in (one, other):
            page.shows(1)
        other.click()
        for page in (one, other):
            page.shows(2)


Make = Callable[[], fanwire.RedisPubSub | fanwire.PostgresPubSub | fanwire.MemoryPubSub]


@pytest.fixture(params=["memory", "redis", "postgres"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "memory":
        return lambda: fanwire.MemoryPubSub(json=True)
    url: str = request.getfixturevalue(f"{request.param}_server").url
    if request.param == "redis":
        return lambda: fanwire.RedisPubSub(url)
    return lambda: fanwire.PostgresPubSub(url)


def test_an_app_factory_is_used_again_and_again(make: Make) -> None:
    for _ in range(3):
        with TestClient(make_app(make())) as client:
            two_pages_share_a_counter(client)
        assert live_socket.pub_sub_hub is PYVIEWS_OWN


def test_the_same_app_is_served_again_and_again(make: Make) -> None:
    pubsub = make()
    app = make_app(pubsub)
    for _ in range(3):
        with TestClient(app) as client:
            two_pages_share_a_counter(client)
        stats = pubsub.stats()
        assert (stats["sessions"], stats["subscriptions"]) == (0, 0)


def test_one_backend_serves_one_app_after_another(make: Make) -> None:
    pubsub = make()
    for _ in range(3):
        with TestClient(make_app(pubsub)) as client:
            two_pages_share_a_counter(client)


def test_a_second_app_that_goes_live_is_refused_in_words() -> None:
    first, second = (TestClient(make_app(fanwire.MemoryPubSub())) for _ in range(2))
    with first:
        with pytest.raises(fanwire.ConfigError, match="one hub per process"), second:
            pass
        two_pages_share_a_counter(first)
    with second:
        two_pages_share_a_counter(second)


def test_an_app_under_another_one_is_served_by_the_lifespan_of_that(make: Make) -> None:
    pubsub = make()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with serving(pubsub):
            yield

    outer = FastAPI(lifespan=lifespan)
    outer.mount("/", make_app(None))
    for _ in range(2):
        with TestClient(outer) as client:
            two_pages_share_a_counter(client)
            assert pubsub.stats()["delivered"] > 0  # by way of the backend, not of PyView's own hub
    assert pubsub.stats()["subscriptions"] == 0


def test_the_lifespan_of_another_app_may_run_that_of_pyview(make: Make) -> None:
    pubsub = make()
    app = make_app(pubsub)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with app.router.lifespan_context(app):
            assert app.live_handler.scheduler.running
            yield

    outer = FastAPI(lifespan=lifespan)
    outer.mount("/", app)
    with TestClient(outer) as client:
        two_pages_share_a_counter(client)
        assert pubsub.stats()["delivered"] > 0


def test_a_publisher_of_upload_progress_serves_pyview_as_well(redis_server: RedisServer) -> None:
    publisher = fanwire.UploadProgressPublisher(
        redis_server.url, manager=fanwire.ConnectionManager()
    )
    with TestClient(make_app(publisher)) as client:
        two_pages_share_a_counter(client)
    assert publisher.stats()["topics"]["delivered"] > 0


def test_a_test_sends_from_its_own_thread(make: Make) -> None:
    with TestClient(make_app(make())) as client, opened(client) as page:
        live_socket.pub_sub_hub.send_all_on_topic(TOPIC, {"add": 5})
        page.shows(5)


@pytest.mark.parametrize("mounted", [False, True])
def test_without_a_lifespan_it_works_on_its_own_and_says_so_once(
    mounted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pubsub = fanwire.MemoryPubSub()
    outer = FastAPI()
    outer.mount("/", make_app(pubsub))
    client = TestClient(outer if mounted else make_app(pubsub))
    for _ in range(2):
        with opened(client) as page:
            page.click()
            page.shows(1)
    assert pubsub.stats()["delivered"] == 0
    [record] = [record for record in caplog.records if record.name == "fanwire"]
    assert record.levelno == logging.WARNING
    assert "the lifespan of an attached PyView app has not run" in record.getMessage()
    assert "fanwire.pyview.serving()" in record.getMessage()


def test_nothing_is_said_of_an_app_that_serves(caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(make_app(fanwire.MemoryPubSub())) as client:
        two_pages_share_a_counter(client)
    assert [record for record in caplog.records if record.name == "fanwire"] == []


def test_a_socket_that_outlives_the_app_closes_in_peace(make: Make) -> None:
    pubsub = make()
    hubs: list[Any] = []
    with TestClient(make_app(pubsub)) as client, opened(client):
        hubs.append(live_socket.pub_sub_hub)
    late = PubSub(hubs[0], "a session")
    late.unsubscribe_all()
    late.unsubscribe_topic(TOPIC)


def test_an_app_that_was_dropped_is_collected() -> None:
    app = make_app(fanwire.MemoryPubSub())
    with TestClient(app) as client:
        two_pages_share_a_counter(client)
    left = weakref.ref(app)
    del app, client

    def is_gone() -> bool:
        gc.collect()
        return left() is None

    until_blocking(is_gone, "the app is gone")
