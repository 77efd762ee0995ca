"""The worker of ``examples/recovery``, which goes no further than it is allowed to.

Arguments: the folder of the example, a file that says which step is the last that is allowed, and
the worker's own.
"""

import asyncio
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.005


def main(directory: str, allowed: str, name: str, seconds: str) -> None:
    sys.path.insert(0, directory)
    worker: Any = import_module("worker")
    check = worker.check

    def wait_and_check(step: int, fails_at: int | None) -> None:
        while step > int(Path(allowed).read_text() or 0):  # nothing while it is being written
            time.sleep(POLL_SECONDS)
        check(step, fails_at)

    worker.check = wait_and_check
    asyncio.run(worker.work(name, float(seconds), None))


main(*sys.argv[1:])
