"""The ends of processes that come without ``atexit``: children of multiprocessing, and Celery's."""

import sys
from collections.abc import Callable
from typing import Any


def call_at_the_end(hook: Callable[[], object]) -> None:
    """Have a hook called when this process ends, in the ways of whoever may have made it.

    What is not imported by now has not made it.
    """
    multiprocessing: Any = sys.modules.get("multiprocessing.util")
    if multiprocessing is not None:
        # Last of all: what else is called there may still publish.
        multiprocessing.Finalize(None, hook, exitpriority=-100)
    celery: Any = sys.modules.get("celery.signals")
    if celery is not None:
        celery.worker_process_shutdown.connect(lambda **_: hook(), weak=False)
