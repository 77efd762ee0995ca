"""Starts a demo: one uvicorn in this process, or one process for each of several instances."""

import asyncio
import multiprocessing
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

import fanwire

from .app import Settings, create_app, without_credentials

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from starlette.types import ASGIApp

# What a stalled client may cost at shutdown; then its connection is dropped.
_GRACEFUL_SHUTDOWN_SECONDS = 2
# What an instance may take to end before it is killed: the above, the publisher's stop, some air.
_KILL_AFTER_SECONDS = 8.0


class DemoError(Exception):
    """The demo cannot start; the text tells the person at the terminal what to do."""


@dataclass(frozen=True, slots=True)
class DemoApp:
    """One instance's application, and what ends those of its requests that would take long."""

    app: "ASGIApp"
    end_requests: Callable[[], None] = lambda: None


def uploads(settings: Settings) -> DemoApp:
    app = create_app(settings)
    return DemoApp(app, lambda: app.state.uploads.stop("The server is shutting down."))


def pyview(settings: Settings) -> DemoApp:
    # Not above: the demo of uploads does without PyView.
    from . import pyview_app  # noqa: PLC0415

    return DemoApp(pyview_app.create_app(settings))


@dataclass(frozen=True, slots=True)
class ServeOptions:
    broker_url: str
    host: str
    port: int
    instances: int
    max_upload_bytes: int
    command: str = "demo"  # as one types it
    make: Callable[[Settings], DemoApp] = uploads

    @property
    def make_arguments(self) -> str:
        """What ``make demo`` has to be told before all else to run the same command."""
        return f"{self.command} ".removeprefix("demo ")


def serve(options: ServeOptions) -> None:
    """Serve until SIGINT or SIGTERM. Raises `DemoError` when it cannot start."""
    if options.instances > 1 and options.broker_url.startswith("memory:"):
        arguments = f"--redis redis://127.0.0.1:6379 --instances {options.instances}"
        raise DemoError(
            f"--instances {options.instances} needs a broker that the instances share, and "
            "memory:// lives in one process.\n"
            f"Try: python -m fanwire {options.command} {arguments}\n"
            f'  or: make demo ARGS="{options.make_arguments}{arguments}"'
        )
    asyncio.run(_check_broker(options.broker_url))
    listeners = _listen(options)
    ports = tuple(listener.getsockname()[1] for listener in listeners)
    settings = Settings(
        broker_url=options.broker_url,
        ports=ports,
        max_upload_bytes=options.max_upload_bytes,
    )
    instances = [
        Instance(
            options.command, options.make, options.host, listener, replace(settings, port=port)
        )
        for listener, port in zip(listeners, ports, strict=True)
    ]
    broker = without_credentials(options.broker_url)
    print(f"fanwire {options.command} on {broker}, Ctrl-C ends it:", flush=True)
    if len(instances) == 1:
        instances[0].run()
    else:
        _run_processes(instances)


async def _check_broker(url: str) -> None:
    """Say now what is wrong with the broker, rather than with a page on which nothing moves.

    Strict, unlike the app: that one comes up without its broker and finds it later.
    """
    publisher = fanwire.UploadProgressPublisher(
        url, manager=fanwire.ConnectionManager(), strict=True
    )
    try:
        await publisher.start()
    except fanwire.Error as error:
        raise DemoError(str(error)) from error
    finally:
        await publisher.stop()


def _listen(options: ServeOptions) -> list[socket.socket]:
    """A socket for each instance, opened here so that a port in use is told before any starts."""
    listeners: list[socket.socket] = []
    for number in range(options.instances):
        port = options.port + number if options.port else 0
        try:
            family = socket.getaddrinfo(options.host, port, type=socket.SOCK_STREAM)[0][0]
            listeners.append(socket.create_server((options.host, port), family=family))
        except OSError as error:
            for listener in listeners:
                listener.close()
            other = f"{options.make_arguments}--port 8080"
            raise DemoError(
                f"Cannot listen on {options.host} port {port}: {error.strerror}. "
                f'Choose another with --port (make demo ARGS="{other}").'
            ) from error
    return listeners


@dataclass(frozen=True)
class Instance:
    """One instance of the app. Travels to its process by pickling, open socket and all."""

    command: str
    make: Callable[[Settings], DemoApp]
    host: str
    listener: socket.socket
    settings: Settings

    @property
    def name(self) -> str:
        return f"fanwire {self.command} {self.settings.port}"

    def run(self, announcements: Connection | None = None) -> None:
        """Serve. The address is printed, or sent to who prints those of all instances in order."""

        def announce() -> None:
            if announcements is None:
                _print_url(self._url())
                return
            with suppress(BrokenPipeError), announcements:  # broken: the parent has been killed
                announcements.send(self._url())

        demo = self.make(self.settings)
        config = uvicorn.Config(
            demo.app,
            log_level="warning",
            timeout_graceful_shutdown=_GRACEFUL_SHUTDOWN_SECONDS,
            ws_max_size=64 * 1024,  # a client has only small things to say
        )
        server = _Server(config, demo.end_requests, announce)

        # uvicorn takes the signals over while it serves, and raises them once more when it is done;
        # they have been obeyed by then, and must not end this process before it has tidied up.
        def stop(*_: object) -> None:
            server.should_exit = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        _stop_when_orphaned(server)
        server.run(sockets=[self.listener])

    def _url(self) -> str:
        anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
        host = anywhere.get(self.host, self.host)
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.settings.port}"


class _Server(uvicorn.Server):
    """uvicorn, which says when it serves, and does not wait for uploads when it should stop."""

    def __init__(
        self,
        config: uvicorn.Config,
        end_requests: Callable[[], None],
        announce: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._end_requests = end_requests
        self._announce = announce

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Ctrl-C reaches an instance twice: from the terminal, and as its parent's SIGTERM. The
        # parent kills whoever does not end, so the second of them is no "now!".
        if multiprocessing.parent_process() is None:
            super().handle_exit(sig, frame)
        else:
            self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn waits for running requests before it tells the app to stop, and a file on a slow
        # connection would be such a request for minutes.
        self._end_requests()
        await super().shutdown(sockets)


def _print_url(url: str) -> None:
    print(f"  {url}", flush=True)


def _run_processes(instances: Sequence[Instance]) -> None:
    # Spawned, not forked: the publisher of the check above has run in this process.
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in instances]
    processes: list[BaseProcess] = [
        context.Process(target=instance.run, args=(writer,), name=instance.name)
        for instance, (_, writer) in zip(instances, pipes, strict=True)
    ]
    kill_at = float("inf")

    def stop(*_: object) -> None:
        nonlocal kill_at
        kill_at = min(kill_at, time.monotonic() + _KILL_AFTER_SECONDS)
        for process in processes:
            if process.is_alive():
                process.terminate()

    # Ctrl-C reaches every process of the terminal. One that is still importing would answer with a
    # traceback, so the children inherit that SIGINT is ignored, until they set their own handler.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for process in processes:
        process.start()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for instance in instances:
        instance.listener.close()  # the children's now: when they stop listening, nobody listens
    for _, writer in pipes:
        writer.close()  # and when they end, there is nothing more to read
    unannounced = [reader for reader, _ in pipes]

    ended_by_itself: BaseProcess | None = None
    while alive := [process for process in processes if process.is_alive()]:
        # Only the first address that is missing is waited for: they are printed in order.
        happened = wait([*(p.sentinel for p in alive), *unannounced[:1]], timeout=0.5)
        if unannounced and unannounced[0] in happened:
            with suppress(EOFError), unannounced.pop(0) as reader:  # the end: it never served
                _print_url(reader.recv())
        if kill_at == float("inf"):
            ended_by_itself = next((p for p in processes if not p.is_alive()), None)
            if ended_by_itself is not None:
                stop()  # a demo of half its instances is no demo
        elif time.monotonic() > kill_at:
            for process in alive:
                process.kill()
    if ended_by_itself is not None:
        raise DemoError(
            f"{ended_by_itself.name} ended by itself, with exit code {ended_by_itself.exitcode}."
        )


def _stop_when_orphaned(server: uvicorn.Server) -> None:
    """Should the parent process be killed, nobody else would end this one."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        server.should_exit = True

    threading.Thread(target=watch, name="fanwire demo parent watch", daemon=True).start()
