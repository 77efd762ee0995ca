"""A hundred thousand connections without sockets: what the process grows by."""

import gc
import resource
from collections.abc import Mapping
from pathlib import Path

from connections import CountingConnection, Tally
from contract import Row, Session

NAME = "memory"
TITLE = "memory of 100,000 connections with three subscriptions each (RSS)"
ROWS = (
    Row("connection_bytes", "per connection", "bytes"),
    Row("subscription_bytes", "per subscription", "bytes"),
    Row("idle_bytes", "connection with three subscriptions", "bytes", limit=400.0),
)
CONNECTIONS = 100_000
SUBSCRIPTIONS = 3


async def run(session: Session) -> Mapping[str, float]:
    manager = session.contender.manager
    # A tenth where each subscription is a call to Redis; what one costs is the same.
    count = CONNECTIONS if session.contender.hears_all and not session.quick else CONNECTIONS // 10
    # The connections themselves are the app's: they are here before the clock runs, so to say.
    tally = Tally(0)
    connections = [CountingConnection(tally) for _ in range(count)]
    await manager.connect("somebody", CountingConnection(tally))
    await manager.subscribe_upload("somebody", "something")
    empty = _resident_bytes()
    for number, connection in enumerate(connections):
        await manager.connect(f"user-{number:08d}-0000-4000-8000-000000000000"[:36], connection)
    connected = _resident_bytes()
    for number in range(count):
        user_id = f"user-{number:08d}-0000-4000-8000-000000000000"[:36]
        for each in range(SUBSCRIPTIONS):
            upload_id = f"upl{each}-{number:08d}-0000-4000-8000-000000000000"[:36]
            await manager.subscribe_upload(user_id, upload_id)
    watching = _resident_bytes()
    return {
        "connection_bytes": (connected - empty) / count,
        "subscription_bytes": (watching - connected) / (count * SUBSCRIPTIONS),
        "idle_bytes": (watching - empty) / count,
    }


def _resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
