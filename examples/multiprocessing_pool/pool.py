"""Hashes files in a pool of processes, each of which tells how far it is.

    python pool.py fork README.md pool.py missing.txt
    python pool.py spawn README.md pool.py missing.txt

A redis-server on its usual port is taken for granted; FANWIRE_URL names another one.
"""

import hashlib
import multiprocessing
import os
import sys
from pathlib import Path

import fanwire
import fanwire.events

URL = os.environ.get("FANWIRE_URL", "redis://127.0.0.1:6379")

# With fork these are made once, and the children go on with them; with spawn each child imports
# this file, and makes its own. There is nothing to do for either.
publisher = fanwire.UploadProgressPublisher(URL)
events = fanwire.events.init_publisher(URL, namespace="pool")


def sha256(name: str) -> str:
    """Runs in a child."""
    digest = hashlib.sha256()
    try:
        with publisher.track(name) as progress, Path(name).open("rb") as file:
            progress.total = os.fstat(file.fileno()).st_size
            progress.stage("hashing")
            for chunk in progress.wrap(file, chunk_size=65_536):
                digest.update(chunk)
            progress.result(description=f"sha256 {digest.hexdigest()}")
    except OSError as error:  # who watches has been told
        return f"{name}: {error.strerror}"
    events.publish_log({"event": "hashed", "file": name, "pid": os.getpid()})
    return f"{name}: {digest.hexdigest()}"


def main(method: str, names: list[str]) -> None:
    context = multiprocessing.get_context(method)
    events.publish_event("started", {"files": names, "pid": os.getpid()})
    with publisher.track("all-files", len(names)) as progress, context.Pool(2) as pool:
        for line in progress.wrap(pool.imap_unordered(sha256, names)):
            print(line)
        # Or the children were killed at the end of the block, and what waits in them were lost.
        pool.close()
        pool.join()
    events.publish_event("ended")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
