"""The pure-Python reference in the shape that fanwire stands in for."""

from contract import Contender
from reference.events import EventPublisher
from reference.manager import ConnectionManager
from reference.postgres import PostgresPubSub
from reference.publisher import UploadProgressPublisher
from reference.pubsub import RedisPubSub


def build(url: str) -> Contender:
    manager = ConnectionManager()
    publisher = UploadProgressPublisher(url, manager)
    return Contender(
        manager,
        publisher,
        topics=lambda: RedisPubSub(url),
        postgres=PostgresPubSub,
        events=EventPublisher,
    )
