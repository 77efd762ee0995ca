"""PyView pages in a real browser, with PyView's own script: two instances and one Redis."""

import os
import re
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from playwright.sync_api import BrowserContext, Page, expect

from tests.browser import NewPerson, needs_chromium
from tests.deadlines import until_blocking
from tests.demo import START_DEADLINE_SECONDS, Demo, Instance, Process
from tests.interpreters import ROOT
from tests.pyview_server import PyViewServer
from tests.redis_server import RedisServer, free_port

pytestmark = needs_chromium

DIRECTORY = ROOT / "examples" / "pyview_counter"


def open_page(person: BrowserContext, instance: Instance) -> Page:
    page = person.new_page()
    page.goto(f"{instance.url}/")
    expect(page.locator("[data-phx-main].phx-connected")).to_be_visible()
    return page


def click(page: Page, name: str) -> None:
    """Returns when the click is answered: until then PyView's script takes no notice of another."""
    button = page.get_by_role("button", name=name)
    button.click()
    expect(button).not_to_have_attribute("data-phx-ref", re.compile(""))


def test_a_click_on_one_instance_moves_the_counter_on_the_other(
    new_person: NewPerson, redis_server: RedisServer
) -> None:
    with PyViewServer(redis_server.url) as first, PyViewServer(redis_server.url) as second:
        person = new_person()
        one, other = (open_page(person, server.instance) for server in (first, second))
        assert one.locator("#pid").inner_text() != other.locator("#pid").inner_text()
        for clicked, count in ((one, 1), (other, 2), (one, 3)):
            click(clicked, "Add one")
            for page in (one, other):
                expect(page.locator("#count")).to_have_text(str(count))


class Example(Process):
    """The example's two instances, by the one command of its README, on free ports."""

    def __init__(self, url: str) -> None:
        text = (DIRECTORY / "README.md").read_text()
        [command] = re.findall(r"^\(uvicorn .*\)$", text, re.MULTILINE)
        self.instances = []
        for port in ("8000", "8001"):
            free = free_port()
            assert str(command).count(port) == 1
            command = str(command).replace(port, str(free))
            self.instances.append(Instance(f"http://127.0.0.1:{free}"))
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        shell = ["sh", "-c", f"cd {DIRECTORY} && {command}"]
        super().__init__(shell, FANWIRE_URL=url, PATH=path)

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            until_blocking(self._serves, "both serve", deadline_seconds=START_DEADLINE_SECONDS)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _serves(self) -> bool:
        assert self.process.poll() is None, self.stderr
        with suppress(OSError):
            for instance in self.instances:
                socket.create_connection(("127.0.0.1", instance.port)).close()
            return True
        return False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(ProcessLookupError):  # what a person does with Ctrl-C, whatever happened
            os.killpg(self.process.pid, signal.SIGKILL)
        super().__exit__(kind, error, trace)


def test_the_example_as_its_readme_starts_it(
    new_person: NewPerson, redis_server: RedisServer
) -> None:
    with Example(redis_server.url) as example:
        person = new_person()
        one, other = (open_page(person, instance) for instance in example.instances)
        for page in (one, other, one):
            click(page, "Add one")
        for page in (one, other):
            expect(page.locator("h1")).to_have_text("3")
        click(other, "Subtract one")
        for page in (one, other):
            expect(page.locator("h1")).to_have_text("2")
        other.close()  # its instance goes on counting
        click(one, "Add one")
        again = open_page(person, example.instances[1])
        expect(again.locator("h1")).to_have_text("3")
        person.close()
        example.ctrl_c()
        until_blocking(lambda: not group_lives(example.process.pid), "both instances end")
        assert "Traceback" not in example.stderr


def group_lives(group: int) -> bool:
    """Whether any process of it is more than a body that waits to be collected."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                return True
    return False


def test_the_demo_counts_on_two_ports(new_person: NewPerson, redis_server: RedisServer) -> None:
    with Demo("pyview", "--redis", redis_server.url, instances=2) as demo:
        person = new_person()
        asked: list[str] = []
        trouble: list[str] = []
        person.on("request", lambda request: asked.append(request.url))
        person.on("console", lambda message: trouble.append(message.text))
        person.on("weberror", lambda error: trouble.append(str(error.error)))
        one, other = (open_page(person, instance) for instance in demo.instances)
        for page in (one, other, other):
            click(page, "Add one")
        click(one, "Subtract one")
        for page in (one, other):
            expect(page.locator("#count")).to_have_text("2")
            expect(page.locator("#connection")).to_have_text("Live", use_inner_text=True)
            expect(page.locator("#broker")).to_have_attribute("title", redis_server.url)
            rows = [f":{instance.port} 2" for instance in demo.instances]
            expect(page.locator(".shares li")).to_have_text(rows)
        with person.expect_page() as opened:
            one.locator("#others a").click()
        expect(opened.value.locator("#instance")).to_have_text(f":{demo.instances[1].port}")
        expect(opened.value.locator("#count")).to_have_text("2")
        assert trouble == []
        own = tuple(instance.url for instance in demo.instances)
        assert [url for url in asked if not url.startswith((*own, "data:"))] == []


def test_the_demos_page_says_when_its_instance_is_gone(new_person: NewPerson) -> None:
    with Demo("pyview", "--broker", "memory://") as demo:
        page = open_page(new_person(width=360), demo.instances[0])
        click(page, "Add one")
        expect(page.locator("#count")).to_have_text("1")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        expect(page.locator("footer")).to_be_hidden()  # there is no other instance
        demo.process.kill()
        connection = page.locator("#connection")
        expect(connection).to_have_text("Reconnecting", use_inner_text=True)
