"""The pytest plugin, in real pytest runs, each in a process of its own, as an app has them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.deadlines import until_blocking
from tests.demo import alive

pytest_plugins = ["pytester"]

# An app's repository may have none of the other plugins, and no order is to be counted on.
PLAIN = ["-p", "no:asyncio", "-p", "no:anyio", "-p", "no:randomly", "-p", "no:timeout"]
LIMIT_SECONDS = 40

# Tells the outer test which server the inner one had.
NOTE = """
import json, os, pathlib
import redis

def note(url):
    client = redis.Redis.from_url(url)
    info = client.info("server")
    told = {"url": url, "process_id": info["process_id"], "dir": client.config_get("dir")["dir"]}
    with pathlib.Path("servers").open("a") as file:
        file.write(json.dumps(told) + "\\n")
    client.close()
"""


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-W", "error", *arguments, timeout=LIMIT_SECONDS)


def test_fixtures_in_a_test_without_asyncio(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import asyncio
        import fanwire
        import pytest
        from fanwire.testing import RecordingPubSub

        async def count(pubsub):
            heard, all_heard = [], asyncio.Event()

            async def handle(topic, message):
                heard.append(message)
                if len(heard) == 2:
                    all_heard.set()

            await pubsub.start()
            await pubsub.subscribe_topic("ada", "news", handle)
            await pubsub.broadcast("news", 1)
            await pubsub.broadcast("news", 2)
            await asyncio.wait_for(all_heard.wait(), 20)
            await pubsub.stop()
            return heard

        @pytest.fixture
        def redis_pubsub(fanwire_redis):
            return fanwire.RedisPubSub(fanwire_redis)

        @pytest.fixture(params=["fanwire_memory", "fanwire_recording", "redis_pubsub"])
        def pubsub(request):
            return request.getfixturevalue(request.param)

        def test_they_all_deliver(pubsub):
            assert asyncio.run(count(pubsub)) == [1, 2]

        def test_their_types(fanwire_memory, fanwire_recording, fanwire_redis):
            assert type(fanwire_memory) is fanwire.MemoryPubSub
            assert type(fanwire_recording) is RecordingPubSub
            assert fanwire_redis.startswith("redis://127.0.0.1:")
        """
    )
    run(pytester, *PLAIN).assert_outcomes(passed=4)


def test_fixtures_in_tests_of_pytest_asyncio(pytester: pytest.Pytester) -> None:
    pytester.makeini(
        """
        [pytest]
        asyncio_mode = auto
        asyncio_default_fixture_loop_scope = function
        """
    )
    pytester.makepyfile(
        """
        import asyncio
        import pytest

        @pytest.fixture
        async def subscribed(fanwire_memory):
            heard = asyncio.Queue()

            async def handle(topic, message):
                await heard.put((topic, message))

            await fanwire_memory.subscribe_topic("ada", "news", handle)
            yield heard
            await fanwire_memory.unsubscribe_all("ada")

        async def test_it_arrives(fanwire_memory, subscribed):
            await fanwire_memory.broadcast("news", 1)
            assert await asyncio.wait_for(subscribed.get(), 20) == ("news", 1)

        async def test_again_in_another_loop(fanwire_memory, subscribed):
            await fanwire_memory.broadcast("news", 2)
            assert await asyncio.wait_for(subscribed.get(), 20) == ("news", 2)
        """
    )
    run(pytester).assert_outcomes(passed=2)


def test_every_test_has_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        NOTE
        + """
import pytest

@pytest.mark.parametrize("n", range(2))
def test_it(n, fanwire_memory, fanwire_recording, fanwire_redis):
    note(fanwire_redis)
    assert fanwire_recording.broadcasts == []
    fanwire_recording.broadcasts.append(("news", n))
    assert not hasattr(fanwire_memory, "seen_before")
    fanwire_memory.seen_before = True
"""
    )
    run(pytester, *PLAIN).assert_outcomes(passed=2)
    servers = [json.loads(line) for line in Path("servers").read_text().splitlines()]
    assert len({server["process_id"] for server in servers}) == 2


def test_the_recorder_is_not_collected(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from fanwire.testing import RecordingPubSub, TestPubSub

        class TestOfMyOwn(TestPubSub):
            pass

        def test_something():
            assert TestOfMyOwn().broadcasts == []
        """
    )
    result = run(pytester, *PLAIN, "--collect-only", "-q")
    result.stdout.fnmatch_lines(["*::test_something", "*1 test collected*"])
    assert "Pub" not in result.stdout.str()


def test_without_the_program_the_test_is_skipped_and_says_why(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(
        """
        def test_it(fanwire_redis):
            raise AssertionError("there is no server to test with")

        def test_another(fanwire_memory):
            pass
        """
    )
    monkeypatch.setenv("PATH", str(pytester.mkdir("empty")))
    result = run(pytester, *PLAIN, "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*fanwire_redis needs redis-server*not on the PATH*"])


def test_a_server_that_does_not_start_is_an_error_not_a_skip(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile("def test_it(fanwire_redis): pass")
    programs = pytester.mkdir("programs")
    (programs / "redis-server").write_text("#!/bin/sh\necho wrong architecture\nexit 1\n")
    (programs / "redis-server").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    result = run(pytester, *PLAIN)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*RuntimeError: *redis-server did not start: wrong architecture*"])


@pytest.mark.parametrize("end", ["pass", "assert 0", "raise KeyboardInterrupt", "raise SystemExit"])
def test_the_server_is_gone_afterwards(pytester: pytest.Pytester, end: str) -> None:
    test = f"def test_it(fanwire_redis):\n    note(fanwire_redis)\n    {end}\n"
    pytester.makepyfile(f"{NOTE}\n{test}")
    run(pytester, *PLAIN)
    server = json.loads(Path("servers").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(server["process_id"], 0)
    assert not Path(server["dir"]).exists()
    address = urlsplit(server["url"])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.hostname or "", address.port or 0), timeout=5).close()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends_though_pytest_is_killed(
    pytester: pytest.Pytester, ending: signal.Signals
) -> None:
    test = (
        "def test_it(fanwire_redis):\n"
        "    note(fanwire_redis)\n"
        "    pathlib.Path('servers').rename('noted')\n"
        "    import threading; threading.Event().wait()\n"
    )
    path = pytester.makepyfile(f"{NOTE}\n{test}")
    command = [sys.executable, "-m", "pytest", *PLAIN, str(path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as inner:
        try:
            until_blocking(Path("noted").exists, "its test runs", deadline_seconds=LIMIT_SECONDS)
            server = json.loads(Path("noted").read_text())
            assert alive(server["process_id"])
        finally:
            inner.send_signal(ending)
    assert inner.returncode == -ending
    until_blocking(lambda: not alive(server["process_id"]), "the server ends")
    shutil.rmtree(server["dir"])


def test_assertions_are_explained_as_ever(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(fanwire_recording):
            fanwire_recording.broadcasts.append(("news", 1))
            assert fanwire_recording.broadcasts == [("news", 2)]
        """
    )
    result = run(pytester, *PLAIN)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*At index 0 diff: ('news', 1) != ('news', 2)"])


def test_pytest_finds_it_by_itself_and_can_be_told_to_leave_it(pytester: pytest.Pytester) -> None:
    result = run(pytester, *PLAIN, "--fixtures")
    result.stdout.fnmatch_lines(
        [f"{name} -- *plugin.py:*" for name in ("fanwire_memory", "fanwire_recording")],
    )
    result = run(pytester, *PLAIN, "-p", "no:fanwire", "--fixtures")
    assert "fanwire_memory" not in result.stdout.str()


def test_the_plugin_brings_nothing_but_itself(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        program="""
        import sys

        import fanwire, fanwire.testing
        assert not [name for name in sys.modules if "pytest" in name]

        import pytest
        before = set(sys.modules)
        import fanwire.testing.plugin
        print(*set(sys.modules) - before)
        """
    )
    result = pytester.runpython(pytester.path / "program.py")
    assert (result.ret, result.errlines) == (0, [])
    assert result.outlines == ["fanwire.testing.plugin"]
