"""Live progress and topic messages across the instances of a Python web app, from a Rust core.

FastAPI apps use :class:`ConnectionManager` and :class:`UploadProgressPublisher`; a worker process
uses the publisher alone, and a daemon :class:`EventPublisher`. PyView apps use
:class:`RedisPubSub` or :class:`PostgresPubSub` with ``fanwire.pyview.attach``. See the README for
a first app.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING

from fanwire import _core, _coroutines, _track
from fanwire._core import (
    ClientMessage,
    ConnectionManager,
    EventPublisher,
    MapView,
    MemoryPubSub,
    PostgresPubSub,
    RedisPubSub,
    UploadProgressPublisher,
    __version__,
    get_manager,
    get_publisher,
    init_manager,
    init_publisher,
)
from fanwire.coalesce import CoalesceRule
from fanwire.errors import BrokerError, BrokerTimeoutError, ConfigError, Error, PublishError
from fanwire.recovery import History, Outbox, Receipt
from fanwire.types import Connection, PubSubProvider, TopicHandler

setattr(UploadProgressPublisher, "track", _track.track)  # noqa: B010, the stub has it

if TYPE_CHECKING:
    from fanwire import events as events
    from fanwire import pyview as pyview
    from fanwire.tracking import Tracker, TrackerEvent
else:

    def __getattr__(name: str) -> object:
        """These are imported when they are asked for: not everybody has PyView, logs or jobs."""
        if name in ("events", "pyview"):
            return import_module(f"fanwire.{name}")
        if name in ("Tracker", "TrackerEvent"):
            return getattr(import_module("fanwire.tracking"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "BrokerError",
    "BrokerTimeoutError",
    "ClientMessage",
    "CoalesceRule",
    "ConfigError",
    "Connection",
    "ConnectionManager",
    "Error",
    "EventPublisher",
    "History",
    "MapView",
    "MemoryPubSub",
    "Outbox",
    "PostgresPubSub",
    "PubSubProvider",
    "PublishError",
    "Receipt",
    "RedisPubSub",
    "TopicHandler",
    "Tracker",
    "TrackerEvent",
    "UploadProgressPublisher",
    "__version__",
    "get_manager",
    "get_publisher",
    "init_manager",
    "init_publisher",
]

_coroutines.as_coroutine_functions(
    ConnectionManager, "send_to_user", "send_to_upload_subscribers", "disconnect_all"
)
_coroutines.as_coroutine_functions(UploadProgressPublisher, "publish_progress", "publish_to_user")
for _provider in (UploadProgressPublisher, _core.BrokerPubSub, MemoryPubSub):
    _coroutines.as_coroutine_functions(
        _provider,
        "start",
        "stop",
        "subscribe_topic",
        "unsubscribe_topic",
        "unsubscribe_all",
        "broadcast",
    )

if _core.__build_profile__ == "debug":
    warnings.warn(
        "this is a debug build of fanwire: it is many times slower than a release build",
        RuntimeWarning,
        stacklevel=2,
    )
