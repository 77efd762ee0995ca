"""A counter that all browsers share, on however many instances: PyView, fanwire, and one line.

    (uvicorn app:app --port 8000 & uvicorn app:app --port 8001)

A redis-server on its usual port is taken for granted; FANWIRE_URL names another one.
"""

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypedDict

from markupsafe import Markup
from pyview import (
    ConnectedLiveViewSocket,
    LiveView,
    LiveViewSocket,
    PyView,
    defaultRootTemplate,
    is_connected,
)
from pyview.events import InfoEvent
from pyview.template import LiveRender, LiveTemplate, RenderedContent
from pyview.vendor.ibis import Template
from starlette.staticfiles import StaticFiles

import fanwire.pyview
from fanwire import RedisPubSub

TOPIC = "counter"

PAGE = LiveTemplate(
    Template("""
<h1>{{ count }}</h1>
<p>
  <button phx-click="subtract" aria-label="Subtract one">&minus;</button>
  <button phx-click="add" aria-label="Add one">+</button>
</p>
""")
)

STYLE = Markup("""<meta name="color-scheme" content="light dark"><style>
  body { font: 1rem/1.6 system-ui, sans-serif; text-align: center }
  h1 { font-size: 5rem; margin: 2rem 0 0 }
  button { font-size: 1.5rem; width: 4rem }
</style>""")


class Tally:
    """The count, as the sum of what each instance has counted of its own clicks.

    Every instance announces its own figures only, so two clicks at the same moment on two instances
    both count; and as they only grow, an announcement that comes twice, late or never does no harm.
    """

    def __init__(self) -> None:
        self.me = uuid.uuid4().hex
        self.figures = {self.me: [0, 0]}  # instance to its clicks on plus and on minus

    @property
    def count(self) -> int:
        return sum(added - subtracted for added, subtracted in self.figures.values())

    def click(self, event: str) -> None:
        self.figures[self.me][event == "subtract"] += 1

    def merge(self, figures: dict[str, list[int]]) -> None:
        for instance, theirs in figures.items():
            ours = self.figures.get(instance, [0, 0])
            self.figures[instance] = [max(pair) for pair in zip(ours, theirs, strict=True)]


tally = Tally()


class Context(TypedDict):
    count: int


class Counter(LiveView[Context]):
    async def mount(
        self,
        socket: LiveViewSocket[Context],
        session: dict[str, Any],  # noqa: ARG002 - PyView passes it by this name
    ) -> None:
        if is_connected(socket):
            await socket.subscribe(TOPIC)
        socket.context = {"count": tally.count}

    async def handle_event(self, event: str, socket: ConnectedLiveViewSocket[Context]) -> None:
        tally.click(event)
        socket.context["count"] = tally.count
        await socket.broadcast(TOPIC, {tally.me: tally.figures[tally.me]})

    async def handle_info(self, event: InfoEvent, socket: ConnectedLiveViewSocket[Context]) -> None:
        """Called on every instance, and on this one too: each page shows the new count."""
        tally.merge(event.payload)
        socket.context["count"] = tally.count

    async def render(self, assigns: Context, meta: Any) -> RenderedContent:
        return LiveRender(PAGE, assigns, meta)


pubsub = RedisPubSub(os.environ.get("FANWIRE_URL", "redis://127.0.0.1:6379"))


@asynccontextmanager
async def lifespan(_: PyView) -> AsyncIterator[None]:
    """The instance itself subscribes, so that it knows the count while nobody looks at it.

    It runs inside of what `attach` adds, so the backend is started already.
    """

    async def remember(_: str, figures: dict[str, list[int]]) -> None:
        tally.merge(figures)

    async def tell(_: str, newcomer: str) -> None:
        if newcomer != tally.me:
            await pubsub.broadcast(TOPIC, tally.figures)

    await pubsub.subscribe_topic(tally.me, TOPIC, remember)
    await pubsub.subscribe_topic(tally.me, "newcomers", tell)
    await pubsub.broadcast("newcomers", tally.me)
    yield


app = PyView(lifespan=lifespan)
fanwire.pyview.attach(app, pubsub)  # the one line
app.mount("/static", StaticFiles(packages=[("pyview", "static")]))
app.rootTemplate = defaultRootTemplate(css=STYLE, title="Counter", title_suffix="")
app.add_live_view("/", Counter)
