"""Something that tells how it stands, but not too often, and that nothing keeps to itself."""

import asyncio
import os
from collections.abc import Callable
from threading import RLock, get_ident
from typing import Literal
from weakref import WeakSet

__all__ = ["Throttled", "running_loop"]

# Of a timer, in seconds: what is refused is tried again, but not in every turn of the loop.
_LEAST_DELAY = 0.001


class Throttled:
    """Calls ``_tell`` when something has changed, at most once per interval.

    What is held back is told when the interval is over: by a timer of the event loop where one
    runs, and where none does by the first change after that.
    """

    __slots__ = ("__weakref__", "_clock", "_held", "_interval", "_lock", "_loop", "_next", "_open",
                 "_thread", "_timer")  # fmt: skip

    def __init__(self, interval: float, clock: Callable[[], float]) -> None:
        self._interval = interval
        self._clock = clock
        self._open = False
        # Something has changed and has not been told.
        self._held = False
        # When it may be told.
        self._next = 0.0
        # The timer and a thread that works for the loop tell one after the other. Reentrant: what
        # is told is made by the application, which may do anything.
        self._lock = RLock()
        _all.add(self)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        # True: another thread has asked the loop for one.
        self._timer: asyncio.TimerHandle | Literal[True] | None = None

    def _tell(self) -> bool:
        """Tell how it stands; False where that has to be tried again."""
        raise NotImplementedError

    def _begin(self) -> None:
        self._open = True
        self._loop, self._thread = running_loop(), get_ident()
        try:
            self._changed(at_once=True)
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        """Return when nothing is being told, and nothing will be."""
        with self._lock:
            self._open = False
        if isinstance(self._timer, asyncio.TimerHandle):
            self._timer.cancel()
        self._timer = self._loop = None

    def _changed(self, *, at_once: bool = False) -> None:
        self._held = True
        if at_once or self._clock() >= self._next:
            self._tell_now(at_once=at_once)
        elif self._timer is None and self._loop is not None:
            self._arm()

    def _tell_now(self, *, at_once: bool) -> None:
        with self._lock:
            now = self._clock()
            # Another thread may just have told it, or ended this.
            if self._open and (at_once or now >= self._next):
                self._next = now + self._interval
                self._held = False  # before `_tell` looks: what changes after that is held again
                if not self._tell():
                    self._held = True
        if self._held and self._timer is None and self._loop is not None:
            self._arm()

    def _arm(self) -> None:
        loop = self._loop
        if loop is None:
            return
        if get_ident() == self._thread:
            if running_loop() is not loop:  # this one has ended, or stands still
                self._loop = None
                return
            delay = max(self._next - self._clock(), _LEAST_DELAY)
            self._timer = loop.call_later(delay, self._due)
            return
        self._timer = True
        try:
            loop.call_soon_threadsafe(self._due)
        except RuntimeError:  # it is closed, so this is as it is without one
            self._timer = self._loop = None

    def _due(self) -> None:
        self._timer = None  # first: whoever changes something from here on arms it again
        if not (self._open and self._held):
            return
        if self._clock() >= self._next:
            self._tell_now(at_once=False)
        else:
            self._arm()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


_all: WeakSet[Throttled] = WeakSet()


def _unlock_in_child() -> None:
    """What another thread of the parent was telling, nobody ends in the child of a fork."""
    for throttled in list(_all):
        throttled._lock = RLock()  # noqa: SLF001, of this module


os.register_at_fork(after_in_child=_unlock_in_child)
