"""The load: a process of its own that writes prepared PUBLISH commands to a raw socket.

Takes one JSON request per line on a Unix socket, answers one line each:
    {"op": "prepare", "channels": [...], "count": n, "last": channel or null}   -> {"bytes": n}
    {"op": "prepare_file", "path": commands one after another, "lengths": [...]} -> {"bytes": n}
    {"op": "go", "rate": messages a second or null}
        -> {"started_ns", "ended_ns", "heard", "redis_seconds": CPU that Redis used meanwhile}
    {"op": "until_heard"}: repeats what is prepared   -> {"tries": n}
    {"op": "pin", "cores": [...]}: itself and Redis run on these alone
    {"op": "calls", "command": "publish"}             -> {"calls": n}, of all since the start
    {"op": "all_calls"}: of every command             -> {"calls": {command: n}}
    {"op": "reads"}: how often Redis has read from a client since it started -> {"reads": n}
    {"op": "cpu_seconds"}: CPU that Redis has used since it started             -> {"seconds"}
    {"op": "clear"}: Redis forgets all that it keeps
    {"op": "until_channels", "count": n}: Redis has so many with subscribers   -> {"at_ns"}
The clock is CLOCK_MONOTONIC, which all processes of a machine share.
"""

import json
import os
import re
import socket
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from commands import publish_commands

HEARD_SECONDS = 10.0
TICK_SECONDS = 0.001
LOOK_SECONDS = 0.0002


class Redis:
    """Just enough of the protocol to publish: commands are bytes, replies are integers."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def write(self, commands: bytes | memoryview) -> None:
        self._socket.sendall(commands)

    def replies(self, count: int) -> bytes:
        """Reads that many replies."""
        read, lines = [], 0
        while lines < count:
            chunk = self._socket.recv(1 << 18)
            if not chunk:
                raise ConnectionError("Redis closed the load generator's connection")
            read.append(chunk)
            lines += chunk.count(b"\n")
        return b"".join(read)

    def calls_of(self, command: str) -> int:
        """How often Redis has run a command since it started."""
        return self.all_calls().get(command, 0)

    def all_calls(self) -> dict[str, int]:
        found = re.findall(r"cmdstat_(\S+):calls=(\d+)", self._info("commandstats"))
        return {command: int(calls) for command, calls in found}

    def channels(self) -> int:
        """How many channels have a subscriber; patterns do not count."""
        return self._number("pubsub_channels", "stats")

    def reads(self) -> int:
        """How often Redis has read from a client since it started."""
        return self._number("total_reads_processed", "stats")

    def clear(self) -> None:
        self._socket.sendall(b"FLUSHALL\r\n")
        if (answer := self.replies(1)) != b"+OK\r\n":
            raise ConnectionError(f"Redis answered {answer.decode()}")

    def cpu_seconds(self) -> float:
        """How much CPU Redis has used, user and system."""
        return sum(map(float, re.findall(r"used_cpu_(?:sys|user):([\d.]+)", self._info("cpu"))))

    def process_id(self) -> int:
        return self._number("process_id", "server")

    def _number(self, name: str, section: str) -> int:
        found = re.search(rf"{name}:(\d+)", self._info(section))
        if found is None:
            raise ConnectionError(f"Redis did not tell its {name}")
        return int(found[1])

    def _info(self, section: str) -> str:
        self._socket.sendall(f"INFO {section}\r\n".encode())
        header, _, text = bytearray(self._socket.recv(1 << 18)).partition(b"\r\n")
        while len(text) < int(header[1:]) + 2:
            text += self._socket.recv(1 << 18)
        return text.decode()


def total(replies: bytes) -> int:
    """The sum of integer replies."""
    lines = replies.split(b"\r\n")[:-1]
    wrong = next((line for line in lines if not line.startswith(b":")), None)
    if wrong is not None:
        raise ConnectionError(f"Redis answered {wrong.decode()}")
    return sum(int(line[1:]) for line in lines)


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

    def prepare_file(self, path: str, lengths: list[int]) -> dict[str, Any]:
        """Commands that somebody else has made."""
        data, start = Path(path).read_bytes(), 0
        self._commands = []
        for length in lengths:
            self._commands.append(data[start : start + length])
            start += length
        return {"bytes": start}

    def go(self, rate: float | None) -> dict[str, Any]:
        joined = b"".join(self._commands)
        busy_before = self._redis.cpu_seconds()
        started = time.monotonic_ns()
        if rate is None:
            self._redis.write(joined)
        else:
            self._write_paced(rate)
        replies = self._redis.replies(len(self._commands))
        ended = time.monotonic_ns()
        busy = self._redis.cpu_seconds() - busy_before
        return {
            "started_ns": started,
            "ended_ns": ended,
            "heard": total(replies),
            "redis_seconds": busy,
        }

    def until_heard(self) -> dict[str, Any]:
        """Publishes the first command until somebody is subscribed to its channel."""
        command = self._commands[0]
        deadline = time.monotonic() + HEARD_SECONDS
        tries = 0
        while time.monotonic() < deadline:
            tries += 1
            self._redis.write(command)
            if total(self._redis.replies(1)) > 0:
                return {"tries": tries}
            time.sleep(0.005)
        raise TimeoutError(f"nobody subscribed within {HEARD_SECONDS:g} s")

    def pin(self, cores: list[int]) -> dict[str, Any]:
        for process in (os.getpid(), self._redis.process_id()):
            for thread in Path(f"/proc/{process}/task").iterdir():
                os.sched_setaffinity(int(thread.name), cores)
        return {}

    def calls(self, command: str) -> dict[str, Any]:
        return {"calls": self._redis.calls_of(command)}

    def all_calls(self) -> dict[str, Any]:
        return {"calls": self._redis.all_calls()}

    def reads(self) -> dict[str, Any]:
        return {"reads": self._redis.reads()}

    def cpu_seconds(self) -> dict[str, Any]:
        return {"seconds": self._redis.cpu_seconds()}

    def clear(self) -> dict[str, Any]:
        self._redis.clear()
        return {}

    def until_channels(self, count: int) -> dict[str, Any]:
        deadline = time.monotonic() + HEARD_SECONDS
        while (there := self._redis.channels()) != count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{there} of {count} channels after {HEARD_SECONDS:g} s")
            time.sleep(LOOK_SECONDS)
        return {"at_ns": time.monotonic_ns()}

    def _write_paced(self, rate: float) -> None:
        started = time.monotonic()
        written = 0
        while written < len(self._commands):
            due = min(int((time.monotonic() - started) * rate) + 1, len(self._commands))
            if due > written:
                self._redis.write(b"".join(self._commands[written:due]))
                written = due
            time.sleep(TICK_SECONDS)


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
