"""Who is connected and who watches what: the operations alone, awaited in a loop, no broker."""

from collections.abc import Mapping

from connections import CountingConnection, Tally
from contract import Row, Session
from meter import Meter, settle
from payloads import upload_ids
from receiving import connect_watchers

NAME = "maps"
TITLE = "operations on the maps, awaited in a loop"
ROWS = (
    Row("op_ns", "CPU per operation, all together", "ns", target=1.3),
    Row("connect_ns", "connect", "ns"),
    Row("subscribe_ns", "subscribe_upload", "ns"),
    Row("unsubscribe_ns", "unsubscribe_upload", "ns"),
    Row("disconnect_ns", "disconnect", "ns"),
)
USERS = 1_000
UPLOADS_EACH = 3
PEOPLE_THERE = 1_000  # who stay connected, so that the maps are never empty


async def run(session: Session) -> Mapping[str, float]:
    manager = session.contender.manager
    there = [CountingConnection(Tally(0)) for _ in range(PEOPLE_THERE)]
    await connect_watchers(session, upload_ids("there", PEOPLE_THERE), there)

    users = [(f"guest-{number:08d}", CountingConnection(Tally(0))) for number in range(USERS)]
    # Five users to an upload: sets are made, grow, shrink and go away, as in an app.
    uploads = upload_ids("watched", USERS * UPLOADS_EACH // 5)
    watched = [
        (user_id, uploads[(number * UPLOADS_EACH + each) % len(uploads)])
        for number, (user_id, _) in enumerate(users)
        for each in range(UPLOADS_EACH)
    ]
    connect, subscribe, unsubscribe, disconnect = (Meter() for _ in range(4))
    cycles = session.size(40, 15)
    for cycle in range(cycles + 1):
        if cycle == 1:  # the first one warmed up
            connect, subscribe, unsubscribe, disconnect = (Meter() for _ in range(4))
            settle()
        with connect:
            for user_id, connection in users:
                await manager.connect(user_id, connection)
        with subscribe:
            for user_id, upload_id in watched:
                await manager.subscribe_upload(user_id, upload_id)
        with unsubscribe:
            for user_id, upload_id in watched:
                await manager.unsubscribe_upload(user_id, upload_id)
        with disconnect:
            for user_id, connection in users:
                await manager.disconnect(user_id, connection)
    total = sum(meter.cpu_seconds for meter in (connect, subscribe, unsubscribe, disconnect))
    return {
        "op_ns": total / (cycles * 2 * (len(users) + len(watched))) * 1e9,
        "connect_ns": connect.cpu_seconds / (cycles * len(users)) * 1e9,
        "subscribe_ns": subscribe.cpu_seconds / (cycles * len(watched)) * 1e9,
        "unsubscribe_ns": unsubscribe.cpu_seconds / (cycles * len(watched)) * 1e9,
        "disconnect_ns": disconnect.cpu_seconds / (cycles * len(users)) * 1e9,
    }
