"""Writes the time to its standard output every millisecond: 8 bytes, until it is closed.

A process of its own, so that what keeps the measured event loop busy cannot keep the stamps back.
"""

import os
import time

EVERY_SECONDS = 0.001


def main() -> None:
    due = time.monotonic()
    while True:
        due += EVERY_SECONDS
        time.sleep(max(due - time.monotonic(), 0.0))
        try:
            os.write(1, time.monotonic_ns().to_bytes(8, "little"))
        except BlockingIOError:
            continue  # the reader is so far behind that the pipe is full
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main()
