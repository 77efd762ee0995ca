"""The pure-Python reference in the shape that fanwire stands in for."""

from contract import Contender
from reference.manager import ConnectionManager
from reference.publisher import UploadProgressPublisher

NAME = "reference"
TITLE = "pure-Python reference (redis-py, get_message)"
PACKAGES = ("redis", "hiredis", "pydantic")
CANNOT = {"publish_50_dict": "cannot: messages are models"}


def build(url: str) -> Contender:
    manager = ConnectionManager()
    return Contender(manager, UploadProgressPublisher(url, manager))
