"""PyView as it is installed, under uvicorn: two instances and one broker."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack

import pytest

from tests.apps.pyview_app import TOPIC
from tests.deadlines import until
from tests.phoenix import LivePage
from tests.postgres_server import PostgresServer, Template
from tests.pyview_server import PyViewServer
from tests.redis_server import RedisServer
from tests.servers import AnyServer

CHANNEL = f"pyview:{TOPIC}"


@pytest.fixture(scope="module", params=["redis", "postgres"])
def module_server(
    request: pytest.FixtureRequest, postgres_template: Template
) -> Iterator[AnyServer]:
    """Not the one that all tests share: these look at its subscriptions."""
    with RedisServer() if request.param == "redis" else PostgresServer(postgres_template) as server:
        yield server


@pytest.fixture(scope="module")
def servers(module_server: AnyServer) -> Iterator[list[PyViewServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(PyViewServer(module_server.url)) for _ in range(2)]


@pytest.fixture
async def pages() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def open_pages(stack: AsyncExitStack, server: PyViewServer, count: int) -> list[LivePage]:
    return [await stack.enter_async_context(LivePage(server.instance)) for _ in range(count)]


def has_subscribers(server: AnyServer, count: int) -> bool:
    """So many instances listen to the topic. PostgreSQL does not tell who listens to what."""
    if not isinstance(server, RedisServer):
        return True
    return server.client.pubsub_numsub(CHANNEL) == [(CHANNEL.encode(), count)]


def is_back(server: PyViewServer) -> bool:
    """Whether an instance listens again, with everything it wants."""
    stats = server.state()["stats"]
    return bool(stats["listening"]) and stats["reconnects"] > 0


async def until_nobody_is_left(servers: list[PyViewServer]) -> None:
    def left() -> list[tuple[int, ...]]:
        states = [server.state() for server in servers]
        maps = ["sessions", "subscribed_topics", "subscriptions", "queued_messages"]
        return [
            (state["sockets"], state["hub"], *(state["stats"][name] for name in maps))
            for state in states
        ]

    await until(lambda: left() == [(0, 0, 0, 0, 0, 0)] * len(servers), "all sessions are gone")


async def test_a_click_on_one_instance_moves_the_counter_on_the_other(
    servers: list[PyViewServer], pages: AsyncExitStack
) -> None:
    [one], [other] = [await open_pages(pages, server, 1) for server in servers]
    assert one.rendered.pid != other.rendered.pid
    await one.click()
    await other.shows(1)
    await other.click()
    for page in (one, other):
        await page.shows(2)
        assert page.rendered.counts == [0, 1, 2]


async def test_two_hundred_sessions_come_and_go_and_leave_nothing(
    servers: list[PyViewServer], module_server: AnyServer
) -> None:
    async with AsyncExitStack() as stack:
        opened = [await open_pages(stack, server, 100) for server in servers]
        states = [server.state() for server in servers]
        assert [state["hub"] for state in states] == [100, 100]
        stats = [state["stats"] for state in states]
        assert [held["sessions"] for held in stats] == [100, 100]
        assert [held["subscribed_topics"] for held in stats] == [1, 1]
        assert has_subscribers(module_server, 2)  # one of each instance, however many sessions
        await opened[0][0].click()
        for page in opened[0] + opened[1]:
            await page.shows(1)
    await until_nobody_is_left(servers)
    await until(lambda: has_subscribers(module_server, 0), "the broker has forgotten the topic")


async def test_a_thousand_increments_leave_every_page_at_the_same_number(
    servers: list[PyViewServer], pages: AsyncExitStack
) -> None:
    opened = [page for server in servers for page in await open_pages(pages, server, 5)]

    async def click_on(page: LivePage) -> None:
        for _ in range(100):
            await page.click()

    await asyncio.gather(*(click_on(page) for page in opened))
    for page in opened:
        await page.shows(1000)
        assert page.rendered.counts == list(range(1001))


async def test_sessions_go_on_after_the_broker_was_restarted(
    own_server: AnyServer, pages: AsyncExitStack
) -> None:
    with PyViewServer(own_server.url) as first, PyViewServer(own_server.url) as second:
        [one], [other] = [await open_pages(pages, server, 1) for server in (first, second)]
        await one.click()
        for page in (one, other):  # each has a way of its own from the broker
            await page.shows(1)
        own_server.kill()
        await one.click()  # it goes nowhere; but the session is answered
        assert other.rendered.count == 1
        own_server.start()
        both = [first, second]
        await until(
            lambda: all(is_back(server) for server in both), "both have noticed, and are back"
        )
        await until(lambda: has_subscribers(own_server, 2), "both are subscribed again")
        await until(
            lambda: all(server.state()["stats"]["reconnects"] == 1 for server in (first, second)),
            "both know that they are",
        )
        while other.rendered.count == 1:  # the way from one to the broker opens by itself, too
            await one.click()
            await asyncio.sleep(0.005)
        before = first.state()["stats"]["published"]  # that is every click which went somewhere
        for page in (one, other):
            await page.shows(before)
        for page in (other, one, other):
            await page.click()
        for page in (one, other):
            await page.shows(before + 3)
        assert one.rendered.pid != other.rendered.pid
        await pages.aclose()
        await until_nobody_is_left([first, second])
