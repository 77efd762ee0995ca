"""Sessions of an app on a recorder, and what they did in which order."""

from typing import TYPE_CHECKING, Any

from fanwire.testing import RecordingPubSub

if TYPE_CHECKING:
    from fanwire import TopicHandler


async def do_nothing(topic: str, message: Any) -> None:
    """What a session does when it hears something, unless a test gives it something to do."""


class Session:
    """A session of an app: what it heard, and what it does when it hears something."""

    def __init__(self, pubsub: RecordingPubSub, session_id: str, log: list[str]) -> None:
        self.pubsub = pubsub
        self.session_id = session_id
        self.log = log
        self.heard: list[tuple[str, Any]] = []
        self.react: TopicHandler = do_nothing

    async def subscribe(self, *topics: str) -> None:
        for topic in topics:
            await self.pubsub.subscribe_topic(self.session_id, topic, self.handle)

    async def handle(self, topic: str, message: Any) -> None:
        self.log.append(f"{self.session_id} begins {message}")
        self.heard.append((topic, message))
        await self.react(topic, message)
        self.log.append(f"{self.session_id} ends {message}")


class App:
    """A recorder, sessions, and what they did in which order."""

    def __init__(self) -> None:
        self.pubsub = RecordingPubSub()
        self.log: list[str] = []

    def session(self, session_id: str) -> Session:
        return Session(self.pubsub, session_id, self.log)
