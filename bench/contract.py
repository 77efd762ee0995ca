"""What a contender and a workload are, and what passes between them.

A contender is a file in `contenders/` with NAME, TITLE, PACKAGES, CANNOT and `build(url)`.
A workload is a file in `workloads/` with NAME, TITLE, ROWS and `run(session)`.
"""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from load_client import LoadClient


class Manager(Protocol):
    def connect(self, user_id: str, websocket: Any) -> Awaitable[None]: ...
    def disconnect(self, user_id: str, websocket: Any) -> Awaitable[None]: ...
    def subscribe_upload(self, user_id: str, upload_id: str) -> Awaitable[None]: ...
    def unsubscribe_upload(self, user_id: str, upload_id: str) -> Awaitable[None]: ...


class Publisher(Protocol):
    def start(self) -> Awaitable[None]: ...
    def stop(self) -> Awaitable[None]: ...
    def publish_progress(self, upload_id: str, message: Any) -> Awaitable[None]: ...


@dataclass(frozen=True)
class Contender:
    """One side, built and not started. Workloads call its parts directly: no adapter in between."""

    manager: Manager
    publisher: Publisher


class ContenderModule(Protocol):
    NAME: str
    TITLE: str
    PACKAGES: tuple[str, ...]  # distributions whose versions the report names
    CANNOT: Mapping[str, str]  # workload -> what the table says in place of a figure

    def build(self, url: str) -> Contender: ...


@dataclass(frozen=True)
class Row:
    """One figure of a workload, and the ratio to the reference that fanwire must reach."""

    key: str
    title: str
    unit: str
    better: Literal["lower", "higher"] = "lower"
    target: float | None = None


@dataclass(frozen=True)
class Session:
    """What a workload works with: one contender, the load generator, and how much to do."""

    contender: Contender
    load: LoadClient
    quick: bool
    remarks: list[str]

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full


class WorkloadModule(Protocol):
    NAME: str
    TITLE: str
    ROWS: tuple[Row, ...]

    def run(self, session: Session) -> Awaitable[Mapping[str, float]]: ...
