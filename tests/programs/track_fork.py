"""Forks while another thread of a tracked job is telling; the child leaves the block."""

import os
import signal
import sys
import threading

import fanwire


def main() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slowly(event: fanwire.TrackerEvent) -> dict[str, int]:
        if event.done and os.getpid() == parent:
            inside.set()
            go_on.wait()
        return {"done": int(event.done)}

    parent = os.getpid()
    publisher = fanwire.UploadProgressPublisher("memory://")
    with publisher.track("u", 10, to_message=slowly, min_interval=0) as tracker:
        thread = threading.Thread(target=tracker.advance)
        thread.start()
        inside.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # that ends it should it hang
            tracker.__exit__(None, None, None)
            os._exit(0)
        sys.stdout.write(f"{os.waitpid(child, 0)[1]}\n")
        go_on.set()
        thread.join()


if __name__ == "__main__":
    main()
