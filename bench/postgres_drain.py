"""Counts the notifications of some channels in a process of its own.

python bench/postgres_drain.py PORT COUNT CHANNEL ... prints a line when it listens, and the number
when it has seen so many, or none for a while.
"""

import sys

from postgres_server import Drain

MARK = b'"upload_progress"'
SILENCE_SECONDS = 10.0


def main() -> None:
    port, count, *channels = sys.argv[1:]
    drain = Drain(int(port), channels, MARK)
    print("listening", flush=True)
    print(drain.read(int(count), SILENCE_SECONDS), flush=True)
    drain.close()


if __name__ == "__main__":
    main()
