"""The pure-Python reference in the shape that fanwire stands in for."""

from contract import Contender
from reference.manager import ConnectionManager
from reference.publisher import UploadProgressPublisher


def build(url: str) -> Contender:
    manager = ConnectionManager()
    return Contender(manager, UploadProgressPublisher(url, manager))
