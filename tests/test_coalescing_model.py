"""Coalescing against a model of it in a plain list, on random histories of a lane that stalls.

The rule: a progress message that waits is overwritten in place by a newer one of its key, as long
as nothing else of that upload was queued after it. On the channel of an upload the key is the
channel, on that of a user it is channel, action and the upload's or batch's id. All else is kept,
in order.
"""

import asyncio
import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.deadlines import until
from tests.delivery import Delivery, GatedConnection, Message, delivering

USERS = ["ada", "bob"]
UPLOADS = ["u1", "u2", "u3"]
PROGRESS = ("upload_progress", "file_progress", "batch_progress")
SHAPES = [*PROGRESS, "upload_completed", "upload_failed", "ping", "text"]


@dataclass(frozen=True)
class Sent:
    """A message as the strategy chooses it."""

    shape: str
    upload: str
    user: str | None  # None: on the upload's channel

    def message(self, number: int) -> Message:
        channel = f"upload:{self.upload}" if self.user is None else f"user:{self.user}"
        return channel, self._body(number)

    def _body(self, number: int) -> Any:
        payload: dict[str, Any]
        match self.shape:
            case "upload_progress" | "file_progress":
                payload = {"batch_id": "b9", "upload_id": self.upload, "status": "processing"}
                return {"action": self.shape, "payload": payload, "number": number}
            case "batch_progress":
                payload = {"batch_id": self.upload, "total": 7, "processed": number}
                return {"action": self.shape, "payload": payload, "number": number}
            case "upload_completed" | "upload_failed":
                return {"action": self.shape, "upload_id": self.upload, "number": number}
            case "ping":
                return {"action": "ping", "number": number}
            case _:
                return ["upload_progress", self.upload, number]

    @property
    def about(self) -> str | None:
        """The upload (or batch) it is of, if that can be told."""
        return None if self.user is not None and self.shape in ("ping", "text") else self.upload

    @property
    def key(self) -> tuple[str, ...] | None:
        if self.shape not in PROGRESS:
            return None
        if self.user is None:
            return (f"upload:{self.upload}",)
        return (f"user:{self.user}", self.shape, self.upload)


@dataclass
class Model:
    """A lane whose connection takes what it is permitted to, as a plain list."""

    waiting: list[tuple[Sent, Any]] = field(default_factory=list)
    in_hand: Any = None
    taken: list[Any] = field(default_factory=list)
    coalesced: int = 0

    def push(self, sent: Sent, body: Any) -> None:
        if sent.key is not None:
            same = [n for n, (old, _) in enumerate(self.waiting) if old.about == sent.about]
            if same and self.waiting[same[-1]][0].key == sent.key:
                self.waiting[same[-1]] = (sent, body)
                self.coalesced += 1
                return
        self.waiting.append((sent, body))

    def begin(self, body: Any) -> None:
        assert self.in_hand is None
        self.in_hand = body

    def permit(self, sends: int) -> None:
        for _ in range(sends):
            self.taken.append(self.in_hand)
            self.in_hand = self.waiting.pop(0)[1] if self.waiting else None


sent = st.builds(
    Sent, st.sampled_from(SHAPES), st.sampled_from(UPLOADS), st.sampled_from([None, *USERS])
)
# What is published while the connection stalls, and how much it takes then.
phases = st.lists(st.tuples(st.lists(sent, max_size=40), st.integers(1, 8)), max_size=6)


async def until_as_the_model_says(
    delivery: Delivery, connection: GatedConnection, model: Model
) -> None:
    in_hand = None if model.in_hand is None else json.dumps(model.in_hand, separators=(",", ":"))

    def agrees() -> bool:
        return len(connection.texts) == len(model.taken) and connection.waiting == in_hand

    await until(agrees, f"{len(model.taken)} taken and {in_hand} in hand")
    assert [json.loads(text) for text in connection.texts] == model.taken
    assert delivery.manager.stats()["queued_messages"] == len(model.waiting)


async def compare(history: list[tuple[list[Sent], int]]) -> None:
    model, numbers = Model(), itertools.count()
    async with delivering() as delivery:
        connection = GatedConnection()
        for user in USERS:
            await delivery.connect(connection, user=user, uploads=())
        # Watched by one of the users each: by two it would come twice.
        for user, upload in zip(itertools.cycle(USERS), UPLOADS, strict=False):
            await delivery.connect(user=user, uploads=[upload])
        for messages, most in history:
            if model.in_hand is None:
                # A lane that is idle hands over at once: something has to be in the way.
                model.begin(number := next(numbers))
                delivery.publish(("user:ada", number))
                await until_as_the_model_says(delivery, connection, model)
            for one in messages:
                channel, body = one.message(next(numbers))
                model.push(one, body)
                delivery.publish((channel, body))
            await delivery.routed()
            permitted = min(most, len(model.waiting) + 1)
            model.permit(permitted)
            connection.permit(permitted)
            await until_as_the_model_says(delivery, connection, model)
        rest = len(model.waiting) + (model.in_hand is not None)
        model.permit(rest)
        connection.permit(rest)
        await until_as_the_model_says(delivery, connection, model)
        assert model.in_hand is None and not model.waiting
        await delivery.until_figures(
            coalesced=model.coalesced, delivered=len(model.taken), dropped=0, queued_bytes=0
        )


def of(upload: str, *shapes: str, user: str | None = None) -> list[Sent]:
    return [Sent(shape, upload, user) for shape in shapes]


@settings(max_examples=100)
@given(phases)
@example([(of("u1", *["upload_progress"] * 3, "upload_completed", "upload_progress"), 2)])
@example([(of("u1", "upload_progress") + of("u1", "ping", user="ada"), 1), (of("u1", "text"), 1)])
@example([(of("u1", "file_progress", "file_progress", user="bob"), 1)] * 3)
def test_a_lane_does_as_the_model(history: list[tuple[list[Sent], int]]) -> None:
    asyncio.run(compare(history))


@settings(max_examples=30)
@given(phases)
def test_a_lane_does_as_the_model_under_uvloop(history: list[tuple[list[Sent], int]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(compare(history))
