"""The pure-Python reference on the fastest path that redis-py has: `listen()` over RESP2."""

from contract import Contender
from reference.manager import ConnectionManager
from reference.publisher import ListeningPublisher

NAME = "reference_listen"
TITLE = "the reference at redis-py's best (listen, RESP2)"
PACKAGES = ("redis", "hiredis", "pydantic")
CANNOT = {
    "maps": "as the reference",
    "publish_serial": "as the reference",
    "publish_50": "as the reference",
    "publish_50_dict": "cannot: messages are models",
}


def build(url: str) -> Contender:
    manager = ConnectionManager()
    return Contender(manager, ListeningPublisher(url, manager))
