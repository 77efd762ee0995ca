"""A PyView app with a shared counter, started once per instance or worker.

FANWIRE_URL names the broker.
"""

import asyncio
import os
from typing import Any

from pyview import (
    ConnectedLiveViewSocket,
    LiveView,
    LiveViewSocket,
    PyView,
    is_connected,
    live_socket,
)
from pyview.events import InfoEvent
from pyview.template import LiveRender, LiveTemplate, RenderedContent
from pyview.vendor.ibis import Template
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import fanwire
from fanwire.pyview import attach
from fanwire.pyview.hub import HubAdapter

TOPIC = "counter"

Backend = (
    fanwire.RedisPubSub
    | fanwire.PostgresPubSub
    | fanwire.MemoryPubSub
    | fanwire.UploadProgressPublisher
)

_PAGE = LiveTemplate(
    Template(
        '<p>Count <b id="count">{{ count }}</b> of process <i id="pid">{{ pid }}</i></p>'
        '<button phx-click="add">Add one</button>'
    )
)


class Counter(LiveView[dict[str, Any]]):
    """Adds up what is broadcast. Two ``handle_info`` of a page at a time would lose some of it."""

    async def mount(self, socket: LiveViewSocket[dict[str, Any]], session: dict[str, Any]) -> None:
        socket.context = {"count": 0, "pid": os.getpid()}
        if is_connected(socket):
            await socket.subscribe(TOPIC)

    async def handle_event(
        self, event: str, payload: Any, socket: ConnectedLiveViewSocket[dict[str, Any]]
    ) -> None:
        await socket.broadcast(TOPIC, {"add": 1})

    async def handle_info(
        self, event: InfoEvent, socket: ConnectedLiveViewSocket[dict[str, Any]]
    ) -> None:
        count = socket.context["count"]
        await asyncio.sleep(0)
        socket.context["count"] = count + event.payload["add"]

    async def render(self, assigns: dict[str, Any], meta: Any) -> RenderedContent:
        return LiveRender(_PAGE, assigns, meta)


def make_app(pubsub: Backend | None, **options: Any) -> PyView:
    async def state(_: Request) -> JSONResponse:
        hub: object = live_socket.pub_sub_hub
        stats = {} if pubsub is None else pubsub.stats()
        return JSONResponse(
            {
                "pid": os.getpid(),
                "sockets": app.live_handler.sessions,
                "hub": len(hub._subscribed) if isinstance(hub, HubAdapter) else 0,
                "stats": stats,
            }
        )

    routes = [
        Route("/state", state),
        Mount("/static", StaticFiles(packages=[("pyview", "static")])),
    ]
    app = PyView(routes=routes, **options)
    app.add_live_view("/", Counter)
    if pubsub is not None:
        attach(app, pubsub)
    return app


def create() -> PyView:
    """For ``uvicorn --factory``."""
    url = os.environ["FANWIRE_URL"]
    of_postgres = url.startswith("postgresql:")
    return make_app(fanwire.PostgresPubSub(url) if of_postgres else fanwire.RedisPubSub(url))
