"""Finds contenders and workloads by name, in the order of the report."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from catalogue import ENTRIES
from contract import ContenderModule, Workload

HERE = Path(__file__).parent

# The order of the report; a file that is not named here comes after these.
WORKLOADS_FIRST = (
    "unwatched",
    "watched_2",
    "watched",
    "fanout",
    "responsiveness",
    "publish_serial",
    "publish_50",
    "publish_50_gather",
    "publish_50_dict",
    "publish_nowait",
    "events",
    "topics",
    "postgres",
    "end_to_end",
    "memory",
    "growth",
    "maps",
    "idle",
    "recovery_publish",
    "recovery_listen",
    "recovery_snapshot",
    "recovery_resume",
)
# Workloads in a file of another name.
FILES = {"watched_2": "watched"}
# Several workloads under one name.
GROUPS = {"recovery": [name for name in WORKLOADS_FIRST if name.startswith("recovery_")]}


def contender_names() -> list[str]:
    return list(ENTRIES)


def workload_names() -> list[str]:
    found = {path.stem for path in (HERE / "workloads").glob("[!_]*.py")} | FILES.keys()
    return [name for name in WORKLOADS_FIRST if name in found] + sorted(
        found.difference(WORKLOADS_FIRST)
    )


def of_groups(names: Iterable[str]) -> list[str]:
    """The workloads that are meant, in the order they were named."""
    each = (workload for name in names for workload in GROUPS.get(name, [name]))
    return list(dict.fromkeys(each))


def contender(name: str) -> ContenderModule:
    return cast("ContenderModule", import_module(f"contenders.{name}"))


def workload(name: str) -> Workload:
    module: Any = import_module(f"workloads.{FILES.get(name, name)}")
    offered: tuple[Workload, ...] = getattr(module, "WORKLOADS", (module,))
    (found,) = [each for each in offered if name == each.NAME]
    return found
