"""The load: a process of its own that writes prepared PUBLISH commands to a raw socket.

Takes one JSON request per line on a Unix socket, answers one line each:
    {"op": "prepare", "channels": [...], "count": n, "last": channel or null}   -> {"bytes": n}
    {"op": "go", "rate": messages a second or null}   -> {"started_ns", "ended_ns", "heard"}
    {"op": "until_heard", "channel": ...}             -> {"tries": n}
    {"op": "published"}                               -> {"calls": n}, of all since the start
The clock is CLOCK_MONOTONIC, which all processes of a machine share.
"""

import json
import re
import socket
import sys
import time
from collections.abc import Iterable
from itertools import cycle, islice
from typing import Any

from payloads import progress

HEARD_SECONDS = 10.0
TICK_SECONDS = 0.001


class Redis:
    """Just enough of the protocol to publish: commands are bytes, replies are integers."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def write(self, commands: bytes | memoryview) -> None:
        self._socket.sendall(commands)

    def replies(self, count: int) -> int:
        """Reads that many integer replies and returns their sum."""
        buffer = bytearray()
        while buffer.count(b"\n") < count:
            read = self._socket.recv(1 << 18)
            if not read:
                raise ConnectionError("Redis closed the load generator's connection")
            buffer += read
        lines = bytes(buffer).split(b"\r\n")[:-1]
        wrong = next((line for line in lines if not line.startswith(b":")), None)
        if wrong is not None:
            raise ConnectionError(f"Redis answered {wrong.decode()}")
        return sum(int(line[1:]) for line in lines)

    def calls_of(self, command: str) -> int:
        """How often Redis has run a command since it started."""
        self._socket.sendall(b"INFO commandstats\r\n")
        header, _, text = bytearray(self._socket.recv(1 << 18)).partition(b"\r\n")
        while len(text) < int(header[1:]) + 2:
            text += self._socket.recv(1 << 18)
        found = re.search(rf"cmdstat_{command}:calls=(\d+)".encode(), text)
        return int(found[1]) if found else 0


class Load:
    """The commands that wait to be written."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._commands: list[bytes] = []

    def prepare(self, channels: list[str], count: int, last: str | None) -> dict[str, Any]:
        """`count` messages over the channels in turn, then one on the channel `last`."""
        order = list(islice(cycle(channels), count))
        if last is not None:
            order.append(last)
        self._commands = list(publish_commands(order))
        return {"bytes": sum(map(len, self._commands))}

    def go(self, rate: float | None) -> dict[str, Any]:
        joined = b"".join(self._commands)
        started = time.monotonic_ns()
        if rate is None:
            self._redis.write(joined)
        else:
            self._write_paced(rate)
        heard = self._redis.replies(len(self._commands))
        return {"started_ns": started, "ended_ns": time.monotonic_ns(), "heard": heard}

    def until_heard(self, channel: str) -> dict[str, Any]:
        """Publishes until somebody is subscribed to the channel."""
        command = next(iter(publish_commands([channel])))
        deadline = time.monotonic() + HEARD_SECONDS
        tries = 0
        while time.monotonic() < deadline:
            tries += 1
            self._redis.write(command)
            if self._redis.replies(1) > 0:
                return {"tries": tries}
            time.sleep(0.005)
        raise TimeoutError(f"nobody subscribed to {channel} within {HEARD_SECONDS:g} s")

    def published(self) -> dict[str, Any]:
        return {"calls": self._redis.calls_of("publish")}

    def _write_paced(self, rate: float) -> None:
        started = time.monotonic()
        written = 0
        while written < len(self._commands):
            due = min(int((time.monotonic() - started) * rate) + 1, len(self._commands))
            if due > written:
                self._redis.write(b"".join(self._commands[written:due]))
                written = due
            time.sleep(TICK_SECONDS)


def publish_commands(channels: Iterable[str]) -> Iterable[bytes]:
    for number, channel in enumerate(channels):
        name = channel.encode()
        upload_id = channel.partition(":")[2]
        body = progress(upload_id, number % 101).model_dump_json().encode()
        yield b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            len(name),
            name,
            len(body),
            body,
        )


def serve(path: str, redis_port: int) -> None:
    load = Load(Redis(redis_port))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            with client, client.makefile("rw") as lines:
                for line in lines:
                    request = json.loads(line)
                    operation = request.pop("op")
                    try:
                        answer = getattr(load, operation)(**request)
                    except (OSError, TimeoutError) as error:
                        answer = {"error": str(error)}
                    lines.write(json.dumps(answer) + "\n")
                    lines.flush()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
