"""PyView's topics on a backend that other instances share, with one line after ``app = PyView()``.

    fanwire.pyview.attach(app, fanwire.RedisPubSub("redis://localhost:6379"))

A PyView whose constructor takes ``pubsub=`` is given the backend. PyView 0.9.0 has no such thing:
its sockets use one hub per process, which is replaced while the app's lifespan lasts.
"""

import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from weakref import WeakSet

try:
    import pyview
    from pyview import live_socket
except ModuleNotFoundError as error:
    if error.name != "pyview":
        raise
    raise ImportError(
        "fanwire.pyview needs PyView, which is not installed: pip install pyview-web"
    ) from error

from starlette.types import ASGIApp, Receive, Scope, Send

from fanwire.errors import ConfigError
from fanwire.pyview.hub import HubAdapter
from fanwire.types import PubSubProvider

__all__ = ["attach", "serving"]

logger = logging.getLogger("fanwire")

_METHODS = (
    "subscribe_topic",
    "unsubscribe_topic",
    "unsubscribe_all",
    "broadcast",
    "start",
    "stop",
)

_attached: "WeakSet[pyview.PyView]" = WeakSet()
# Held by whoever has replaced the one hub of this process.
_hub_is_replaced = threading.Lock()


def attach(app: pyview.PyView, pubsub: PubSubProvider) -> None:
    """Make the sockets of a PyView app use a backend for their topics.

    The backend is started before the app's own lifespan begins, and stopped when that has ended.
    An app that is mounted under another one has no lifespan: see ``serving``.

    Args:
        app: what ``PyView()`` returned, before it serves.
        pubsub: ``fanwire.RedisPubSub``, ``fanwire.PostgresPubSub``, or anything with the same six
            methods.

    Raises:
        fanwire.ConfigError: not a PyView app, one that is attached or serves already, or a backend
            that lacks a method.
    """
    if not isinstance(app, pyview.PyView):
        raise ConfigError(f"attach() takes an app that PyView() has made, not {_kind(app)}")
    _check(pubsub)
    if app in _attached:
        raise ConfigError("this app is attached already: once is enough, and two have no meaning")
    if app.live_handler.scheduler.running:
        raise ConfigError(
            "this app serves already: call attach() right after PyView(), not in its lifespan"
        )
    known: Any = app
    if hasattr(known, "pubsub") and hasattr(known.live_handler, "pubsub"):
        # Its own lifespan starts and stops what it finds here.
        known.pubsub = known.live_handler.pubsub = pubsub
    elif _has_hub():
        _serve_in_lifespan(app, pubsub)
    else:
        raise ConfigError("a PyView of a kind that attach() does not know: try PyView(pubsub=…)")
    _attached.add(app)


@asynccontextmanager
async def serving(pubsub: PubSubProvider) -> AsyncIterator[None]:
    """Start a backend and make PyView's sockets use it; at the end of the block, undo both.

    For the lifespan of an app under which PyView is mounted, because a server runs only that one.
    ``attach`` does the same in PyView's own. (A PyView that takes ``pubsub=`` has been given the
    backend when it was made: there this starts and stops it, and no more.)

    Raises:
        fanwire.ConfigError: another backend serves PyView's sockets already: a process has one hub.
            Or the backend lacks a method.
    """
    _check(pubsub)
    if not _has_hub():
        async with _running(pubsub):
            yield
        return
    with _only_one():
        async with _running(pubsub), _hub_replaced(HubAdapter(pubsub)):
            yield


def _serve_in_lifespan(app: pyview.PyView, pubsub: PubSubProvider) -> None:
    own = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(started: Any) -> AsyncIterator[Any]:
        async with serving(pubsub), own(started) as state:
            yield state

    app.router.lifespan_context = lifespan
    if app.middleware_stack is None:  # otherwise it has served before, and its lifespan with it
        app.add_middleware(_Reminder)


@contextmanager
def _only_one() -> Iterator[None]:
    if not _hub_is_replaced.acquire(blocking=False):
        raise ConfigError(
            "PyView has one hub per process, and another attached app of this process uses it now: "
            "serve one of them from a process of its own, or mount both under one app whose "
            "lifespan uses fanwire.pyview.serving()"
        )
    try:
        yield
    finally:
        _hub_is_replaced.release()


@asynccontextmanager
async def _running(pubsub: PubSubProvider) -> AsyncIterator[None]:
    try:
        await pubsub.start()
        yield
    finally:
        await pubsub.stop()


@asynccontextmanager
async def _hub_replaced(hub: HubAdapter) -> AsyncIterator[None]:
    pyviews_own = live_socket.pub_sub_hub
    live_socket.pub_sub_hub = hub  # type: ignore[assignment]  # the same methods, another class
    try:
        yield
    finally:
        live_socket.pub_sub_hub = pyviews_own
        await hub.close()


class _Reminder:
    """Tells, once, of sockets that open though the lifespan has not run: they are on their own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._told = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and not (self._told or _hub_is_replaced.locked()):
            self._told = True
            logger.warning(
                "fanwire: the lifespan of an attached PyView app has not run, so its topics stay "
                "in this process; if it is mounted under another app, use fanwire.pyview.serving() "
                "in the lifespan of that one"
            )
        await self._app(scope, receive, send)


def _has_hub() -> bool:
    return hasattr(live_socket, "pub_sub_hub")


def _check(pubsub: object) -> None:
    if isinstance(pubsub, str):  # which is not shown: it may have a password
        raise ConfigError(
            'the backend is a URL: pass fanwire.RedisPubSub("redis://…"), or fanwire.MemoryPubSub()'
        )
    if pubsub is None:
        raise ConfigError(
            'the backend is None: pass fanwire.RedisPubSub("redis://…"), or for a single process '
            "fanwire.MemoryPubSub()"
        )
    if isinstance(pubsub, type):
        raise ConfigError(f"the backend is the class {pubsub.__name__}: pass an instance of it")
    missing = [name for name in _METHODS if not callable(getattr(pubsub, name, None))]
    if missing:
        raise ConfigError(
            f"{_kind(pubsub)} is no backend for topics: it lacks {', '.join(missing)}"
        )


def _kind(thing: object) -> str:
    return f"an object of class {type(thing).__qualname__}"
