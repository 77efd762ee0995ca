"""The browser's side of a PyView page, without a browser: Phoenix' protocol over a WebSocket."""

import asyncio
import itertools
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.deadlines import bounded, until
from tests.demo import Instance

SOCKET_PATH = "/live/websocket?vsn=2.0.0"


@dataclass(frozen=True)
class Page:
    """What a browser needs of a page's HTML in order to join it."""

    url: str
    topic: str
    csrf_token: str
    session: str

    @classmethod
    def of(cls, url: str, html: str) -> Self:
        def found(pattern: str) -> str:
            match = re.search(pattern, html)
            assert match is not None, html
            return match[1]

        return cls(
            url,
            "lv:" + found(r'id="(phx-[^"]+)"'),
            found(r'name="csrf-token" content="([^"]+)"'),
            found(r'data-phx-session="([^"]*)"'),
        )

    def join(self, reference: str = "1") -> list[Any]:
        parameters = {"_csrf_token": self.csrf_token, "_mounts": 0}
        payload = {"url": self.url, "params": parameters, "session": self.session, "static": ""}
        return [reference, reference, self.topic, "phx_join", payload]

    def click(self, event: str, reference: str) -> list[Any]:
        payload = {"type": "click", "event": event, "value": {}}
        return ["1", reference, self.topic, "event", payload]


class Rendered:
    """What a page shows: the tree of the join's answer, and every diff that came after it."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self._tree = tree
        self.counts = [self.count]  # one after another, as a reader saw them

    @property
    def html(self) -> str:
        statics = self._tree["s"]
        dynamics = [str(self._tree[str(n)]) for n in range(len(statics) - 1)]
        return "".join(itertools.chain(*itertools.zip_longest(statics, dynamics, fillvalue="")))

    @property
    def count(self) -> int:
        return int(self._text_of("count"))

    @property
    def pid(self) -> int:
        return int(self._text_of("pid"))

    def _text_of(self, element: str) -> str:
        match = re.search(rf'id="{element}">([^<]*)<', self.html)
        assert match is not None, self.html
        return match[1]

    def apply(self, diff: dict[str, Any]) -> None:
        if diff:
            self._tree |= diff
            self.counts.append(self.count)


class LivePage:
    """An open page. Inside the block it is joined, and takes every diff as it comes."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._references = itertools.count(2)
        self._replies: dict[str, asyncio.Future[None]] = {}

    async def __aenter__(self) -> Self:
        url = f"{self._instance.url}/"
        self.page = Page.of(url, (await self._instance.request("GET", "/")).text)
        self._socket = await bounded(self._connect())
        await self._socket.send(json.dumps(self.page.join()))
        *_, event, payload = json.loads(await bounded(self._socket.recv()))
        assert (event, payload["status"]) == ("phx_reply", "ok"), payload
        self.rendered = Rendered(payload["response"]["rendered"])
        self._reading = asyncio.create_task(self._read(self._socket))
        return self

    async def _connect(self) -> ClientConnection:
        return await connect(
            self._instance.url.replace("http", "ws", 1) + SOCKET_PATH,
            open_timeout=None,
            ping_interval=None,
            proxy=None,
        )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._socket.close()
        await self._reading

    async def _read(self, socket: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            while True:
                _, reference, _, event, payload = json.loads(await socket.recv())
                if event == "diff":
                    self.rendered.apply(payload)
                else:
                    self.rendered.apply(payload["response"].get("diff", {}))
                    self._replies.pop(reference).set_result(None)
        for reply in self._replies.values():
            reply.cancel()

    @property
    def is_open(self) -> bool:
        return not self._reading.done()

    async def click(self, event: str = "add") -> None:
        """Returns when the server has answered."""
        reference = str(next(self._references))
        reply = asyncio.get_running_loop().create_future()
        self._replies[reference] = reply
        await self._socket.send(json.dumps(self.page.click(event, reference)))
        await bounded(reply)

    async def shows(self, count: int) -> None:
        await until(
            lambda: self.rendered.count == count, f"{count} on a page that shows {self.rendered}"
        )
