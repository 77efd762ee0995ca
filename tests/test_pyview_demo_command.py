"""``python -m fanwire demo pyview``: what it needs, what it brings, and how it ends."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deadlines import until
from tests.demo import Demo, Process, alive
from tests.interpreters import ROOT, TIMEOUT_SECONDS, environment
from tests.phoenix import LivePage, Page
from tests.redis_server import RedisServer


class OwnBrokerDemo(Demo):
    """``demo pyview`` as one types it: two instances and a broker of its own."""

    def __init__(self) -> None:
        Process.__init__(self, [sys.executable, "-m", "fanwire", "demo", "pyview", "--port", "0"])
        self._instances = 2

    @property
    def broker(self) -> Path:
        first = self.stdout.splitlines()[0]
        assert first.startswith("fanwire demo pyview on unix:///"), first
        return Path(first.split()[4].removeprefix("unix://").rstrip(","))

    def redis_servers(self) -> list[int]:
        """Those that this demo has started, by the socket on their command line."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_text()
            except OSError:
                continue
            if "redis-server" in line and str(self.broker) in line:
                found.append(int(path.parent.name))
        return found


def run(*arguments: str, before: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    program = f"{before}\nimport runpy\nrunpy.run_module('fanwire', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env={**environment(), **variables},
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize("ending", ["Ctrl-C", "SIGTERM", "SIGKILL"])
async def test_it_brings_a_broker_that_ends_with_it(ending: str) -> None:
    with OwnBrokerDemo() as demo:
        servers, children = demo.redis_servers(), demo.children()
        assert servers
        for instance in demo.instances:
            page = Page.of(instance.url, (await instance.request("GET", "/")).text)
            assert page.topic.startswith("lv:phx-")
        if ending == "Ctrl-C":
            demo.ctrl_c()
        else:
            demo.process.send_signal(signal.Signals[ending])
        status = await demo.until_ended()
        assert status == (-signal.SIGKILL if ending == "SIGKILL" else 0)
        await until(lambda: not any(map(alive, [*servers, *children])), "all of it ends")
        if ending != "SIGKILL":
            assert demo.stderr == ""
            assert not demo.broker.parent.exists()


async def test_an_instance_that_starts_late_is_told_the_count(redis_server: RedisServer) -> None:
    with Demo("pyview", "--redis", redis_server.url, instances=2) as demo:
        async with LivePage(demo.instances[0]) as page:
            for _ in range(3):
                await page.click()
            await page.shows(3)
        with Demo("pyview", "--redis", redis_server.url) as late:
            async with LivePage(late.instances[0]) as page:
                await page.shows(3)
                await page.click("subtract")
                await page.shows(2)


async def test_a_password_is_shown_nowhere() -> None:
    with RedisServer(password="secret") as server, Demo("pyview", "--redis", server.url) as demo:
        html = (await demo.instances[0].request("GET", "/")).text
        assert f"redis://127.0.0.1:{server.port}" in html
        assert "secret" not in html + demo.stdout + demo.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--broker", "memory://"], "--instances 2 needs a broker that the instances share"),
        (["--broker", "memory://"], "python -m fanwire demo pyview --redis redis://127.0.0.1:6379"),
        (["--broker", "memory://"], 'make demo ARGS="pyview --redis redis://127.0.0.1:6379'),
        (["--broker", "nonsense://x"], "nonsense"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(arguments: list[str], text: str) -> None:
    done = run("demo", "pyview", *arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert "http://" not in done.stdout


def test_a_demo_that_is_none_is_refused() -> None:
    done = run("demo", "something")
    assert done.returncode == 2
    assert "something" in done.stderr and "pyview" in done.stderr


def test_a_missing_pyview_is_named_with_what_installs_it() -> None:
    done = run("demo", "pyview", before="import sys; sys.modules['pyview'] = None")
    assert done.returncode == 2
    assert "not installed: pyview." in done.stderr
    assert "pip install fastapi uvicorn websockets pyview-web" in done.stderr


def test_without_a_redis_server_it_says_what_to_do(tmp_path: Path) -> None:
    done = run("demo", "pyview", PATH=str(tmp_path))
    assert done.returncode == 2
    assert "there is no redis-server here" in done.stderr
    assert "--redis redis://127.0.0.1:6379" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_redis_server_that_does_not_start_is_told_with_its_own_words(tmp_path: Path) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text(
        '#!/bin/sh\nwhile [ "$1" != --logfile ]; do shift; done\necho no memory >"$2"\n'
    )
    broken.chmod(0o755)
    done = run("demo", "pyview", PATH=str(tmp_path))
    assert done.returncode == 2
    assert "redis-server does not start.\nno memory\n" in done.stderr
    assert "Traceback" not in done.stderr
