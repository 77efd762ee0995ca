"""What the instances of the PyView demo know of each other's clicks."""

import uuid
from dataclasses import dataclass, field

Figures = dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class Share:
    """What was clicked on the pages of one port."""

    port: int
    clicks: int
    percent: int


@dataclass
class Tally:
    """A count as the sum of what each instance has counted of its own clicks.

    An instance announces its own figures: how often plus and how often minus was clicked. They only
    grow, and whoever hears of them keeps the larger ones, so that what is announced twice, late or
    never does no harm, and clicks at the same moment on two instances all count.
    """

    port: int
    figures: Figures = field(init=False)

    def __post_init__(self) -> None:
        # An instance that is started again on its port begins anew; its old figures stay.
        self.me = f"{self.port}/{uuid.uuid4().hex}"
        self.figures = {self.me: [0, 0]}

    @property
    def own(self) -> Figures:
        return {self.me: self.figures[self.me]}

    @property
    def count(self) -> int:
        return sum(added - subtracted for added, subtracted in self.figures.values())

    def click(self, amount: int) -> None:
        self.figures[self.me][amount < 0] += 1

    def merge(self, figures: Figures) -> None:
        for instance, theirs in figures.items():
            ours = self.figures.get(instance, [0, 0])
            self.figures[instance] = [max(pair) for pair in zip(ours, theirs, strict=True)]

    def shares(self, ports: tuple[int, ...]) -> list[Share]:
        clicks = dict.fromkeys(ports, 0)
        for instance, figures in self.figures.items():
            port = int(instance.partition("/")[0])
            clicks[port] = clicks.get(port, 0) + sum(figures)
        most = max(clicks.values(), default=0) or 1
        return [Share(port, n, round(100 * n / most)) for port, n in clicks.items()]
