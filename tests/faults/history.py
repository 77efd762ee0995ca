"""What happened, as text for whoever has to find out why a rule was broken."""

from collections.abc import Iterable

from tests.faults.record import Event, Got, Ledger, Opened, Published, Resynced, View

AROUND = 60


def seen(view: View, ledger: Ledger, at: int | None = None) -> str:
    """What a watcher saw, a line for each event; of a long one what is near an event."""
    first = 0 if at is None else max(0, at - AROUND)
    events = view.events[first : None if at is None else at + AROUND]
    lines = [f"what {view} saw" + (f", from event {first} on:" if first else ":")]
    lines += [
        f"{'>' if first + index == at else ' '} {_event(event, ledger)}"
        for index, event in enumerate(events)
    ]
    return "\n".join(lines)


def _event(event: Event, ledger: Ledger) -> str:
    match event:
        case Opened():
            since = f"since {event.since}" if event.since else "anew"
            return f"{event.at:7.3f} s  subscribes at {event.where}, {since}"
        case Resynced():
            return f"{event.at:7.3f} s  resync"
        case Got():
            message = ledger.messages.get(event.uid)
            kind = message.kind.value if message else "unknown"
            return f"{event.at:7.3f} s  {event.position or '-'}  {event.uid}  {kind}"


def published(upload: str, ledger: Ledger, views: Iterable[View]) -> str:
    """What was published of an upload, and at which positions anybody saw it."""
    positions: dict[str, set[str]] = {}
    for view in views:
        for event in view.events if view.upload == upload else ():
            if isinstance(event, Got):
                positions.setdefault(event.uid, set()).add(str(event.position or "-"))
    lines = [f"what was published of {upload}:"]
    for writer in ledger.writers[upload]:
        lines += [_message(m, positions.get(m.uid)) for m in ledger.by_writer[upload, writer]]
    return "\n".join(lines)


def _message(message: Published, positions: set[str] | None) -> str:
    fate = "refused" if message.forbidden else "accepted" if message.accepted else "given up"
    where = ", ".join(sorted(positions)) if positions else "never"
    told = f" (as its writer was told: {message.position})" if message.position else ""
    return (
        f"  {message.at:7.3f} s  {message.uid}  {message.kind.value}, {fate}, seen at {where}{told}"
    )
