"""The FastAPI application of the demo: how an app is wired to fanwire.

Four calls do it, all in `lifespan`. The rest of the app publishes with ``get_publisher()`` (see
``uploads.py``) and registers its WebSockets with ``get_manager()`` (see ``websocket.py``).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from fanwire import History, get_manager, get_publisher, init_manager, init_publisher

from . import uploads, websocket
from .progress import Uploads


@dataclass(frozen=True, slots=True)
class Settings:
    broker_url: str = "memory://"
    port: int = 8000
    ports: tuple[int, ...] = (8000,)  # of all instances, this one among them
    max_upload_bytes: int = 512 * 1024 * 1024
    auth_timeout_seconds: float = 5.0
    heartbeat_seconds: float = 30.0


class Instance(BaseModel):
    """What the page shows of the instance that served it."""

    port: int
    ports: tuple[int, ...]
    broker: str
    max_upload_bytes: int


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    init_manager()
    # Of each upload the broker keeps the newest 256 messages, for an hour after the last one: who
    # comes late is shown where it stands, and who was cut off gets what was missed.
    init_publisher(
        settings.broker_url,
        history=History(size=256, ttl=3600),
        on_state_change=websocket.tell_broker_state,
    )
    await get_publisher().start()
    yield
    await get_manager().disconnect_all()
    await get_publisher().stop()


def create_app(settings: Settings) -> FastAPI:
    app = FastAPI(title="fanwire demo", lifespan=lifespan)
    app.state.settings = settings
    app.state.uploads = Uploads()
    app.include_router(uploads.router)
    app.include_router(websocket.router)
    page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse)
    async def show_page() -> str:
        return page

    @app.get("/instance")
    async def describe_instance() -> Instance:
        return Instance(
            port=settings.port,
            ports=settings.ports,
            broker=without_credentials(settings.broker_url),
            max_upload_bytes=settings.max_upload_bytes,
        )

    return app


def without_credentials(url: str) -> str:
    """A broker's URL as everybody may see it: no user, no password, no query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
