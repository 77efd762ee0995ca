"""Types that applications put into messages."""

import dataclasses
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from pydantic import BaseModel, ConfigDict, field_serializer


class Colour(Enum):
    RED = "red"
    MIXED = (1, "two")


class Level(IntEnum):
    HIGH = 3


class Stage(StrEnum):
    QUEUED = "queued"


class Point(NamedTuple):
    x: int
    y: float


@dataclasses.dataclass
class Inner:
    when: datetime
    tags: list[str]


@dataclasses.dataclass
class Outer:
    id: UUID
    inner: Inner
    colour: Colour = Colour.RED


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    text: str
    number: int | None = None


class Leaf(BaseModel):
    score: float
    stage: Stage = Stage.QUEUED


class Tree(BaseModel):
    id: UUID
    at: datetime
    price: Decimal
    leaves: list[Leaf]
    by_name: dict[str, Leaf]


class Custom(BaseModel):
    model_config = ConfigDict(ser_json_timedelta="float")

    secret: str
    length: timedelta

    @field_serializer("secret")
    def _hide(self, value: str) -> str:
        return "*" * len(value)


class Point3(msgspec.Struct):
    x: int
    when: datetime
    more: list["Point3"] = []


ID = UUID("12345678-1234-5678-1234-567812345678")
NOON = datetime(2026, 2, 20, 12, 0, 0)
TREE = Tree(
    id=ID,
    at=NOON.replace(tzinfo=UTC),
    price=Decimal("10.50"),
    leaves=[Leaf(score=0.5), Leaf(score=1)],
    by_name={"ü": Leaf(score=2.25)},
)


class Words(str):
    pass


class Amount(int):
    pass


class Ratio(float):
    pass


class Items(list[Any]):
    pass
