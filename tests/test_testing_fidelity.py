"""The recorder beside the backend it stands in for: an app's handlers hear the same of both."""

import asyncio
from collections import defaultdict
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import fanwire
from fanwire.testing import RecordingPubSub
from tests.deadlines import until

PubSub = RecordingPubSub | fanwire.MemoryPubSub

SESSIONS = st.sampled_from(["ada", "ben", "eve"])
TOPICS = st.sampled_from(["news", "sport"])
OPERATIONS = st.one_of(
    st.tuples(st.just("subscribe_topic"), SESSIONS, TOPICS),
    st.tuples(st.just("unsubscribe_topic"), SESSIONS, TOPICS),
    st.tuples(st.just("unsubscribe_all"), SESSIONS),
    st.tuples(st.just("broadcast"), TOPICS, st.none() | SESSIONS),
)
# Who broadcasts on "sport" from inside the handler of "news".
ECHOES = st.dictionaries(SESSIONS, st.booleans())


class Side:
    """A backend, and what each session heard: topic, message, and which of its handlers it was."""

    def __init__(
        self, pubsub: RecordingPubSub | fanwire.MemoryPubSub, echoes: dict[str, bool]
    ) -> None:
        self.pubsub = pubsub
        self.echoes = echoes
        self.heard: defaultdict[str, list[tuple[str, Any, int]]] = defaultdict(list)
        self.running = 0

    def handler(self, session_id: str, version: int) -> fanwire.TopicHandler:
        async def handle(topic: str, message: Any) -> None:
            self.running += 1
            self.heard[session_id].append((topic, message, version))
            await asyncio.sleep(0)
            if topic == "news" and self.echoes.get(session_id):
                await self.pubsub.broadcast("sport", (message, session_id))
            self.running -= 1

        return handle

    async def do(self, number: int, operation: tuple[Any, ...]) -> None:
        match operation:
            case ("subscribe_topic", session_id, topic):
                handler = self.handler(session_id, number)
                await self.pubsub.subscribe_topic(session_id, topic, handler)
            case ("broadcast", topic, except_session_id):
                await self.pubsub.broadcast(topic, number, except_session_id=except_session_id)
            case (name, *arguments):
                await getattr(self.pubsub, name)(*arguments)

    # What two sessions broadcast side by side has no order between them.
    def in_any_order(self) -> dict[str, list[tuple[str, str, int]]]:
        return {
            session_id: sorted((topic, repr(message), version) for topic, message, version in heard)
            for session_id, heard in self.heard.items()
        }


@settings(max_examples=60)
@given(st.lists(OPERATIONS, max_size=30))
def test_the_same_operations_reach_the_same_handlers_in_the_same_order(
    operations: list[tuple[Any, ...]],
) -> None:
    async def both() -> None:
        recorder, memory = Side(RecordingPubSub(), {}), Side(fanwire.MemoryPubSub(), {})
        for number, operation in enumerate(operations):
            await recorder.do(number, operation)
            await memory.do(number, operation)
            await until(lambda: memory.heard == recorder.heard and not memory.running)
        assert recorder.running == 0

    asyncio.run(both())


@settings(max_examples=60)
@given(st.lists(OPERATIONS, max_size=20), ECHOES)
def test_and_so_does_what_handlers_broadcast(
    operations: list[tuple[Any, ...]], echoes: dict[str, bool]
) -> None:
    async def both() -> None:
        recorder, memory = Side(RecordingPubSub(), echoes), Side(fanwire.MemoryPubSub(), echoes)
        for number, operation in enumerate(operations):
            await recorder.do(number, operation)
            await memory.do(number, operation)
            await until(
                lambda: memory.in_any_order() == recorder.in_any_order() and not memory.running
            )
        assert recorder.running == 0

    asyncio.run(both())
