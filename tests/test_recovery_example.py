"""examples/recovery as its README tells it: cut off, run again, and with a broker that restarts."""

import asyncio
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from playwright.sync_api import expect, sync_playwright
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.browser import ARGUMENTS, CHROMIUM, DEADLINE_MILLISECONDS
from tests.deadlines import until, until_blocking
from tests.demo import START_DEADLINE_SECONDS, Instance, Process
from tests.interpreters import ROOT, command
from tests.redis_server import RedisServer, free_port
from tests.test_demo_command import listening_inodes

EXAMPLE = ROOT / "examples" / "recovery"
# Keeps all words that the page shows.
RECORD = """() => {
  window.shown = [];
  new MutationObserver(() => shown.push(text.textContent)).observe(text, { childList: true });
}"""
WORK_SECONDS = 2.0
STEPS = 100

pytestmark = pytest.mark.skipif(not EXAMPLE.exists(), reason="a copy of the tests alone")


class Example:
    """A copy of it, with a broker, and the app served by uvicorn."""

    def __init__(self, directory: Path, server: RedisServer) -> None:
        self._directory = directory / "recovery"
        self._allowed = directory / "allowed"
        shutil.copytree(EXAMPLE, self._directory, ignore=shutil.ignore_patterns("__pycache__"))
        self.server = server
        self.port = free_port()

    @property
    def instance(self) -> Instance:
        return Instance(f"http://127.0.0.1:{self.port}")

    @contextmanager
    def served(self) -> Iterator[Self]:
        program = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(self.port)]
        program += ["--app-dir", str(self._directory), "--log-level", "warning"]
        with Process(program, FANWIRE_URL=self.server.url) as app:
            until_blocking(
                lambda: listening_inodes(self.port),
                "the app serves",
                deadline_seconds=START_DEADLINE_SECONDS,
            )
            yield self
            logged = app.stderr.splitlines()
            assert [line for line in logged if not line.startswith("fanwire: ")] == []

    def worker(self, *fails_at: str) -> Process:
        program = [sys.executable, str(self._directory / "worker.py")]
        program += ["u1", str(WORK_SECONDS), *fails_at]
        return Process(program, FANWIRE_URL=self.server.url)

    def gated_worker(self, last: int) -> Process:
        """One that waits after a step until more are allowed."""
        self.allow(last)
        program = command("gated_worker", str(self._directory), str(self._allowed))
        return Process([*program, "u1", str(WORK_SECONDS)], FANWIRE_URL=self.server.url)

    def allow(self, last: int) -> None:
        self._allowed.write_text(str(last))


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Example]:
    with RedisServer() as server, Example(tmp_path, server).served() as served:
        yield served


class Page:
    """What the script of page.html does, in Python."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._socket: ClientConnection | None = None
        self._open = asyncio.create_task(self._stay_connected())
        self.position: Any = None
        self.result: str | None = None
        self.shown: list[int | str] = []
        """Percentages, and a word for each resync."""
        self.sinces: list[Any] = []
        """What it said that it had, each time that it connected."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open.cancel()
        await asyncio.wait({self._open})

    @property
    def percent(self) -> int:
        return next((n for n in reversed(self.shown) if isinstance(n, int)), 0)

    async def cut(self) -> None:
        assert self._socket is not None
        await self._socket.close()

    async def until(self, percent: int) -> None:
        """Or the end, if that came first: what was in between may have gone into one."""
        await until(lambda: self.percent >= percent or self._open.done(), f"{percent} %")
        if self._open.done():
            self._open.result()

    async def until_over(self) -> None:
        await until(self._open.done, "the end")
        self._open.result()

    async def _stay_connected(self) -> None:
        url = f"ws://127.0.0.1:{self._instance.port}/ws/guest-{id(self)}"
        while self.result is None:
            async with connect(url, proxy=None) as socket:
                self._socket = socket
                since, self.sinces = self.position, [*self.sinces, self.position]
                subscription = {"action": "subscribe_upload", "upload_id": "u1", "since": since}
                await socket.send(json.dumps(subscription))
                await self._ask_how_it_ended()
                try:
                    while self.result is None:
                        await self._receive(json.loads(await socket.recv()))
                except ConnectionClosed:
                    await asyncio.sleep(0.05)

    async def _receive(self, message: dict[str, Any]) -> None:
        self.position = message.get("_fanwire", self.position)
        match message:
            case {"action": "resync"}:
                self.position = None
                self.shown.append("resync")
                await self._ask_how_it_ended()
            case {"action": "upload_progress", "payload": {"progress_percent": percent}}:
                self.shown.append(percent)
            case {"action": "upload_completed", "description": description}:
                self.result = description
            case {"action": "upload_failed", "error_message": error}:
                self.result = f"It has failed: {error}"

    async def _ask_how_it_ended(self) -> None:
        answer = await self._instance.request("GET", "/uploads/u1")
        ended = answer.json
        if error := ended["error"]:
            self.result = f"It has failed: {error}"
        self.result = ended["result"] or self.result


async def test_a_page_that_is_cut_off_goes_on_where_it_was(example: Example) -> None:
    async with Page(example.instance) as page:
        with example.gated_worker(20) as worker:
            await page.until(10)
            await page.cut()
            example.allow(50)
            await page.until(30)
            async with Page(example.instance) as late:
                await late.until(30)
                example.allow(STEPS)
                await late.until_over()
            await page.until_over()
            assert (await worker.until_ended(), worker.stderr) == (0, "")
    assert page.result == "All is done."
    assert_grows(page.shown)
    assert [since is not None for since in page.sinces] == [False, True]
    assert late.shown[:1] != [1], "it begins with where the work stands"


def assert_grows(shown: list[int | str]) -> None:
    assert "resync" not in shown
    assert shown == sorted(set(shown), key=int), "neither back nor twice"


async def test_the_bar_does_not_go_back_when_the_worker_is_run_again(example: Example) -> None:
    async with Page(example.instance) as page:
        with example.gated_worker(50):
            await page.until(20)
        killed_at = page.percent
        with example.worker() as worker:
            await page.until_over()
            assert (await worker.until_ended(), worker.stderr) == (0, "")
    assert_grows(page.shown)
    assert page.percent > killed_at


async def test_redis_restarts_in_the_middle_and_when_all_is_over(example: Example) -> None:
    async with Page(example.instance) as page:
        with example.gated_worker(50) as worker:
            await page.until(20)
            await asyncio.to_thread(example.server.restart)
            example.allow(STEPS)
            await page.until_over()
            assert await worker.until_ended() == 0
            assert "Traceback" not in worker.stderr
    at = page.shown.index("resync")
    assert_grows(page.shown[:at])
    assert_grows(page.shown[at + 1 :])

    await asyncio.to_thread(example.server.restart)
    async with Page(example.instance) as late:
        await late.until_over()
    assert (late.result, late.shown) == ("All is done.", []), "the database knows"


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs {CHROMIUM} (Debian's package chromium)")
def test_the_page_itself_through_a_restart_of_redis(example: Example) -> None:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = chromium.new_page()
        page.set_default_timeout(DEADLINE_MILLISECONDS)
        failures: list[str] = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(f"{example.instance.url}/#u1")
        page.evaluate(RECORD)
        with example.gated_worker(50):
            page.wait_for_function("bar.value > 20")
            example.server.restart()
            example.allow(STEPS)
            expect(page.locator("#text")).to_have_text(
                "All is done.", timeout=DEADLINE_MILLISECONDS
            )
        assert page.evaluate("[bar.value, over]") == [100, True]
        shown = [words for words in page.evaluate("shown") if words.startswith("Some of it")]
        assert len(shown) == 1, "it is told once that the broker has forgotten"
        assert failures == []
        chromium.close()


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs {CHROMIUM} (Debian's package chromium)")
def test_the_page_says_that_it_has_failed_and_does_so_later_too(example: Example) -> None:
    words = "It has failed: step 50 makes no sense"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = chromium.new_page()
        page.set_default_timeout(DEADLINE_MILLISECONDS)
        page.goto(f"{example.instance.url}/#u1")
        with example.worker("50"):
            expect(page.locator("#text")).to_have_text(words, timeout=DEADLINE_MILLISECONDS)
        assert page.evaluate("[bar.value, over]") == [49, True]
        example.server.restart()  # which has forgotten it
        late = chromium.new_page()
        late.goto(f"{example.instance.url}/#u1")
        expect(late.locator("#text")).to_have_text(words, timeout=DEADLINE_MILLISECONDS)
        assert late.evaluate("over") is True
        chromium.close()


async def test_a_job_that_fails_is_seen_to(example: Example) -> None:
    async with Page(example.instance) as page:
        with example.worker("50") as worker:
            await page.until_over()
            assert (await worker.until_ended(), worker.stderr) == (0, "")
    async with Page(example.instance) as late:
        await late.until_over()
    assert page.result == late.result == "It has failed: step 50 makes no sense"
    assert_grows(page.shown)
