"""``fanwire.pyview.attach`` and ``serving``: whose lifespan does what, and what is refused."""

import asyncio
import gc
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pyview
from pyview import PyView, live_socket
from starlette.applications import Starlette

import fanwire
from fanwire.pyview import attach, serving
from fanwire.pyview.hub import HubAdapter
from tests.deadlines import until
from tests.interpreters import ROOT, TIMEOUT_SECONDS, environment

PYVIEWS_OWN = live_socket.pub_sub_hub


class Backend:
    """Writes down when it is started and stopped, and fails when it is told to."""

    def __init__(self, steps: list[str], failing: str = "") -> None:
        self._steps = steps
        self._failing = failing

    async def subscribe_topic(self, *_: Any) -> None: ...
    async def unsubscribe_topic(self, *_: Any) -> None: ...
    async def unsubscribe_all(self, *_: Any) -> None: ...
    async def broadcast(self, *_: Any) -> None: ...

    async def start(self) -> None:
        self._step("start")

    async def stop(self) -> None:
        self._step("stop")

    def _step(self, name: str) -> None:
        self._steps.append(name)
        if self._failing == name:
            raise OSError(f"{name} fails")


class AwarePyView(PyView):
    """In the shape of a PyView that takes ``pubsub=``."""

    def __init__(self, *arguments: Any, pubsub: Any = None, **options: Any) -> None:
        user_lifespan = options.pop("lifespan", None)

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[None]:
            await self.pubsub.start()
            try:
                if user_lifespan is None:
                    yield
                else:
                    async with user_lifespan(app):
                        yield
            finally:
                await self.pubsub.stop()

        super().__init__(*arguments, lifespan=lifespan, **options)
        self.pubsub = pubsub or fanwire.MemoryPubSub()
        self.live_handler.pubsub = self.pubsub  # type: ignore[attr-defined]


Lifespan = Callable[[Any], Any]


def users_lifespan(steps: list[str], failing: str = "") -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        steps.append("user begins")
        if failing == "start-up":
            raise OSError("start-up fails")
        yield
        steps.append("user ends")
        if failing == "shutdown":
            raise OSError("shutdown fails")

    return lifespan


async def run(app: PyView, steps: list[str] | None = None) -> None:
    """Runs the app's lifespan, as a server would."""
    # PyView's scheduler ends a turn of the loop after the lifespan that it belongs to.
    await until(lambda: not app.live_handler.scheduler.running)
    async with app.router.lifespan_context(app):
        assert isinstance(live_socket.pub_sub_hub, HubAdapter)
        if steps is not None:
            steps.append("serves")


@pytest.fixture(autouse=True)
def nothing_stays_behind() -> Any:
    yield
    assert live_socket.pub_sub_hub is PYVIEWS_OWN


async def test_the_hub_is_replaced_while_the_lifespan_lasts() -> None:
    app = PyView()
    attach(app, fanwire.MemoryPubSub())
    assert live_socket.pub_sub_hub is PYVIEWS_OWN
    await run(app)
    assert live_socket.pub_sub_hub is PYVIEWS_OWN


async def test_the_users_own_lifespan_lies_inside() -> None:
    steps: list[str] = []
    app = PyView(lifespan=users_lifespan(steps))
    attach(app, Backend(steps))
    for _ in range(2):  # the same app can be served again
        await run(app, steps)
    assert steps == ["start", "user begins", "serves", "user ends", "stop"] * 2


@pytest.mark.parametrize(
    ("failing", "steps"),
    [
        ("start", ["start", "stop"]),
        ("start-up", ["start", "user begins", "stop"]),
        ("shutdown", ["start", "user begins", "serves", "user ends", "stop"]),
        ("stop", ["start", "user begins", "serves", "user ends", "stop"]),
    ],
)
async def test_whatever_fails_the_hub_is_put_back_and_the_backend_stopped(
    failing: str, steps: list[str]
) -> None:
    happened: list[str] = []
    app = PyView(lifespan=users_lifespan(happened, failing))
    attach(app, Backend(happened, failing))
    with pytest.raises(OSError, match=f"{failing} fails"):
        await run(app, happened)
    assert happened == steps
    assert live_socket.pub_sub_hub is PYVIEWS_OWN
    healthy = PyView()  # and the next one has its turn
    attach(healthy, fanwire.MemoryPubSub())
    await run(healthy)


async def test_a_lifespan_that_is_cancelled_is_undone_as_well() -> None:
    steps: list[str] = []
    app = PyView()
    attach(app, Backend(steps))
    serves = asyncio.Event()

    async def serve() -> None:
        async with app.router.lifespan_context(app):
            serves.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(serve())
    await serves.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["start", "stop"]


async def test_one_app_after_another_but_never_two_at_a_time() -> None:
    steps: list[str] = []
    first, second = PyView(), PyView()
    attach(first, fanwire.MemoryPubSub())
    attach(second, Backend(steps))
    async with first.router.lifespan_context(first):
        hub = live_socket.pub_sub_hub
        with pytest.raises(fanwire.ConfigError, match="one hub per process"):
            await run(second)
        with pytest.raises(fanwire.ConfigError, match="one hub per process"):
            async with serving(Backend(steps)):
                pass
        assert steps == []  # refused before anything was started
        assert live_socket.pub_sub_hub is hub
    await run(second)
    assert steps == ["start", "stop"]


async def test_serving_is_for_the_lifespan_of_another_app() -> None:
    steps: list[str] = []
    async with serving(Backend(steps)):
        assert isinstance(live_socket.pub_sub_hub, HubAdapter)
        steps.append("serves")
    assert steps == ["start", "serves", "stop"]


async def test_a_pyview_that_knows_pubsub_is_given_it() -> None:
    steps: list[str] = []
    backend = Backend(steps)
    app = AwarePyView(lifespan=users_lifespan(steps))
    attach(app, backend)
    assert app.pubsub is backend
    assert app.live_handler.pubsub is backend  # type: ignore[attr-defined]
    async with app.router.lifespan_context(app):
        assert live_socket.pub_sub_hub is PYVIEWS_OWN
    assert steps == ["start", "user begins", "user ends", "stop"]
    with pytest.raises(fanwire.ConfigError, match="attached already"):
        attach(app, backend)


async def test_a_pyview_without_a_hub_needs_its_backend_started_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = live_socket.pub_sub_hub
    monkeypatch.delattr(live_socket, "pub_sub_hub")
    steps: list[str] = []
    async with serving(Backend(steps)):
        assert not hasattr(live_socket, "pub_sub_hub")
    assert steps == ["start", "stop"]
    with pytest.raises(fanwire.ConfigError, match="PyView\\(pubsub=…\\)"):
        attach(PyView(), fanwire.MemoryPubSub())
    monkeypatch.setattr(live_socket, "pub_sub_hub", hub, raising=False)


def test_a_second_attach_of_the_same_app_is_refused() -> None:
    app = PyView()
    attach(app, fanwire.MemoryPubSub())
    with pytest.raises(fanwire.ConfigError, match="attached already"):
        attach(app, fanwire.MemoryPubSub())


@pytest.mark.parametrize("make", [PyView, AwarePyView])
async def test_an_app_that_serves_is_not_attached(make: Callable[..., PyView]) -> None:
    refused: list[str] = []

    @asynccontextmanager
    async def late(app: PyView) -> AsyncIterator[None]:
        with pytest.raises(fanwire.ConfigError) as raised:
            attach(app, fanwire.MemoryPubSub())
        refused.append(str(raised.value))
        yield

    app = make(lifespan=late)
    app.live_handler.start_scheduler()  # as the lifespan of every PyView does first
    async with late(app):
        pass
    await app.live_handler.shutdown_scheduler()
    assert refused == [
        "this app serves already: call attach() right after PyView(), not in its lifespan"
    ]


@pytest.mark.parametrize("app", [Starlette(), None, PyView])
def test_only_a_pyview_app_is_attached(app: Any) -> None:
    with pytest.raises(fanwire.ConfigError, match="takes an app that PyView\\(\\) has made, not"):
        attach(app, fanwire.MemoryPubSub())


class Half:
    stop = "not to be called"

    async def subscribe_topic(self, *_: Any) -> None: ...
    async def unsubscribe_topic(self, *_: Any) -> None: ...
    async def broadcast(self, *_: Any) -> None: ...


async def test_what_a_backend_lacks_is_named() -> None:
    half: Any = Half()
    with pytest.raises(fanwire.ConfigError, match=r"Half .* lacks unsubscribe_all, start, stop$"):
        attach(PyView(), half)
    with pytest.raises(fanwire.ConfigError, match=r"lacks unsubscribe_all, start, stop$"):
        async with serving(half):
            pass
    the_class: Any = fanwire.MemoryPubSub
    with pytest.raises(fanwire.ConfigError, match="class MemoryPubSub: pass an instance"):
        attach(PyView(), the_class)


@pytest.mark.parametrize("url", ["redis://:secret@localhost:6379", "memory://", None])
async def test_who_passes_a_url_is_told_what_to_pass(url: Any) -> None:
    with pytest.raises(fanwire.ConfigError) as raised:
        fanwire.pyview.attach(PyView(), url)
    assert 'pass fanwire.RedisPubSub("redis://…"), or' in str(raised.value)
    assert "fanwire.MemoryPubSub()" in str(raised.value)
    assert "secret" not in str(raised.value)
    with pytest.raises(fanwire.ConfigError, match="pass fanwire"):
        async with serving(url):
            pass


def test_apps_that_are_gone_are_forgotten() -> None:
    before = len(fanwire.pyview._attached)
    for _ in range(3):
        attach(PyView(), fanwire.MemoryPubSub())
    gc.collect()
    assert len(fanwire.pyview._attached) <= before


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env=environment(),
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize(
    "program",
    ["import fanwire.pyview", "import fanwire; fanwire.pyview", "from fanwire import pyview"],
)
def test_where_pyview_is_missing_the_error_says_what_to_install(program: str) -> None:
    done = python(f"import sys; sys.modules['pyview'] = None; {program}")
    last = done.stderr.splitlines()[-1]
    assert last == (
        "ImportError: fanwire.pyview needs PyView, which is not installed: pip install pyview-web"
    )


def test_fanwire_alone_does_not_import_pyview() -> None:
    done = python("import sys, fanwire; print('pyview' in sys.modules)")
    assert done.stdout == "False\n"


def test_fanwire_alone_imports_it_when_it_is_asked_for() -> None:
    done = python("import fanwire; print(fanwire.pyview.attach.__module__)")
    assert (done.stdout, done.stderr) == ("fanwire.pyview\n", "")


def test_other_names_are_missing_as_ever() -> None:
    with pytest.raises(AttributeError, match="module 'fanwire' has no attribute 'pywiev'"):
        fanwire.pywiev  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(fanwire, "pywiev")


def test_it_is_the_pyview_of_the_registry() -> None:
    assert pyview.PyView is PyView
    assert type(PYVIEWS_OWN).__module__ == "pyview.vendor.flet.pubsub.pub_sub"
