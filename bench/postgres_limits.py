"""What PostgreSQL itself costs and can do: why uploads share one channel, and where commits end.

python bench/postgres_limits.py [--rounds 5]

No fanwire takes part: notifications are made by procedures on the server and by pgbench, and read
by a plain socket that throws them away. The figures are in docs/postgresql.md.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import report as reporting
from postgres_server import Drain, PostgresServer, binary

HERE = Path(__file__).parent
NOTIFICATIONS = 20_000
AUDIENCES = (1, 100, 1_000, 5_000)
PGBENCH_SECONDS = 2
END = "the-end"
# A message of 300 bytes, to one of so many uploads: on the upload's channel, or on one for all.
PROCEDURES = """
CREATE PROCEDURE to_each(count int, uploads int, each int) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 0 .. count - 1 LOOP
        PERFORM pg_notify('upload:' || i % uploads, repeat('x', 300) || i);
        IF i % each = each - 1 THEN COMMIT; END IF;
    END LOOP;
    COMMIT;
    PERFORM pg_notify('the-end', 'the-end');
END $$;
CREATE PROCEDURE to_one(count int, uploads int, each int) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 0 .. count - 1 LOOP
        PERFORM pg_notify('fanwire', '~m12:upload:' || i % uploads || repeat('x', 300) || i);
        IF i % each = each - 1 THEN COMMIT; END IF;
    END LOOP;
    COMMIT;
    PERFORM pg_notify('the-end', 'the-end');
END $$;
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="what PostgreSQL itself costs and can do")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with PostgresServer() as server:
        psql(server, PROCEDURES)
        print(f"PostgreSQL {server.version()}, {os.cpu_count()} cores, medians of {rounds} rounds")
        print(f"\n{reporting.as_markdown(channels(server, rounds))}")
        print(f"\n{reporting.as_markdown(commits(server, rounds))}")


# One channel for all uploads, or one for each


def channels(server: PostgresServer, rounds: int) -> list[list[str]]:
    """CPU of the listener's backend per notification, by what it listens to."""
    sides: dict[str, tuple[str, list[str], int]] = {
        "nothing": ("to_each", [], 5_000),
        "one channel for all uploads": ("to_one", ["fanwire"], 5_000),
    }
    for count in AUDIENCES:
        for what, names in (("its own", "upload"), ("others", "other")):
            listened = [f"{names}:{number}" for number in range(count)]
            sides[f"{count:,} channels, notified: {what}"] = ("to_each", listened, count)
    found: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds):
        for title, side in sides.items():
            for each in (1, 50):
                cost = backend_us(server, *side, each)
                found.setdefault((title, each), []).append(cost)
        print(f"round {number + 1}: channels", file=sys.stderr, flush=True)
    head = ["the connection listens to", "1 in a transaction, µs", "50 in a transaction, µs"]
    return [head, *([t, *(f"{median(found[t, each]):.2f}" for each in (1, 50))] for t in sides)]


def backend_us(
    server: PostgresServer, procedure: str, listened: list[str], uploads: int, each: int
) -> float:
    drain = Drain(server.port, [*listened, END], END.encode())
    clock = cpu_clock(drain.pid)
    before = time.clock_gettime_ns(clock)
    with subprocess.Popen(
        psql_command(server, f"CALL {procedure}({NOTIFICATIONS}, {uploads}, {each})")
    ):
        # Its name and its payload.
        if drain.read(2, seconds=30.0) < 2:
            raise RuntimeError(f"the end of {procedure} has not come")
    cost = time.clock_gettime_ns(clock) - before
    drain.close()
    return cost / NOTIFICATIONS / 1e3


def cpu_clock(pid: int) -> int:
    """Linux's clock of the CPU time of another process."""
    return (~pid << 3) | 2


# Commits with a notification


def commits(server: PostgresServer, rounds: int) -> list[list[str]]:
    """Transactions a second by pgbench, while somebody listens; without NOTIFY for comparison."""
    scripts = {
        "no notification, but a transaction id": "SELECT txid_current()",
        "1 notification": "SELECT pg_notify('fanwire', repeat('x', 300) || random())",
        "50 notifications": (
            "SELECT count(pg_notify('fanwire', repeat('x', 300) || n))"
            " FROM generate_series(1, 50) n"
        ),
    }
    found: dict[tuple[str, int], list[float]] = {}
    with listening(server):
        for number in range(rounds):
            for title, script in scripts.items():
                for clients in (1, 8):
                    rate = commits_a_second(server, script, clients)
                    found.setdefault((title, clients), []).append(rate)
            print(f"round {number + 1}: commits", file=sys.stderr, flush=True)
    head = ["a transaction with", "1 connection, commits/s", "8 connections, commits/s"]
    return [head, *([t, *(f"{median(found[t, c]):,.0f}" for c in (1, 8))] for t in scripts)]


def commits_a_second(server: PostgresServer, script: str, clients: int) -> float:
    done = subprocess.run(
        [
            *(binary("pgbench"), "--no-vacuum", "--protocol=extended", "--file=/dev/stdin"),
            *(f"--client={clients}", f"--time={PGBENCH_SECONDS}", server.dsn),
        ],
        input=f"{script};\n",
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rate = re.search(r"tps = ([0-9.]+)", done.stdout)
    if rate is None:
        raise RuntimeError(f"pgbench says no rate: {done.stdout}")
    return float(rate[1])


@contextmanager
def listening(server: PostgresServer) -> Iterator[None]:
    """Somebody who hears all of it, until the end."""
    command = [sys.executable, str(HERE / "postgres_drain.py"), str(server.port), str(1 << 60)]
    with subprocess.Popen([*command, "fanwire"], stdout=subprocess.PIPE) as drain:
        assert drain.stdout is not None
        drain.stdout.readline()
        try:
            yield
        finally:
            drain.kill()


def psql(server: PostgresServer, script: str) -> None:
    subprocess.run(psql_command(server, script), stdout=subprocess.DEVNULL, check=True)


def psql_command(server: PostgresServer, script: str) -> list[str]:
    return [binary("psql"), "--quiet", "-v", "ON_ERROR_STOP=1", "-c", script, server.dsn]


if __name__ == "__main__":
    main()
