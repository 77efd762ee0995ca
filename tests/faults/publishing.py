"""The writers of a run: they publish its uploads, and note what fanwire has accepted."""

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Any

import fanwire
from tests.faults.clock import Clock
from tests.faults.faults import PUBLISHING_SECONDS
from tests.faults.plan import BURST_NOTES, Plan, Step, Upload, Writing
from tests.faults.record import Kind, Ledger, Position, Published

AGAIN_AFTER_SECONDS = 0.02
FLUSHED_POLL_SECONDS = 0.05
FURTHER_AFTER_SECONDS = 0.05
BURST_PADDING = 4_000
DRAIN_SECONDS = 5.0
# What a publisher counts of messages that it has given up.
GIVEN_UP = ("publish_failed", "publish_expired", "publish_dropped")


class Writer:
    """A publisher and the app around it, which knows what it owes to its messages."""

    def __init__(
        self, name: str, writing: Writing, url: str, history: fanwire.History | None
    ) -> None:
        self.name = name
        self.is_strict = writing is Writing.STRICT
        self.publisher = fanwire.UploadProgressPublisher(
            url, strict=self.is_strict, history=history
        )
        self.remembers = history is not None
        self._known_failed = 0

    async def publish(
        self, message: Published, step: Step, body: dict[str, Any], version: int | None
    ) -> str | None:
        """Publishes once, notes the outcome, and returns what the receipt said if there is one."""
        options: dict[str, Any] = {}
        if self.remembers and (step.twice or self.is_strict or message.again):
            options["idempotency_key"] = message.uid
        if self.remembers and version is not None:
            options["version"] = version
        if step.how == "nowait":
            taken = self.publisher.publish_nowait(message.upload, body, **options)
            message.forbidden |= not taken
            message.accepted = not message.forbidden
            return None
        if step.how == "wait":
            await self.publisher.publish_progress(message.upload, body, **options)
            message.accepted = not message.forbidden
            return None
        receipt = await self._receipt(message.upload, body, options)
        if receipt is None:
            return "stale"
        if receipt.status == "failed":
            self._known_failed += 1
        taken = receipt.status not in ("failed", "stale") and not message.forbidden
        message.accepted = message.accepted or taken
        if receipt.position is not None and not message.forbidden:
            message.position = Position(*receipt.position)
        return receipt.status

    async def _receipt(
        self, upload_id: str, body: dict[str, Any], options: dict[str, Any]
    ) -> fanwire.Receipt | None:
        """None if it is strict, and the message stale, which trying again does not change."""
        while True:
            try:
                receipt: fanwire.Receipt = await self.publisher.publish_progress(
                    upload_id, body, receipt=True, **options
                )
                return receipt
            except fanwire.PublishError as error:  # only if it is strict
                if "stale" in str(error):
                    return None
                await asyncio.sleep(AGAIN_AFTER_SECONDS)

    @property
    def given_up(self) -> int:
        """How many messages it has counted as not to be delivered."""
        if self.is_strict:
            return 0  # it raised each time, and the message was published again
        stats = self.publisher.stats()
        return sum(stats[name] for name in GIVEN_UP)

    @property
    def excused(self) -> int:
        """How many messages it has given up without a receipt that says which."""
        return self.given_up - self._known_failed


@dataclass
class _Copy:
    """What a second worker is to publish, too."""

    message: Published
    step: Step
    body: dict[str, Any]


class _Line:
    """An upload that is being published.

    Args:
        again: who publishes all of it, too, if somebody does.
        may_be_given_up: whether a message may fail, and its version be free again.
    """

    def __init__(
        self,
        upload_id: str,
        plan: Upload,
        ledger: Ledger,
        clock: Clock,
        again: Writer | None,
        *,
        may_be_given_up: bool,
    ) -> None:
        self._may_be_given_up = may_be_given_up
        self.upload_id = upload_id
        self.plan = plan
        self.again = again
        self._copies: asyncio.Queue[_Copy] = asyncio.Queue()
        self._ledger = ledger
        self._clock = clock
        # Who publishes a message and then again, with the same key, is not to overtake itself.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._version = 0
        self._newest: str | None = None
        self.is_final = False

    async def say(self, writer: Writer, step: Step) -> str | None:
        async with self._turns[writer.name]:
            if self.is_final:
                return None  # a burst that comes too late
            version = None
            stale = step.stale and self._version > 0 and writer.remembers
            if self.plan.versioned and step.kind is Kind.PROGRESS:
                self._version += not stale
                version = self._version
            message = self._ledger.publish(self.upload_id, writer.name, step.kind, self._clock.now)
            if stale:
                message.forbidden, message.stale_to = True, self._newest
            elif version is not None:
                self._newest = message.uid
            self.is_final = step.kind.is_final
            body = _body(message, step.padding)
            if self.again is not None:
                message.again = self.again.name
                version = message.number
                self._copies.put_nowait(_Copy(message, step, body))
            status = await writer.publish(message, step, body, version)
            if step.twice and writer.remembers:
                await writer.publish(message, step, body, version)
            self._check(message, status)
            return status

    async def say_again(self) -> None:
        """What the second worker does: the same, a little later or sooner."""
        assert self.again is not None
        is_final = False
        while not is_final:
            copy = await self._copies.get()
            await asyncio.sleep(copy.message.number % 5 * AGAIN_AFTER_SECONDS / 5)
            step = replace(copy.step, how="receipt")
            await self.again.publish(copy.message, step, copy.body, copy.message.number)
            is_final = copy.step.kind.is_final

    def _check(self, message: Published, status: str | None) -> None:
        if self._ledger.has_lost(self.upload_id):
            return  # with the history went the newest version
        if message.again:
            return  # whichever of the two workers is late is called stale
        taken = status in ("published", "duplicate")
        if message.forbidden and taken and not self._may_be_given_up:
            self._ledger.complaints.append(f"{message.uid} is stale, and was {status}")
        if not message.forbidden and status == "stale":
            self._ledger.complaints.append(f"{message.uid} is not stale, and was called so")


class Writers:
    """All writers of a run.

    Args:
        safe: set when nothing will make the broker forget any more. Before, no upload ends: of a
            final message that was forgotten nobody could know.
        permitted: set when it will refuse nothing for good any more. Before, no upload ends that
            is not published by somebody who tries again.
        unblocked: set when no event loop will stand still any more. Before, the first upload goes
            on: something has to come meanwhile.
    """

    def __init__(
        self,
        plan: Plan,
        names: list[str],
        url: str,
        ledger: Ledger,
        clock: Clock,
        safe: asyncio.Event,
        permitted: asyncio.Event,
        unblocked: asyncio.Event,
    ) -> None:
        history = fanwire.History(size=plan.history_size) if ledger.recorded else None
        self._writers = [
            Writer(f"w{index}", writing, url, history) for index, writing in enumerate(plan.writers)
        ]
        self._lines = [
            _Line(
                name,
                upload,
                ledger,
                clock,
                self._again(upload) if ledger.recorded else None,
                may_be_given_up=plan.refuses,
            )
            for name, upload in zip(names, plan.uploads, strict=True)
        ]
        self._ledger = ledger
        self._clock = clock
        self._safe = safe
        self._permitted = permitted
        self._unblocked = unblocked

    def _again(self, upload: Upload) -> Writer | None:
        return None if upload.again is None else self._writers[upload.again]

    async def publish(self) -> None:
        """Publishes all of it from the clock's start. When it returns, all has been accepted."""
        await self._clock.until(0.0)
        async with asyncio.TaskGroup() as publishing:
            for line in self._lines:
                publishing.create_task(self._publish(line))

    async def _publish(self, line: _Line) -> None:
        async with asyncio.TaskGroup() as publishing:
            publishing.create_task(self._publish_once(line))
            if line.again is not None:
                publishing.create_task(line.say_again())

    async def _publish_once(self, line: _Line) -> None:
        writer = self._writers[line.plan.writer]
        async with asyncio.TaskGroup() as publishing:
            if line.plan.second is not None:
                second = self._writers[line.plan.second]
                publishing.create_task(self._publish_notes(line, second))
            for step in line.plan.steps:
                await asyncio.sleep(step.pause_seconds)
                await line.say(writer, step)
        if line is self._lines[0]:
            further = Step(Kind.PROGRESS, FURTHER_AFTER_SECONDS, how="receipt")
            while not self._unblocked.is_set():
                await asyncio.sleep(further.pause_seconds)
                await line.say(writer, further)
        await self._safe.wait()
        if not writer.is_strict:
            await self._permitted.wait()
        await line.say(writer, Step(line.plan.ending, 0.0, how="receipt"))

    async def _publish_notes(self, line: _Line, writer: Writer) -> None:
        count = line.plan.second_notes
        for _ in range(count):
            await asyncio.sleep(PUBLISHING_SECONDS / count)
            await line.say(writer, Step(Kind.NOTE, 0.0, how="receipt"))
        # The other writer ends the upload, so nothing may be left in the outbox of this one. What
        # is published later goes out later.
        flush = Step(Kind.PROGRESS, FLUSHED_POLL_SECONDS, how="receipt")
        status = None
        while status != "published":
            await asyncio.sleep(flush.pause_seconds)
            status = await line.say(writer, flush)

    async def burst(self) -> None:
        """Much at once, of all uploads that have not ended, and progress after it."""
        async with asyncio.TaskGroup() as publishing:
            for line in self._lines:
                writer = self._writers[line.plan.writer]
                if not writer.is_strict:
                    publishing.create_task(self._burst(line, writer))

    async def _burst(self, line: _Line, writer: Writer) -> None:
        for _ in range(BURST_NOTES):
            await line.say(writer, Step(Kind.NOTE, 0.0, BURST_PADDING, how="nowait"))
        await line.say(writer, Step(Kind.PROGRESS, 0.0, how="nowait"))

    async def stop(self) -> None:
        async with asyncio.TaskGroup() as stopping:
            for writer in self._writers:
                stopping.create_task(writer.publisher.stop(drain_seconds=DRAIN_SECONDS))
        self._ledger.excused = {writer.name: writer.excused for writer in self._writers}

    @property
    def given_up(self) -> int:
        """How many messages were counted as not to be delivered."""
        return sum(writer.given_up for writer in self._writers)

    def figures(self) -> Counter[str]:
        """The counters of all publishers together."""
        figures: Counter[str] = Counter()
        for writer in self._writers:
            stats = writer.publisher.stats()
            figures.update({name: n for name, n in stats.items() if isinstance(n, int)})
        return figures


def _body(message: Published, padding: int) -> dict[str, Any]:
    told = {"action": message.kind.value, "uid": message.uid, "text": "x" * padding}
    if message.kind is Kind.PROGRESS:
        percent = min(message.number, 100)
        payload = {"upload_id": message.upload, "progress_percent": percent}
        return {**told, "payload": payload}
    return {**told, "upload_id": message.upload}
