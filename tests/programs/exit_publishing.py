"""Publishes without waiting and ends, in this process or in a child of it.

Arguments: the broker's URL, how many messages, and whose they are: ``own``, or those of a child
that is made by a start method of multiprocessing.
"""

import multiprocessing
import sys

import fanwire


def publish(url: str, count: int) -> None:
    publisher = fanwire.UploadProgressPublisher(url)
    for n in range(count):
        assert publisher.publish_nowait("u", n)


def main(url: str, count: str, whose: str) -> None:
    if whose == "own":
        publish(url, int(count))
        return
    multiprocessing.set_start_method(whose)
    process = multiprocessing.Process(target=publish, args=(url, int(count)))
    process.start()
    process.join()
    sys.exit(process.exitcode)


if __name__ == "__main__":
    main(*sys.argv[1:])
