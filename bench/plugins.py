"""Finds contenders and workloads: one file each, nothing to register."""

from importlib import import_module
from pathlib import Path
from typing import cast

from contract import ContenderModule, WorkloadModule

HERE = Path(__file__).parent

# The order of the report; a file that is not named here comes after these.
CONTENDERS_FIRST = ("fanwire", "reference")
WORKLOADS_FIRST = ("unwatched", "watched", "fanout", "maps", "publish_serial", "publish_50")


def contender_names() -> list[str]:
    return _names("contenders", CONTENDERS_FIRST)


def workload_names() -> list[str]:
    return _names("workloads", WORKLOADS_FIRST)


def contender(name: str) -> ContenderModule:
    return cast("ContenderModule", import_module(f"contenders.{name}"))


def workload(name: str) -> WorkloadModule:
    return cast("WorkloadModule", import_module(f"workloads.{name}"))


def _names(folder: str, first: tuple[str, ...]) -> list[str]:
    found = {path.stem for path in (HERE / folder).glob("[!_]*.py")}
    return [name for name in first if name in found] + sorted(found.difference(first))
