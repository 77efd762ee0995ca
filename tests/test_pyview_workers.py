"""PyView under ``uvicorn --workers`` and ``--reload``."""

import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

from tests.apps.pyview_app import TOPIC
from tests.deadlines import until
from tests.demo import alive
from tests.phoenix import LivePage
from tests.pyview_server import PyViewServer
from tests.redis_server import RedisServer

CHANNEL = f"pyview:{TOPIC}"


def subscribers(server: RedisServer) -> int:
    [(_, count)] = server.client.pubsub_numsub(CHANNEL)
    return int(count)


async def test_pages_of_two_workers_share_the_counter(redis_server: RedisServer) -> None:
    with PyViewServer(redis_server.url, "--workers", "2") as server:
        async with AsyncExitStack() as stack:
            pages: dict[int, LivePage] = {}
            while len(pages) < 2:  # the kernel chooses the worker of a connection
                page = await stack.enter_async_context(LivePage(server.instance))
                pages[page.rendered.pid] = page
            one, other = pages.values()
            assert subscribers(redis_server) == 2
            await one.click()
            await other.shows(1)
            await other.click()
            for page in (one, other):
                await page.shows(2)
        await until(lambda: subscribers(redis_server) == 0)
        server.process.send_signal(signal.SIGTERM)
        await server.until_ended()
        await until(lambda: not any(alive(pid) for pid in pages), "the workers end")
        assert server.complaints == []


async def test_a_reload_brings_a_new_process_that_receives(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    app = tmp_path / "the_app.py"
    app.write_text("from tests.apps.pyview_app import create\n")
    options = ["--reload", "--reload-dir", str(tmp_path), "--reload-delay", "0.05"]
    options += ["--app-dir", str(tmp_path)]
    with PyViewServer(redis_server.url, *options, target="the_app:create") as server:
        async with LivePage(server.instance) as before:
            await before.click()
            await before.shows(1)
            old = before.rendered.pid
            changed = app.stat().st_mtime + 1
            os.utime(app, (changed, changed))
            await until(lambda: not before.is_open, "the old process lets its sockets go")
        await until(lambda: not alive(old), "the old process ends")
        async with LivePage(server.instance) as after:
            assert after.rendered.pid != old
            await until(lambda: subscribers(redis_server) == 1)
            redis_server.publish(CHANNEL, '{"topic": "counter", "message": {"add": 7}}')
            await after.shows(7)
            await after.click()
            await after.shows(8)
        await until(lambda: subscribers(redis_server) == 0)
        server.ctrl_c()
        await server.until_ended()
        assert server.complaints == []
