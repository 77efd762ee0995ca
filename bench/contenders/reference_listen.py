"""The pure-Python reference on the fastest path that redis-py has: `listen()` over RESP2."""

from contract import Contender
from reference.manager import ConnectionManager
from reference.publisher import ListeningPublisher


def build(url: str) -> Contender:
    manager = ConnectionManager()
    return Contender(manager, ListeningPublisher(url, manager))
