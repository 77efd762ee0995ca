"""Event loops come and go, run side by side in threads, and processes fork."""

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import uvloop

import fanwire
from tests import pubsub
from tests.deadlines import bounded, until
from tests.interpreters import ROOT, TIMEOUT_SECONDS, environment
from tests.pubsub import (
    Backend,
    PubSub,
    Recorder,
    brokered_kinds,
    every_kind,
    figures,
    settled,
    topic_kinds,
    until_figures,
)

backend = pubsub.backend
LoopFactory = Callable[[], asyncio.AbstractEventLoop]
NAMES = {"redis": "RedisPubSub", "postgres": "PostgresPubSub"}
every_loop = pytest.mark.parametrize(
    "make_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


def in_a_thread(main: Callable[[], Any], make_loop: LoopFactory = asyncio.new_event_loop) -> Any:
    """Runs a coroutine function to its end on a loop of its own. Not to be called on a loop."""
    with ThreadPoolExecutor(1) as threads:

        def run() -> Any:
            with asyncio.Runner(loop_factory=make_loop) as runner:
                return runner.run(main())

        return threads.submit(run).result()


@every_kind
@every_loop
async def test_one_loop_after_another(backend: Backend, make_loop: LoopFactory) -> None:
    instance = backend.make()

    async def job() -> None:
        recorder = Recorder()
        await instance.start()
        await instance.subscribe_topic("s", "t", recorder)
        for n in range(20):
            await instance.broadcast("t", n)
        assert await recorder.received(20) == list(range(20))
        await instance.unsubscribe_all("s")
        await instance.stop()

    for _ in range(5):
        await asyncio.to_thread(in_a_thread, job, make_loop)


@every_kind
@every_loop
async def test_a_loop_ends_without_a_word(backend: Backend, make_loop: LoopFactory) -> None:
    """Its sessions are lost with it; the next loop's are none the worse."""
    instance, heard = await backend.started(), Recorder()
    await instance.subscribe_topic("of the test", "t", heard)

    async def abandoned() -> None:
        recorder = Recorder()
        await instance.subscribe_topic("abandoned", "t", recorder)
        await instance.broadcast("t", "while it lives")
        await recorder.received(1)
        # Some of these are under way when the loop ends.
        await asyncio.gather(*(instance.broadcast("t", "and on") for _ in range(20)))

    for n in range(1, 4):
        await asyncio.to_thread(in_a_thread, abandoned, make_loop)
        await instance.broadcast("t", "after it")
        await heard.received(22 * n)
    assert heard.messages == (["while it lives"] + ["and on"] * 20 + ["after it"]) * 3
    # The id may be taken again, by a session of a loop that lives.
    again = Recorder("again")
    await instance.subscribe_topic("abandoned", "t", again)
    await instance.broadcast("t", "to both")
    await settled(instance, "of the test", "abandoned")
    assert again.messages[-1] == "to both"
    await instance.unsubscribe_all("abandoned")
    await until_figures(instance, sessions=1, subscriptions=1)


@brokered_kinds
async def test_started_again_after_its_loop_has_ended(backend: Backend) -> None:
    """An app that forgot to stop must not be deaf for ever."""
    instance = backend.make()
    for _ in range(3):
        await asyncio.to_thread(in_a_thread, instance.start)
    recorder = Recorder()
    await instance.start()
    await instance.subscribe_topic("s", "t", recorder)
    await instance.broadcast("t", 1)
    assert await recorder.received(1) == [1]


@every_kind
@every_loop
async def test_each_handler_runs_on_the_loop_that_subscribed(
    backend: Backend, make_loop: LoopFactory
) -> None:
    instance, ready = await backend.started(), threading.Barrier(4)
    loops: dict[str, set[int]] = {f"s{n}": set() for n in range(4)}
    threads: dict[str, set[int]] = {f"s{n}": set() for n in range(4)}

    def session(name: str) -> None:
        async def main() -> None:
            recorder = Recorder(name)

            async def handler(topic: str, message: Any) -> None:
                loops[name].add(id(asyncio.get_running_loop()))
                threads[name].add(threading.get_ident())
                await asyncio.sleep(0)
                await recorder(topic, message)

            await instance.subscribe_topic(name, "t", handler)
            await asyncio.to_thread(ready.wait)
            for n in range(50):
                await instance.broadcast("t", [name, n])
            await recorder.received(200)
            for speaker in loops:
                mine = [n for who, n in recorder.messages if who == speaker]
                assert mine == list(range(50))
            assert loops[name] == {id(asyncio.get_running_loop())}
            await asyncio.to_thread(ready.wait)
            await instance.unsubscribe_all(name)

        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(main())

    with ThreadPoolExecutor(4) as pool:
        running = [asyncio.wrap_future(pool.submit(session, name)) for name in loops]
        await bounded(asyncio.gather(*running))
    assert all(len(seen) == 1 for seen in threads.values())
    assert len(set.union(*threads.values())) == 4
    await until_figures(instance, sessions=0, subscriptions=0, queued_messages=0)


@every_kind
async def test_comings_and_goings_of_many_threads(backend: Backend) -> None:
    """The same topics, from loops that know nothing of each other."""
    instance = await backend.started()

    def come_and_go(thread: int) -> None:
        async def main() -> None:
            for n in range(60):
                recorder = Recorder()
                session, topic = f"s{thread}", f"t{n % 3}"
                await instance.subscribe_topic(session, topic, recorder)
                await instance.broadcast(topic, [thread, n])
                await until(lambda r=recorder, m=[thread, n]: m in r.messages)  # type: ignore[misc]
                await instance.unsubscribe_topic(session, topic)

        asyncio.run(main())

    await bounded(asyncio.gather(*(asyncio.to_thread(come_and_go, n) for n in range(4))))
    await until_figures(instance, sessions=0, subscribed_topics=0, subscriptions=0)


@every_kind
async def test_unsubscribed_from_another_loop(backend: Backend) -> None:
    instance, recorder = await backend.started(), Recorder()
    await instance.subscribe_topic("s", "t", recorder)
    await instance.broadcast("t", 1)
    await recorder.received(1)

    async def elsewhere() -> None:
        await instance.unsubscribe_topic("s", "t")
        await instance.broadcast("t", 2)

    await asyncio.to_thread(in_a_thread, elsewhere)
    await settled(instance, "s")
    assert recorder.messages == [1]
    assert figures(instance)["subscriptions"] == 0


@brokered_kinds
async def test_a_worker_speaks_by_one_run_per_job(backend: Backend) -> None:
    worker, recorder = backend.make(), Recorder()
    instance = await backend.started()
    await instance.subscribe_topic("s", "t", recorder)

    def jobs() -> None:
        for n in range(30):
            asyncio.run(worker.broadcast("t", n))

    await asyncio.to_thread(jobs)
    assert await recorder.received(30) == list(range(30))


@every_kind
async def test_a_loop_in_debug_mode(backend: Backend) -> None:
    instance = backend.make()

    async def main() -> None:
        asyncio.get_running_loop().set_debug(True)
        recorder = Recorder()
        await instance.start()
        await instance.subscribe_topic("s", "t", recorder)
        await asyncio.gather(*(instance.broadcast("t", n) for n in range(20)))
        assert await recorder.received(20) == list(range(20))
        await instance.stop()

    await asyncio.to_thread(in_a_thread, main)


# Processes fork

FORK = textwrap.dedent(
    """
    import asyncio, gc, os, sys
    import fanwire
    from tests.pubsub import Recorder, settled

    name, url, prefix = sys.argv[1:]
    make = getattr(fanwire, name)

    async def speak(instance, name):
        for n in range(3):
            await instance.broadcast("t", [name, n])

    async def a_life(name):
        instance, recorder = make(url, prefix, strict=True), Recorder()
        await instance.start()
        await instance.subscribe_topic("s", "own", recorder)
        await instance.broadcast("own", 1)
        assert await recorder.received(1) == [1]
        await speak(instance, name)
        await instance.stop()

    def child(inherited):
        asyncio.run(speak(inherited, "child, inherited"))
        asyncio.run(a_life("child, anew"))
        gc.collect()

    def fork(work, *arguments):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work(*arguments)
                status = 0
            finally:
                sys.stdout.flush()
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    async def main():
        instance, recorder = make(url, prefix, strict=True), Recorder()
        await instance.start()
        await instance.subscribe_topic("s", "t", recorder)
        await speak(instance, "parent before")
        print("child", await asyncio.to_thread(fork, child, instance))
        await speak(instance, "parent after")
        await settled(instance, "s")
        heard = [message for message in recorder.messages]
        print(*(f"{name} {n}" for name, n in heard), sep="\\n")
        await instance.stop()

    asyncio.run(main())
    """
)


@topic_kinds
async def test_a_process_that_listens_forks(backend: Backend) -> None:
    assert backend.server is not None
    outside, recorder = await backend.started(), Recorder()
    await outside.subscribe_topic("s", "t", recorder)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", FORK, NAMES[backend.kind], backend.server.url, backend.prefix],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env=environment(),
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    speakers = ("parent before", "child, inherited", "child, anew", "parent after")
    said = [[name, n] for name in speakers for n in range(3)]
    # The parent hears what its child says, once each; so does everybody else.
    assert done.stdout.splitlines() == ["child 0", *(f"{name} {n}" for name, n in said)]
    await settled(outside, "s")
    assert recorder.messages == said


UNSTOPPED = textwrap.dedent(
    """
    import asyncio, sys
    import fanwire
    from tests.pubsub import Gated

    async def main():
        make = getattr(fanwire, sys.argv[1])
        for instance in (make(sys.argv[2]), fanwire.MemoryPubSub()):
            gated = Gated()
            await instance.start()
            await instance.subscribe_topic("s", "t", gated)
            for n in range(5):
                await instance.broadcast("t", n)
            await gated.entered()

    asyncio.run(main())
    print("done")
    """
)


@topic_kinds
async def test_an_interpreter_ends_without_stop(backend: Backend) -> None:
    assert backend.server is not None
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", UNSTOPPED, NAMES[backend.kind], backend.server.url],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env=environment(),
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


async def test_called_on_one_loop_and_awaited_on_another() -> None:
    instance, recorder = fanwire.MemoryPubSub(), Recorder()
    made = await asyncio.to_thread(in_a_thread, lambda: calls(instance, recorder))
    for coroutine in made:
        await coroutine
    await settled(instance, "s")
    assert recorder.messages == [1]


async def calls(instance: PubSub, recorder: Recorder) -> list[Any]:
    return [
        instance.start(),
        instance.subscribe_topic("s", "t", recorder),
        instance.broadcast("t", 1),
        instance.unsubscribe_topic("s", "another"),
    ]
