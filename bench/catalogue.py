"""Who is compared: what the run needs to know of a contender without importing it.

Each has its packages in a virtual environment of its group (`requirements/GROUP.txt`), and a file
of its name in `contenders/` with `build(url)`, which is imported in the process that is measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

SUBJECT = "fanwire"
BASELINE = "reference"

AS_THE_REFERENCE = "as the reference: its listener feeds the reference's maps"
NO_MAPS_ALONE = "cannot: subscribing is a call to Redis, there are no maps alone"
NO_NOWAIT = "cannot: no such call"
MODELS_ONLY = "cannot: messages are models"
NO_EVENTS = "not measured: a publisher of log lines is no part of it"
NO_POSTGRES = "not measured: on PostgreSQL fanwire is beside asyncpg in the guide's shape alone"
NO_TOPICS = "not measured: no backend for PyView's topics"
BESIDE_ITSELF = "not measured: fanwire with a history beside fanwire without"
GROWS_AT_REDIS = "not measured: a million subscriptions are a million SUBSCRIBE calls"


@dataclass(frozen=True)
class Entry:
    name: str
    title: str
    group: str
    packages: tuple[str, ...]
    loop: Literal["asyncio", "uvloop"] = "asyncio"
    rounds: int = 3
    # The heavy ones do a part of the messages, so that a round ends in the same time for all.
    divisor: int = 1
    only: tuple[str, ...] = ()  # measured at these alone
    cannot: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""


_LISTENERS_CANNOT = {
    "topics": NO_TOPICS,
    "maps": AS_THE_REFERENCE,
    "memory": AS_THE_REFERENCE,
    "growth": AS_THE_REFERENCE,
    "publish_nowait": NO_NOWAIT,
    "publish_50_dict": MODELS_ONLY,
    "publish_50_gather": "not measured",
    "idle": "not measured",
}
_PER_CHANNEL_CANNOT = {
    "topics": NO_TOPICS,
    "maps": NO_MAPS_ALONE,
    "growth": GROWS_AT_REDIS,
    "publish_nowait": NO_NOWAIT,
    "publish_50_dict": MODELS_ONLY,
    "publish_50_gather": "not measured",
    "idle": "not measured",
}
_REFERENCE_CANNOT = {"publish_nowait": NO_NOWAIT, "publish_50_dict": MODELS_ONLY}
_NOT_AGAIN = "not measured: the event loop has no part in it"

_ENTRIES = (
    Entry(SUBJECT, "fanwire", "reference", ("fanwire",), rounds=5),
    Entry(
        BASELINE,
        "pure-Python reference (redis-py, get_message)",
        "reference",
        ("redis", "hiredis", "asyncpg"),
        rounds=5,
        cannot=_REFERENCE_CANNOT,
        notes="dicts of sets, redis-py with hiredis, a listener that polls `get_message`. For "
        "topics the backend of PyView's guide, written anew: `listen()`, a Task for each call of a "
        "handler; its listener starts after the first subscription, or it would stay deaf; on "
        "PostgreSQL the guide's asyncpg backend, with a pool to publish",
    ),
    Entry(
        "fanwire_uvloop",
        "fanwire under uvloop",
        "reference",
        ("uvloop",),
        loop="uvloop",
        cannot={"memory": _NOT_AGAIN, "growth": _NOT_AGAIN, "idle": "not measured"},
    ),
    Entry(
        "reference_uvloop",
        "the reference under uvloop",
        "reference",
        ("uvloop",),
        loop="uvloop",
        cannot={
            **_REFERENCE_CANNOT,
            "memory": _NOT_AGAIN,
            "growth": _NOT_AGAIN,
            "idle": "not measured",
        },
    ),
    Entry(
        "reference_listen",
        "redis-py listen() over RESP2",
        "reference",
        ("redis", "hiredis"),
        cannot={
            **_LISTENERS_CANNOT,
            **dict.fromkeys(("publish_serial", "publish_50"), "as the reference"),
        },
        notes="the reference at redis-py's best: no timer for each message, no debug line of RESP3",
    ),
    Entry(
        "glide",
        "valkey-glide",
        "glide",
        ("valkey-glide",),
        cannot=_LISTENERS_CANNOT,
        notes="PSUBSCRIBE and `get_pubsub_message()`; deliveries through the reference's maps",
    ),
    Entry(
        "broadcaster",
        "broadcaster",
        "broadcaster",
        ("broadcaster",),
        divisor=2,
        cannot=_PER_CHANNEL_CANNOT,
        notes="`broadcast.subscribe(channel)` in a Task for each connection and channel; "
        "SUBSCRIBE for each channel, so what nobody here watches never arrives",
    ),
    Entry(
        "channels_redis",
        "channels_redis (pub/sub layer)",
        "channels",
        ("channels-redis",),
        divisor=2,
        cannot=_PER_CHANNEL_CANNOT,
        notes="a channel and a receiving Task for each connection, groups for uploads and users; "
        "SUBSCRIBE for each group, msgpack on the wire",
    ),
    Entry(
        "socketio",
        "python-socketio (AsyncRedisManager)",
        "socketio",
        ("python-socketio",),
        divisor=4,
        cannot={
            **_PER_CHANNEL_CANNOT,
            "maps": "not measured: its rooms are entered by session, without a broker",
            "growth": "not measured",
            "end_to_end": "cannot: the clients must speak Socket.IO",
        },
        notes="rooms for uploads and users; every instance gets and decodes every message; "
        "engine.io's queue and writer Task for each client are left out, to its favour",
    ),
    Entry(
        "litestar",
        "Litestar Channels (Redis pub/sub)",
        "litestar",
        ("litestar",),
        divisor=10,
        cannot=_PER_CHANNEL_CANNOT,
        notes="`subscribe()` and `run_in_background()` for each connection and channel; SUBSCRIBE "
        "for each channel. It builds a set of all its channels for every message",
    ),
    Entry(
        "coredis",
        "coredis",
        "coredis",
        ("coredis",),
        divisor=2,
        cannot=_LISTENERS_CANNOT,
        notes="PSUBSCRIBE and `async for`; deliveries through the reference's maps",
    ),
    Entry(
        "faststream",
        "FastStream",
        "faststream",
        ("faststream",),
        divisor=10,
        cannot=_LISTENERS_CANNOT,
        notes="a pattern subscriber in its own binary format, types not applied; deliveries "
        "through the reference's maps",
    ),
    Entry(
        "drain",
        "Redis alone: read and thrown away",
        "reference",
        (),
        only=("unwatched",),
        notes="a plain socket that reads what Redis sends: what no listener can exceed",
    ),
)

ENTRIES: Mapping[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def reason_against(entry: Entry, workload: str) -> str | None:
    """Why a contender is not measured at a workload; None: it is."""
    if entry.only and workload not in entry.only:
        return "a ceiling for listeners"
    if workload.startswith("recovery_") and entry.name != SUBJECT:
        return BESIDE_ITSELF
    if workload == "postgres" and entry.name not in (SUBJECT, BASELINE):
        return NO_POSTGRES
    if workload == "events" and entry.name not in (SUBJECT, BASELINE):
        return NO_EVENTS
    return entry.cannot.get(workload)
