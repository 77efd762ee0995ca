"""``python -m fanwire``: what it prints, what it refuses, and how it ends."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import fanwire
from tests.deadlines import DEADLINE_SECONDS, until
from tests.demo import Client, Demo, Instance, Process, alive
from tests.interpreters import ROOT, TIMEOUT_SECONDS, environment
from tests.redis_server import RedisServer, free_port


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    program = f"{before}\nimport runpy\nrunpy.run_module('fanwire', run_name='__main__')"
    command = ["-c", program] if before else ["-m", "fanwire"]
    return subprocess.run(
        [sys.executable, *command, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env=environment(),
        cwd=ROOT,
        check=False,
    )


def test_the_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"fanwire {fanwire.__version__}\n")


def test_without_a_command_it_says_which_there_are() -> None:
    done = run()
    assert done.returncode == 2
    assert "demo" in done.stderr


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "websockets"])
def test_a_missing_module_is_named_with_what_installs_it(module: str) -> None:
    done = run("demo", before=f"import sys; sys.modules[{module!r}] = None")
    assert done.returncode == 2
    assert f"not installed: {module}." in done.stderr
    assert "pip install fastapi uvicorn websockets" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--instances", "2"], "--instances 2 needs a broker that the instances share"),
        (["--instances", "2"], 'make demo ARGS="--redis redis://127.0.0.1:6379 --instances 2"'),
        (["--instances", "0"], "'0' is no number of instances"),
        (["--instances", "two"], "'two' is no number of instances"),
        (["--port", "99999"], "'99999' is no port"),
        (["--broker", "nonsense://x"], "nonsense"),
        (["--redis", "redis://x", "--broker", "redis://y"], "not allowed with argument"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(arguments: list[str], text: str) -> None:
    done = run("demo", *arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert "http://" not in done.stdout


def test_a_broker_that_is_not_there_is_told_at_once() -> None:
    url = f"redis://:secret@127.0.0.1:{free_port()}"
    done = run("demo", "--redis", url)
    assert done.returncode == 2
    assert "127.0.0.1" in done.stderr
    assert "secret" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("demo", "--port", str(port))
    assert done.returncode == 2
    assert f"Cannot listen on 127.0.0.1 port {port}" in done.stderr
    assert "--port" in done.stderr


async def test_a_password_is_shown_nowhere() -> None:
    with RedisServer(password="secret") as server, Demo("--redis", server.url) as demo:
        shown = await demo.instances[0].request("GET", "/instance")
        assert shown.json["broker"] == f"redis://127.0.0.1:{server.port}"
        assert "secret" not in demo.stdout + demo.stderr


@pytest.mark.parametrize("ending", ["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("instances", [1, 2])
async def test_it_ends_in_order_with_open_sockets_and_an_upload_that_stalls(
    redis_server: RedisServer, instances: int, ending: str
) -> None:
    broker = redis_server.url if instances > 1 else "memory://"
    with Demo("--broker", broker, instances=instances) as demo:
        clients = [await instance.sign_in("ada") for instance in demo.instances]
        silent = [await instance.connect() for instance in demo.instances]
        first = demo.instances[0]
        upload_id = await first.new_upload("bob", 1000)
        await clients[0].watch(upload_id)
        async with first.begin("bob", upload_id, 1000, b"x" * 500):
            while (await clients[0].receive())["payload"]["stage"] != "receiving":
                pass
            children = demo.children()
            assert bool(children) == (instances > 1)
            if ending == "Ctrl-C":
                demo.ctrl_c()
            else:
                demo.process.send_signal(signal.SIGTERM)
            for client in [*clients, *silent]:
                assert await client.close_code() == 1012
            assert await demo.until_ended() == 0
        assert demo.stderr == ""
        await until(lambda: not any(map(alive, children)), "the children end")


async def test_instances_whose_parent_is_killed_end_too(redis_server: RedisServer) -> None:
    with Demo("--redis", redis_server.url, instances=2) as demo:
        children = demo.children()
        demo.process.kill()
        await until(lambda: not any(map(alive, children)), "the children end")


async def test_when_one_instance_dies_the_demo_says_so_and_ends(redis_server: RedisServer) -> None:
    with Demo("--redis", redis_server.url, instances=2) as demo:
        instance = demo.instances[1]
        os.kill(_process_of(demo, instance), signal.SIGKILL)
        assert await demo.until_ended() == 2
        assert demo.stderr == (
            f"fanwire: fanwire demo {instance.port} ended by itself, with exit code -9.\n"
        )


def _process_of(demo: Demo, instance: Instance) -> int:
    """The child that listens on the instance's port."""
    inodes = listening_inodes(instance.port)
    for pid in demo.children():
        held = set()
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed just now
                held.add(str(path.readlink()))
        if held & inodes:
            return pid
    raise AssertionError(f"nobody listens on {instance.port}")


def listening_inodes(port: int) -> set[str]:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = [row for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]
    return {f"socket:[{row[9]}]" for row in listening}


async def test_the_example_of_the_repository_works(redis_server: RedisServer) -> None:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
    command += ["--app-dir", "examples/fastapi_upload", "--log-level", "warning"]
    with Process(command, FANWIRE_URL=redis_server.url) as example:
        await until(lambda: listening_inodes(port), "the example listens")
        instance = Instance(f"http://127.0.0.1:{port}")
        watcher = await instance.connect("/ws/bob")
        await watcher.socket.send("u1")
        await _until_it_receives(watcher, redis_server, "u1")
        answer = await instance.put("ada", "u1", b"x" * 100_000)
        assert answer.json["size"] == 100_000
        messages = await watcher.until_over()
        assert messages[-1]["action"] == "upload_completed"
        assert answer.json["sha256"] in messages[-1]["description"]
        late = await instance.connect("/ws/cleo")
        await late.socket.send("u1")
        assert await late.receive() == messages[-1], "a page that is opened late shows it at once"
        await late.socket.close()
        empty = await instance.put("ada", "u1", b"")
        in_chunks = await instance.put("ada", "u1", iter([b"x" * 1000, b"x"]))
        assert [empty.json["size"], in_chunks.json["size"]] == [0, 1001]
        await watcher.socket.close()
        example.process.send_signal(signal.SIGTERM)
        await example.until_ended()
        assert example.stderr == ""


async def _until_it_receives(watcher: Client, server: RedisServer, upload_id: str) -> None:
    """The example confirms no subscription: it has one when it passes on what is published."""
    for _ in range(int(DEADLINE_SECONDS / 0.05)):
        server.publish(f"upload:{upload_id}", '{"action":"probe"}')
        with suppress(TimeoutError):
            await asyncio.wait_for(watcher.socket.recv(), 0.05)
            return
    raise AssertionError("nothing comes")
