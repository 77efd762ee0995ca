"""The PyView application of the demo: a counter that all pages of all instances share.

`create_app` is what an application copies: ``attach(app, pubsub)``, and nothing else of it knows
fanwire. The LiveView subscribes and broadcasts as PyView's documentation has it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from string import Template as Text
from typing import Any, TypedDict

from markupsafe import escape
from pyview import ConnectedLiveViewSocket, LiveView, LiveViewSocket, PyView, is_connected
from pyview.events import InfoEvent
from pyview.template import (
    LiveRender,
    LiveTemplate,
    RenderedContent,
    RootTemplate,
    RootTemplateContext,
)
from pyview.vendor.ibis import Template
from starlette.staticfiles import StaticFiles

from fanwire import MemoryPubSub, PostgresPubSub, RedisPubSub
from fanwire.pyview import attach
from fanwire.types import PubSubProvider

from .app import Settings, without_credentials
from .pyview_broker import is_own
from .pyview_tally import Share, Tally

TOPIC = "counter"
NEWCOMERS = "newcomers"

_LIVE_PART = LiveTemplate(
    Template(files(__package__).joinpath("pyview_live.html").read_text(encoding="utf-8"))
)


class Context(TypedDict):
    count: int
    shares: list[Share]


def make_counter(tally: Tally, ports: tuple[int, ...]) -> type[LiveView[Context]]:
    """PyView makes a view for each page by its class, so what all of them share stands out here."""

    def context() -> Context:
        return {"count": tally.count, "shares": tally.shares(ports)}

    class Counter(LiveView[Context]):
        async def mount(
            self,
            socket: LiveViewSocket[Context],
            session: dict[str, Any],  # noqa: ARG002 - PyView passes it by this name
        ) -> None:
            if is_connected(socket):
                await socket.subscribe(TOPIC)
            socket.context = context()

        async def handle_event(self, event: str, socket: ConnectedLiveViewSocket[Context]) -> None:
            tally.click(+1 if event == "add" else -1)
            socket.context = context()  # whatever becomes of the broadcast, this page has its click
            await socket.broadcast(TOPIC, tally.own)

        async def handle_info(
            self, event: InfoEvent, socket: ConnectedLiveViewSocket[Context]
        ) -> None:
            tally.merge(event.payload)
            socket.context = context()

        async def render(self, assigns: Context, meta: Any) -> RenderedContent:
            return LiveRender(_LIVE_PART, assigns, meta)

    return Counter


def create_app(settings: Settings) -> PyView:
    tally = Tally(settings.port)
    pubsub: MemoryPubSub | PostgresPubSub | RedisPubSub
    if settings.broker_url.startswith("memory:"):
        pubsub = MemoryPubSub(json=True)
    elif settings.broker_url.startswith("postgres"):
        pubsub = PostgresPubSub(settings.broker_url)
    else:
        pubsub = RedisPubSub(settings.broker_url)

    @asynccontextmanager
    async def lifespan(_: PyView) -> AsyncIterator[None]:
        await remember(tally, pubsub)
        yield

    app = PyView(lifespan=lifespan)
    attach(app, pubsub)
    app.mount("/static", StaticFiles(packages=[("pyview", "static")]))
    app.rootTemplate = root_template(settings)
    app.add_live_view("/", make_counter(tally, settings.ports))
    return app


async def remember(tally: Tally, pubsub: PubSubProvider) -> None:
    """Make the instance itself a subscriber: it knows the count while none of its pages is open.

    One that starts late asks the others, which tell all that they know.
    """

    async def merge(_: str, figures: dict[str, list[int]]) -> None:
        tally.merge(figures)

    async def tell(_: str, newcomer: str) -> None:
        if newcomer != tally.me:
            await pubsub.broadcast(TOPIC, tally.figures)

    await pubsub.subscribe_topic(tally.me, TOPIC, merge)
    await pubsub.subscribe_topic(tally.me, NEWCOMERS, tell)
    await pubsub.broadcast(NEWCOMERS, tally.me)


def root_template(settings: Settings) -> RootTemplate:
    """The page around the LiveView. It asks nobody but this server for anything."""
    page = Text(files(__package__).joinpath("pyview_page.html").read_text(encoding="utf-8"))
    others = [port for port in settings.ports if port != settings.port]
    url = without_credentials(settings.broker_url)
    of_this_instance = {
        "port": settings.port,
        "broker": "redis-server of its own" if is_own(url) else escape(url),
        "broker_url": escape(url),
        "others": " ".join(f'<a data-port="{port}" target="_blank">:{port}</a>' for port in others),
        "others_hidden": "" if others else "hidden",
    }

    def template(context: RootTemplateContext) -> str:
        return page.substitute({**context, **of_this_instance})

    return template
