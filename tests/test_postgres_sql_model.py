"""``fanwire_record`` and ``fanwire_read`` against a model: the broker inside the process."""

import itertools
from collections import deque
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.postgres_sql import (
    DUPLICATE,
    HAD_COME,
    PUBLISHED,
    STALE,
    Connection,
    Ear,
    Message,
    Past,
    Since,
    database,
    ear,
    read,
    record,
)

__all__ = ["database", "ear"]

_numbers = itertools.count(1)


@dataclass
class History:
    """As src/broker/memory/history.rs has it, and what a broker knows of who publishes."""

    size: int
    epoch: str = ""
    last: int = 0
    milestone: tuple[int, str] | None = None
    version: int = -1
    log: deque[str] = field(default_factory=deque)
    keys: deque[tuple[str, int]] = field(default_factory=deque)
    numbers: dict[str, int] = field(default_factory=dict)

    def append(self, message: Message, source: str, epoch: str) -> tuple[int, int | None]:
        assert message.number is not None
        if message.number <= self.numbers.get(source, -1):
            return HAD_COME, None
        for key, offset in self.keys:
            if key == message.key:
                return DUPLICATE, offset
        if message.version is not None and message.version <= self.version:
            return STALE, None
        self.epoch = self.epoch or epoch
        self.last += 1
        payload = message.at(self.epoch, self.last)
        self.numbers[source] = message.number
        if message.version is not None:
            self.version = message.version
        if message.milestone:
            self.milestone = self.last, payload
        if message.key is not None:
            self.keys.append((message.key, self.last))
            if len(self.keys) > self.size:
                self.keys.popleft()
        self.log.append(payload)
        if len(self.log) > self.size:
            self.log.popleft()
        return PUBLISHED, self.last

    def read(self, since: Since) -> Past | None:
        if self.last == 0:
            return None
        milestone = self.milestone[0] if self.milestone else None
        if since is None or since[0] != self.epoch or since[1] > self.last:
            start = milestone or 1
        elif since[1] == self.last:
            start = self.last + 1
        else:
            start = min(milestone or since[1] + 1, since[1] + 1)
        oldest = self.last + 1 - len(self.log)
        entries = list(enumerate(self.log, oldest))
        if self.milestone and self.milestone[0] < oldest:
            entries.insert(0, self.milestone)
        wanted = tuple(entry for entry in entries if entry[0] >= start)
        return Past(self.epoch, self.last, milestone, wanted)


SOURCES = st.sampled_from(["a", "b"])
MESSAGES = st.builds(
    Message,
    upload=st.sampled_from(["0", "1", "2"]),
    head=st.sampled_from(['{"a":1,', "{", '{"é":"\U0001f41d",']),
    milestone=st.booleans(),
    key=st.none() | st.none() | st.sampled_from("klm"),
    version=st.none() | st.none() | st.integers(0, 9),
)
# A call: who it is of, how many of the newest messages of that source come once more, and new ones.
CALLS = st.lists(
    st.tuples(SOURCES, st.integers(0, 3), st.lists(MESSAGES, min_size=1, max_size=6)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(calls=CALLS, size=st.integers(1, 5), places=st.lists(st.integers(0, 20), max_size=3))
def test_it_does_what_the_model_does(
    database: Connection,
    ear: Ear,
    calls: list[tuple[str, int, list[Message]]],
    size: int,
    places: list[int],
) -> None:
    run = next(_numbers)
    names = {name: f"{run}-{name}" for name in "012"}
    model = {name: History(size) for name in names.values()}
    sent: dict[str, list[Message]] = {"a": [], "b": []}
    published: dict[str, list[str]] = {name: [] for name in names.values()}
    for source, repeated, fresh in calls:
        begin = len(sent[source])
        for number, message in enumerate(fresh, begin + 1):
            values = {**vars(message), "upload": names[message.upload], "number": number}
            sent[source].append(Message(**values))
        batch = sent[source][max(0, begin - repeated) :]
        answers = record(database, *batch, source=source, size=size)
        for message, answer in zip(batch, answers, strict=True):
            history = model[message.upload]
            expected = history.append(message, source, answer.epoch)
            assert (answer.status, answer.offset) == expected
            assert answer.epoch == history.epoch
            if answer.status == PUBLISHED:
                published[message.upload].append(message.at(answer.epoch, history.last))
    for name, history in model.items():
        asks: list[Since] = [None, ("0" * 16, 1)]
        asks += [(history.epoch, place) for place in {*places, history.last} if history.last]
        assert read(database, *((name, since) for since in asks)) == [
            history.read(since) for since in asks
        ]
    heard: dict[str, list[str]] = {name: [] for name in model}
    for channel, payload in ear.messages():
        heard[channel.removeprefix("upload:")].append(payload)
    assert heard == published
