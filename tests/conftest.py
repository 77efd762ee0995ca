"""What many tests need: brokers, publishers that are stopped in the end, and a manager."""

import importlib.util
import itertools
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

import fanwire
from tests.connections import RecordingConnection
from tests.pgbouncer import PgBouncer
from tests.postgres_server import PostgresServer, Template
from tests.redis_server import RedisServer
from tests.servers import AnyServer
from tests.tracking import Ear
from tests.wire import Wire

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

    from tests.browser import NewPerson

# How long an example takes says nothing on a busy machine.
settings.register_profile(
    "fanwire", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("fanwire")

# A shell that starts the tests in the background has them, and all that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# PyView says which Pythons it is for.
collect_ignore_glob = [] if importlib.util.find_spec("pyview") else ["test_pyview_*.py"]

RedisFactory = Callable[..., RedisServer]
PostgresFactory = Callable[..., PostgresServer]
PgBouncerFactory = Callable[..., PgBouncer]
PublisherFactory = Callable[..., fanwire.UploadProgressPublisher]
WatcherFactory = Callable[..., Awaitable["Watcher"]]
Unique = Callable[[str], str]

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def session_redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(session_redis: RedisServer) -> Iterator[RedisServer]:
    """The server that tests share. A test that kills, stops or fills it makes one of its own."""
    yield session_redis
    session_redis.drop_clients()
    session_redis.forget()


@pytest.fixture
def make_redis() -> Iterator[RedisFactory]:
    """Makes servers that belong to this test; the arguments are those of ``RedisServer``."""
    with ExitStack() as servers:
        yield lambda **options: servers.enter_context(RedisServer(**options))


@pytest.fixture
def own_redis(make_redis: RedisFactory) -> RedisServer:
    """A server that belongs to this test, to be killed, stopped and restarted."""
    return make_redis()


@pytest.fixture(scope="session")
def postgres_template() -> Iterator[Template]:
    template = Template()
    yield template
    template.close()


@pytest.fixture(scope="session")
def session_postgres(postgres_template: Template) -> Iterator[PostgresServer]:
    with PostgresServer(postgres_template, synced=True) as server:
        yield server


@pytest.fixture
def postgres_server(session_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """The server that tests share. A test that restarts, stops or fills it makes one of its own."""
    yield session_postgres
    session_postgres.drop_clients()
    session_postgres.forget()


@pytest.fixture
def make_postgres(postgres_template: Template) -> Iterator[PostgresFactory]:
    """Makes servers that belong to this test; the arguments are those of ``PostgresServer``."""
    with ExitStack() as servers:
        yield lambda **options: servers.enter_context(PostgresServer(postgres_template, **options))


@pytest.fixture
def own_postgres(make_postgres: PostgresFactory) -> PostgresServer:
    """A server that belongs to this test, to be killed, stopped and restarted."""
    return make_postgres()


@pytest.fixture
def make_pgbouncer() -> Iterator[PgBouncerFactory]:
    """Puts a pool before a server; the arguments are those of ``PgBouncer``."""
    with ExitStack() as pools:
        yield lambda server, **options: pools.enter_context(PgBouncer(server, **options))


@dataclass(frozen=True)
class Broker:
    """Where the publishers of a test meet. ``server`` is None for the embedded one."""

    url: str
    server: AnyServer | None


@pytest.fixture(params=["memory", "redis", "redis-unix", "postgres"])
def broker(request: pytest.FixtureRequest) -> Broker:
    name, _, unix = request.param.partition("-")
    if name == "memory":
        return Broker("memory://", None)
    server: AnyServer = request.getfixturevalue(f"{name}_server")
    return Broker(server.unix_url if unix else server.url, server)


@pytest.fixture(params=["redis", "postgres"])
def any_server(request: pytest.FixtureRequest) -> AnyServer:
    """Each of the servers that tests share."""
    server: AnyServer = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture(params=["redis", "postgres"])
def own_server(request: pytest.FixtureRequest) -> AnyServer:
    """A server of each kind that belongs to this test, to be killed, stopped and restarted."""
    server: AnyServer = request.getfixturevalue(f"own_{request.param}")
    return server


@pytest.fixture
async def make_publisher() -> AsyncIterator[PublisherFactory]:
    """Makes publishers, and stops them when the test is over."""
    made: list[fanwire.UploadProgressPublisher] = []

    def make(url: str | None = None, **options: Any) -> fanwire.UploadProgressPublisher:
        made.append(fanwire.UploadProgressPublisher(url, **options))
        return made[-1]

    yield make
    for publisher in made:
        await publisher.stop()


@pytest.fixture
def manager() -> fanwire.ConnectionManager:
    return fanwire.ConnectionManager()


@pytest.fixture
def unique() -> Unique:
    """Names that no other test uses: all publishers of a process meet in the embedded broker."""
    number = next(_numbers)
    return lambda name: f"{name}-{number}"


@dataclass(frozen=True)
class Watcher:
    """One user with one connection, who watches one upload through a publisher that was started."""

    publisher: fanwire.UploadProgressPublisher
    manager: fanwire.ConnectionManager
    connection: RecordingConnection
    user_id: str
    upload_id: str


@pytest.fixture
def make_watcher(make_publisher: PublisherFactory, unique: Unique) -> WatcherFactory:
    """``await make_watcher(url)``: an app's instance with one user who watches one upload."""

    async def make(
        url: str,
        *,
        upload_id: str | None = None,
        connection: RecordingConnection | None = None,
        **options: Any,
    ) -> Watcher:
        manager = fanwire.ConnectionManager()
        publisher = make_publisher(url, manager=manager, **options)
        watcher = Watcher(
            publisher,
            manager,
            connection or RecordingConnection(),
            unique("user"),
            upload_id if upload_id is not None else unique("upload"),
        )
        await manager.connect(watcher.user_id, watcher.connection)
        await manager.subscribe_upload(watcher.user_id, watcher.upload_id)
        await publisher.start()
        return watcher

    return make


@pytest.fixture(scope="session")
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


@pytest.fixture
def ear(redis_server: RedisServer) -> Iterator[Ear]:
    """Hears what is published on the shared server."""
    ear = Ear(redis_server)
    yield ear
    ear.close()


@pytest.fixture
def worker(redis_server: RedisServer) -> fanwire.UploadProgressPublisher:
    """One on the shared server that nobody starts or stops, as a worker has it."""
    return fanwire.UploadProgressPublisher(redis_server.url)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415, some interpreters lack it

    from tests.browser import ARGUMENTS, CHROMIUM  # noqa: PLC0415

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def new_person(browser: "Browser") -> Iterator["NewPerson"]:
    """A browser profile of its own: another person, as far as the page knows."""
    from tests.browser import DEADLINE_MILLISECONDS  # noqa: PLC0415

    with ExitStack() as stack:

        def make(width: int = 1000) -> "BrowserContext":
            context = browser.new_context(viewport={"width": width, "height": 800})
            stack.callback(context.close)
            context.set_default_timeout(DEADLINE_MILLISECONDS)
            return context

        yield make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """What tests print goes from process to process, which lone surrogates cannot."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report
