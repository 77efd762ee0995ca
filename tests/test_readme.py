"""The examples of README.md run as they stand, each in a process of its own.

A Python block follows a line `<!-- runs: name.py -->`. What a script prints is the text block after
it, if there is one; `…` in it stands for what changes. `app.py` and `clicks.py` are served by
uvicorn, and used over HTTP and WebSockets.
"""

import asyncio
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import websockets

from tests.demo import Instance
from tests.phoenix import LivePage
from tests.redis_server import RedisServer

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(
    r"(?:<!-- runs: (?P<name>\S+\.py) -->\n)?```python\n(?P<code>.*?)```\n"
    r"(?:\n```text\n(?P<prints>.*?)```\n)?",
    re.DOTALL,
)
LIMIT_SECONDS = 30

# The socket listens before its port is printed, so whoever reads the port can connect at once.
SERVE = """
import importlib
import socket
import sys
import uvicorn

app = importlib.import_module(sys.argv[1]).app
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])
"""


@dataclass(frozen=True)
class Example:
    name: str | None
    code: str
    prints: str | None


EXAMPLES = [Example(**match.groupdict()) for match in BLOCK.finditer(README.read_text("utf-8"))]
SERVED = {example.name: example for example in EXAMPLES if example.name in ("app.py", "clicks.py")}
SCRIPTS = [example for example in EXAMPLES if example.name and example.name not in SERVED]
TEMPLATES = re.findall(r"```html\n(.*?)```\n", README.read_text("utf-8"), re.DOTALL)


def environment() -> dict[str, str]:
    """No broker's URL from outside, and every warning is an error."""
    kept = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    return kept | {"FANWIRE_URL": "memory://", "PYTHONWARNINGS": "error", "PYTHONDEVMODE": "1"}


def test_every_python_block_is_run() -> None:
    assert EXAMPLES
    unmarked = [example.code for example in EXAMPLES if example.name is None]
    assert not unmarked, "mark these with <!-- runs: name.py -->"
    assert README.read_text("utf-8").count("```python") == len(EXAMPLES)


@pytest.mark.parametrize("example", SCRIPTS, ids=[str(example.name) for example in SCRIPTS])
def test_a_script_prints_what_readme_says(example: Example, tmp_path: Path) -> None:
    script = tmp_path / str(example.name)
    script.write_text(example.code, "utf-8")
    done = subprocess.run(
        [sys.executable, script],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    expected = ".*".join(map(re.escape, (example.prints or "").split("…")))
    assert re.fullmatch(expected, done.stdout), done.stdout


@contextmanager
def served(directory: Path, name: str, **variables: str) -> Iterator[int]:
    """Serves one of the apps; the value is its port."""
    (directory / name).write_text(SERVED[name].code, "utf-8")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, name.removesuffix(".py")],
        # uvicorn's own imports are not ours to warn about.
        env=environment() | {"PYTHONWARNINGS": "default", "PYTHONDEVMODE": ""} | variables,
        cwd=directory,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline())
            server.send_signal(signal.SIGINT)
            server.wait(LIMIT_SECONDS)
        finally:
            server.kill()


def post(url: str, body: bytes | Iterator[bytes]) -> dict[str, int]:
    """A body that is an iterator is sent in chunks, and its size is not announced."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/octet-stream"})
    with urllib.request.urlopen(request, timeout=LIMIT_SECONDS) as answer:
        decoded: dict[str, int] = json.load(answer)
        return decoded


async def test_the_app_shows_the_progress_of_an_upload(tmp_path: Path) -> None:
    body = bytes(3_000_000)
    with served(tmp_path, "app.py") as port:
        address = f"127.0.0.1:{port}/uploads/u1"
        async with asyncio.timeout(LIMIT_SECONDS):
            async with websockets.connect(f"ws://{address}?user_id=ada") as watcher:
                hello = json.loads(await watcher.recv())
                assert hello == {"action": "subscribed", "upload_id": "u1"}
                answer = await asyncio.to_thread(post, f"http://{address}", body)
                assert answer == {"received": len(body)}
                seen: list[int] = []
                while (message := json.loads(await watcher.recv()))["action"] != "upload_completed":
                    assert message["action"] == "upload_progress"
                    assert message["payload"]["upload_id"] == "u1"
                    seen.append(message["payload"]["progress_percent"])
                assert (message["action"], message["upload_id"]) == ("upload_completed", "u1")
                in_chunks = await asyncio.to_thread(post, f"http://{address}", iter([b"x", body]))
                assert in_chunks == {"received": len(body) + 1}
                assert await asyncio.to_thread(post, f"http://{address}", b"") == {"received": 0}
    # How much of it, within a tenth of a second, is a matter of chance.
    assert seen == sorted(seen), "progress never goes back"


@pytest.mark.skipif(
    importlib.util.find_spec("pyview") is None, reason="PyView is not for this Python"
)
async def test_a_click_on_one_instance_is_seen_on_the_other(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    (template,) = TEMPLATES
    (tmp_path / "clicks.html").write_text(template, "utf-8")
    with (
        served(tmp_path, "clicks.py", FANWIRE_URL=redis_server.url) as one,
        served(tmp_path, "clicks.py", FANWIRE_URL=redis_server.url) as other,
    ):
        instances = [Instance(f"http://127.0.0.1:{port}") for port in (one, other)]
        assert (await instances[0].request("GET", "/static/assets/app.js")).status == 200
        async with LivePage(instances[0]) as first, LivePage(instances[1]) as second:
            await first.click("click")
            for page in (first, second):
                await page.shows(1)
            await second.click("click")
            for page in (first, second):
                await page.shows(2)
