"""Two hundred WebSocket clients and the publisher, in a process of its own: the other end.

Takes one JSON request per line on standard input, answers one line each:
    {"op": "connect", "count": n}                  client i is user i and watches upload i
    {"op": "burst", "count": n}                    -> {"seconds", "delivered", "expected"}
    {"op": "paced", "count": n, "rate": r}         -> {"latencies_us": [...], "expected"}
    {"op": "stall"}                                client 0 reads no more, its buffers are full
Publishing and receiving share a clock and a thread, so a latency is a difference of two readings.
"""

import base64
import json
import os
import selectors
import socket
import sys
import time
from pathlib import Path
from typing import Any

from load_generator import Redis

# Nineteen digits in each message, overwritten with the time when it is published.
STAMP = b"0000000000000000000"
SILENCE_SECONDS = 3.0
BUFFER_BYTES = 1 << 16
MASK = b"\x01\x02\x03\x04"


class Client:
    """A WebSocket on a plain socket: a handshake, one frame out, text frames in."""

    def __init__(self, port: int, greeting: dict[str, str]) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self.socket.connect(("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._buffer = bytearray()
        while b"\r\n\r\n" not in self._buffer:
            self._receive()
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if b" 101 " not in head:
            raise ConnectionError(f"no WebSocket: {head.decode()}")
        self._buffer = bytearray(rest)
        text = json.dumps(greeting).encode()
        masked = bytes(byte ^ MASK[at % 4] for at, byte in enumerate(text))
        self.socket.sendall(bytes([0x81, 0x80 | len(text)]) + MASK + masked)
        while not (ready := self.frames()):
            self._receive()
        if ready != [b"ready"]:
            raise ConnectionError(f"not ready: {ready!r}")
        self.socket.setblocking(False)

    def receive(self) -> list[bytes]:
        self._receive()
        return self.frames()

    def _receive(self) -> None:
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the server closed a connection")
        self._buffer += data

    def frames(self) -> list[bytes]:
        """The payloads of all text frames that are complete."""
        buffer, at, found = bytes(self._buffer), 0, []
        while at + 2 <= len(buffer):
            length, head = buffer[at + 1], 2
            if length == 126:
                length, head = int.from_bytes(buffer[at + 2 : at + 4], "big"), 4
            elif length == 127:
                length, head = int.from_bytes(buffer[at + 2 : at + 10], "big"), 10
            end = at + head + length
            if end > len(buffer):
                break
            if buffer[at] == 0x81:
                found.append(buffer[at + head : end])
            at = end
        del self._buffer[:at]
        return found


class Crowd:
    def __init__(self, port: int, redis_port: int, templates: dict[str, Any]) -> None:
        self._port = port
        self._redis = Redis(redis_port)
        self._redis_replies = 0
        self._commands = [self._split(text) for text in templates["uploads"]]
        self._filler = templates["filler"].encode("latin-1")
        self._clients: list[Client] = []
        self._selector = selectors.DefaultSelector()
        self._stalled = 0

    @staticmethod
    def _split(text: str) -> tuple[bytes, bytes]:
        before, _, after = text.encode("latin-1").partition(STAMP)
        return before, after

    def connect(self, count: int) -> dict[str, Any]:
        for number in range(count):
            client = Client(self._port, {"user_id": f"user-{number}", "number": str(number)})
            self._clients.append(client)
            self._selector.register(client.socket, selectors.EVENT_READ, client)
        return {}

    def burst(self, count: int) -> dict[str, Any]:
        """As many as Redis takes at once; time from the first publish to the last delivery."""
        stamp = b"%019d" % time.monotonic_ns()
        batch = b"".join(
            stamp.join(self._commands[number % len(self._commands)]) for number in range(count)
        )
        started = time.monotonic()
        self._redis.write(batch)
        self._redis.replies(count)
        delivered, last = 0, started
        while delivered < count and time.monotonic() - last < SILENCE_SECONDS:
            arrived = len(self._arrivals(0.05))
            if arrived:
                delivered, last = delivered + arrived, time.monotonic()
        return {"seconds": last - started, "delivered": delivered, "expected": count}

    def paced(self, count: int, rate: float) -> dict[str, Any]:
        """Latency of each delivery; a client that was stalled is sent to, and not waited for."""
        latencies: list[float] = []
        receivers = len(self._commands)
        expected = sum(number % receivers >= self._stalled for number in range(count))
        started = last = time.monotonic()
        published = 0
        while len(latencies) < expected and time.monotonic() - last < SILENCE_SECONDS:
            due = min(int((time.monotonic() - started) * rate) + 1, count)
            if due > published:
                stamp = b"%019d" % time.monotonic_ns()
                self._redis.write(
                    b"".join(
                        stamp.join(self._commands[number % receivers])
                        for number in range(published, due)
                    )
                )
                published, last = due, time.monotonic()
            arrived = self._arrivals(0.0005)
            if arrived:
                latencies += arrived
                last = time.monotonic()
        self._redis.replies(published)
        return {"latencies_us": latencies, "expected": expected}

    def stall(self) -> dict[str, Any]:
        """Its buffers are full then, on both sides, and a send to it waits."""
        self._selector.unregister(self._clients[0].socket)
        self._stalled = 1
        for _ in range(24):
            self._redis.write(self._filler)
        self._redis.replies(24)
        time.sleep(0.3)
        return {}

    def _arrivals(self, seconds: float) -> list[float]:
        """Latencies in microseconds of what has arrived, waiting so long for the first."""
        found: list[float] = []
        for key, _ in self._selector.select(seconds):
            client: Client = key.data
            texts = client.receive()
            now = time.monotonic_ns()
            for text in texts:
                at = text.find(b"stamp ") + 6
                found.append((now - int(text[at : at + 19])) / 1e3)
        return found


def main() -> None:
    port, redis_port, templates = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    crowd = Crowd(port, redis_port, json.loads(templates.read_text()))
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(crowd, request.pop("op"))(**request)), flush=True)


if __name__ == "__main__":
    main()
