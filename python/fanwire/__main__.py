"""The command line: ``python -m fanwire demo [pyview]``, ``migrate`` and ``--version``."""

import argparse
import os
import sys
from contextlib import ExitStack
from importlib.util import find_spec

from fanwire import Error, __version__, postgres

# What the demos import besides fanwire, and what installs it: the extra `fanwire[demo]` and PyView.
_DEMO_MODULES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "websockets": "websockets"}
_PYVIEW_MODULES = {**_DEMO_MODULES, "pyview": "pyview-web"}


def _at_least(minimum: int, what: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = minimum - 1
    if number < minimum:
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}")
    return number


def _port(text: str) -> int:
    number = _at_least(0, "port", text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port")
    return number


def _instances(text: str) -> int:
    return _at_least(1, "number of instances", text)


def _mebibytes(text: str) -> int:
    return _at_least(1, "number of MiB", text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fanwire")
    parser.add_argument("--version", action="version", version=f"fanwire {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="serve a page on which uploads are watched live, or a counter that all pages share",
        description="Serves a page on which a file is uploaded and its progress is watched live, "
        "from any tab of any instance. `demo pyview` serves a counter made with PyView that all "
        "pages share, as two instances and with a redis-server of its own.",
    )
    demo.add_argument(
        "which",
        nargs="?",
        choices=["uploads", "pyview"],
        default="uploads",
        help="default: uploads",
    )
    broker = demo.add_mutually_exclusive_group()
    broker.add_argument("--redis", dest="broker", metavar="URL", help="the same as --broker")
    broker.add_argument(
        "--broker",
        metavar="URL",
        help="where progress travels: redis://…, rediss://…, postgresql://…, memory:// "
        "(default: $FANWIRE_URL, else $REDIS_URL, else memory://, "
        "or for pyview a redis-server of its own)",
    )
    demo.add_argument(
        "--instances",
        type=_instances,
        metavar="N",
        help="processes, on ports that follow one another (more than 1 needs a real broker; "
        "default: 1, for pyview 2)",
    )
    demo.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    demo.add_argument(
        "--port",
        type=_port,
        default=8000,
        help="of the first instance (default: 8000); 0 takes free ones",
    )
    demo.add_argument(
        "--max-upload-mib", type=_mebibytes, default=512, metavar="N", help="default: 512"
    )
    migrate = commands.add_parser(
        "migrate",
        help="make fanwire's tables and functions in a PostgreSQL database",
        description="Makes what a history needs in a PostgreSQL database, and the functions that "
        "publish inside the application's own transactions; or brings them up to date. It may run "
        "any number of times. Publishers with a history do it by themselves where their role may.",
    )
    migrate.add_argument(
        "dsn",
        nargs="?",
        metavar="URL",
        help="postgresql://… (default: $FANWIRE_URL, else what the environment says, as for psql)",
    )
    migrate.add_argument("--print", action="store_true", help="print the SQL, and do nothing")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return _migrate(options) if options.command == "migrate" else _demo(options)


def _migrate(options: argparse.Namespace) -> int:
    if options.print:
        print(postgres.schema_sql(), end="")
        return 0
    dsn = options.dsn or os.environ.get("FANWIRE_URL") or "postgresql://"
    try:
        migrated = postgres.migrate(dsn)
    except Error as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    what = f"version {migrated.version} in the schema {migrated.schema}"
    if migrated.before is None:
        print(f"fanwire: made the tables and functions, {what}")
    elif migrated.before < migrated.version:
        print(f"fanwire: brought version {migrated.before} up to date, {what}")
    else:
        print(f"fanwire: up to date, {what}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    is_pyview = options.which == "pyview"
    needed = _PYVIEW_MODULES if is_pyview else _DEMO_MODULES
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        return _fail(
            f"the demo needs {', '.join(needed)}; not installed: {', '.join(missing)}.\n"
            f"Install them with: pip install {' '.join(needed.values())}"
        )
    # Here and not above, because they import the modules that were looked for just now.
    from .demo import serve  # noqa: PLC0415
    from .demo.pyview_broker import own_redis  # noqa: PLC0415

    broker_url = options.broker or os.environ.get("FANWIRE_URL") or os.environ.get("REDIS_URL")
    try:
        with ExitStack() as stack:
            if is_pyview and broker_url is None:
                broker_url = stack.enter_context(own_redis())
            serve.serve(
                serve.ServeOptions(
                    broker_url=broker_url or "memory://",
                    host=options.host,
                    port=options.port,
                    instances=options.instances or (2 if is_pyview else 1),
                    max_upload_bytes=options.max_upload_mib * 1024 * 1024,
                    command="demo pyview" if is_pyview else "demo",
                    make=serve.pyview if is_pyview else serve.uploads,
                )
            )
    except serve.DemoError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130  # before anything was served; from then on Ctrl-C is an orderly end
    return 0


def _fail(text: str) -> int:
    print(f"fanwire: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
