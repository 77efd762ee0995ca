"""From PUBLISH to the clients: uvicorn, 200 WebSockets, with and without one that stops reading."""

import asyncio
import json
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commands import body_of, plain, publish_command
from contract import Row, Session
from meter import Meter, settle
from payloads import upload_ids
from receiving import start_listening
from responding import percentile
from serving import Server

NAME = "end_to_end"
TITLE = "end to end: uvicorn, 200 WebSocket clients"
ROWS = (
    Row("per_second", "deliveries a second, as fast as it goes", "1/s", better="higher"),
    Row("cpu_us", "CPU per delivery, uvicorn's included", "µs"),
    Row("p50_ms", "publish to client at 4,000/s: p50", "ms"),
    Row("p99_ms", "publish to client at 4,000/s: p99", "ms"),
    Row("stalled_p50_ms", "one client not reading, the others' p50", "ms"),
    Row("stalled_p99_ms", "one client not reading, the others' p99", "ms"),
    Row("stalled_share", "one client not reading: the others got", "%", better="higher"),
    Row("stalled_ratio", "the others' p99, with / without one not reading", "times", limit=1.5),
)
CLIENTS = 200
RATE = 4_000.0
STAMP = "0000000000000000000"
FILLER_BYTES = 40_000
HERE = Path(__file__).parent.parent


async def run(session: Session) -> Mapping[str, float]:
    uploads = upload_ids("live", CLIENTS)
    server = Server(session.contender.manager, uploads)
    await server.start()
    await start_listening(session)
    with tempfile.TemporaryDirectory() as folder:
        templates = Path(folder) / "templates.json"
        templates.write_text(json.dumps(_templates(session, uploads)))
        clients = await asyncio.create_subprocess_exec(
            *(sys.executable, str(HERE / "ws_clients.py"), str(server.port)),
            *(str(session.redis_port), str(templates)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 26,
        )
        try:
            return await _measure(session, clients)
        finally:
            clients.kill()
            await clients.wait()
            await server.stop()


async def _measure(session: Session, clients: Any) -> Mapping[str, float]:
    await _ask(clients, op="connect", count=CLIENTS)
    await _ask(clients, op="burst", count=2_000)
    settle()
    count = session.messages(session.size(20_000, 8_000)) // CLIENTS * CLIENTS
    with Meter() as meter:
        burst = await _ask(clients, op="burst", count=count)
    if burst["delivered"] < count:
        session.remarks.append(f"{burst['delivered']} of {count} deliveries reached the clients")
    paced = int(RATE * session.size(3, 1))
    latencies, _ = await _paced(session, clients, paced)
    await _ask(clients, op="stall")
    stalled, share = await _paced(session, clients, paced, may_stop=True)
    return {
        "per_second": count / burst["seconds"],
        "cpu_us": meter.cpu_seconds / count * 1e6,
        "p50_ms": percentile(latencies, 0.5),
        "p99_ms": percentile(latencies, 0.99),
        "stalled_p50_ms": percentile(stalled, 0.5),
        "stalled_p99_ms": percentile(stalled, 0.99),
        "stalled_share": share * 100,
        "stalled_ratio": percentile(stalled, 0.99) / percentile(latencies, 0.99),
    }


async def _paced(
    session: Session, clients: Any, count: int, *, may_stop: bool = False
) -> tuple[list[float], float]:
    """Latencies in milliseconds, one for each message; infinite for what never arrived."""
    answer = await _ask(clients, op="paced", count=count, rate=RATE)
    arrived, expected = answer["latencies_us"], answer["expected"]
    if len(arrived) < expected and not may_stop:
        session.remarks.append(f"{len(arrived)} of {expected} paced deliveries reached the clients")
    latencies = [latency / 1e3 for latency in arrived] + [math.inf] * (expected - len(arrived))
    return latencies, len(arrived) / expected


def _templates(session: Session, uploads: list[str]) -> dict[str, Any]:
    """PUBLISH commands as the contender's own publishers write them, with room for the time."""
    wire = session.contender.wire or plain
    commands = []
    for upload_id in uploads:
        body = json.loads(body_of(f"upload:{upload_id}", 42))
        body["payload"]["message"] = f"stamp {STAMP} processing"
        commands.append(publish_command(*wire(f"upload:{upload_id}", _encode(body))))
    filler = _encode({"action": "note", "payload": {"text": "x" * FILLER_BYTES}})
    return {
        "uploads": [command.decode("latin-1") for command in commands],
        "filler": publish_command(*wire("user:user-0", filler)).decode("latin-1"),
    }


def _encode(body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


async def _ask(clients: Any, **request: Any) -> dict[str, Any]:
    clients.stdin.write(json.dumps(request).encode() + b"\n")
    line = await clients.stdout.readline()
    if not line:
        raise RuntimeError("the clients are gone")
    answer: dict[str, Any] = json.loads(line)
    return answer
