"""Live progress and topic messages across the instances of a Python web app, from a Rust core.

FastAPI apps use :class:`ConnectionManager` and :class:`UploadProgressPublisher`; a worker process
uses the publisher alone. See the README for a first app.
"""

import warnings

from fanwire import _core, _coroutines
from fanwire._core import (
    ConnectionManager,
    MapView,
    UploadProgressPublisher,
    __version__,
    get_manager,
    get_publisher,
    init_manager,
    init_publisher,
)
from fanwire.coalesce import CoalesceRule
from fanwire.errors import BrokerError, BrokerTimeoutError, ConfigError, Error, PublishError
from fanwire.types import Connection

__all__ = [
    "BrokerError",
    "BrokerTimeoutError",
    "CoalesceRule",
    "ConfigError",
    "Connection",
    "ConnectionManager",
    "Error",
    "MapView",
    "PublishError",
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
_coroutines.as_coroutine_functions(
    UploadProgressPublisher, "start", "stop", "publish_progress", "publish_to_user"
)

if _core.__build_profile__ == "debug":
    warnings.warn(
        "this is a debug build of fanwire: it is many times slower than a release build",
        RuntimeWarning,
        stacklevel=2,
    )
