"""How long the ends of blocking jobs may wait for a broker that takes nothing."""

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fanwire._core import UploadProgressPublisher

__all__ = ["Patience"]

# Of a publisher's __dict__: what was published when a wait was in vain, and how long those waits
# have been, in seconds.
_IN_VAIN = "_fanwire_waited_in_vain"


class Patience:
    """The time of one wait.

    A broker that is away is waited for once, and not by every job of a worker anew. As soon as it
    has taken anything there is all the time again.
    """

    __slots__ = ("_began", "_published", "_publisher", "_spent", "seconds")

    def __init__(self, publisher: "UploadProgressPublisher", seconds: float) -> None:
        self._publisher = publisher
        self._published: int = publisher.stats()["published"]
        published, spent = vars(publisher).get(_IN_VAIN, (None, 0.0))
        self._spent: float = spent if published == self._published else 0.0
        self._began = monotonic()
        self.seconds = max(0.0, seconds - self._spent)

    def left(self) -> float:
        """How many seconds there are still."""
        return self._began + self.seconds - monotonic()

    def in_vain(self) -> None:
        """Say that the time is over, and not everything has been taken."""
        if self._publisher.stats()["published"] == self._published:
            spent = self._spent + min(self.seconds, monotonic() - self._began)
            vars(self._publisher)[_IN_VAIN] = (self._published, spent)
