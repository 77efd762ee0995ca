# ruff: noqa: T201 (what a program prints is what its test looks at)
"""Publishes events and log lines before a fork and, after it, in the child and in the parent.

Arguments: the broker's URL, how to make the child (``os.fork``, or a start method of
multiprocessing), what happens to what waits at the fork (``sent`` or ``waiting``), and how the
child ends (``flush`` or ``exit``). With ``waiting`` the broker is to be unreachable at first. When
the child is there the program says so, and goes on when it is told to.
"""

import multiprocessing
import os
import sys
import threading
from multiprocessing.synchronize import Event

from fanwire import EventPublisher, events


def publish_as(name: str, publisher: EventPublisher) -> None:
    for n in range(50):
        publisher.publish_log({"by": name, "n": n})
    publisher.publish_event(name)


def in_the_child(url: str, ending: str, told: Event | None = None) -> None:
    if told is not None and ending == "exit":
        # An interpreter that ends waits half a second for what it publishes, and no outage's end.
        assert told.wait(20)
    anew = EventPublisher(url)
    publish_as("child anew", anew)
    if ending == "flush":
        assert anew.flush(20)


def say_that_it_is_there() -> None:
    print("forked", flush=True)
    sys.stdin.readline()


def child_of_fork(url: str, ending: str, publisher: EventPublisher) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            publish_as("child inherited", publisher)
            in_the_child(url, ending)
            assert publisher.flush(20)
            status = 0
        finally:
            os._exit(status)
    say_that_it_is_there()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def child_of_multiprocessing(url: str, ending: str) -> int:
    told = multiprocessing.Event()
    process = multiprocessing.Process(target=in_the_child, args=(url, ending, told))
    process.start()
    say_that_it_is_there()
    told.set()
    process.join()
    return process.exitcode if process.exitcode is not None else -1


def main(url: str, method: str, state: str, ending: str) -> None:
    publisher = events.init_publisher(url)
    publish_as("parent before", publisher)
    if state == "sent":
        assert publisher.flush(20)
    # Another thread is in the middle of everything while this one forks.
    stop = threading.Event()
    busy = EventPublisher(url, namespace="noise")

    def make_noise() -> None:
        while not stop.is_set():
            busy.publish_log({"event": "noise"})
            busy.flush(0.001)

    noise = threading.Thread(target=make_noise)
    noise.start()
    if method == "os.fork":
        status = child_of_fork(url, ending, publisher)
    else:
        multiprocessing.set_start_method(method)
        status = child_of_multiprocessing(url, ending)
    print("child status", status)
    publish_as("parent after", publisher)
    stop.set()
    noise.join()
    assert publisher.flush(20)


if __name__ == "__main__":
    main(*sys.argv[1:])
