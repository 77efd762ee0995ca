"""What the figures were measured on, and with."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import environments
from catalogue import Entry

_VERSIONS = (
    "import json, sys; from importlib.metadata import version; "
    "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
)
_FANWIRE = "from fanwire import _core; print(_core.__version__, _core.__build_profile__)"


def describe(redis_version: str) -> dict[str, str]:
    return {
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.2f} (1 minute)",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "redis-server": redis_version,
    }


def versions(entries: Iterable[Entry], environment: Mapping[str, str]) -> dict[str, str]:
    """Version of every package that is measured, from the environment it is measured in.

    A library may hold redis-py to another version than the reference has.
    """
    found: dict[str, str] = {}
    wanted: dict[str, dict[str, None]] = {}
    for entry in entries:
        wanted.setdefault(entry.group, {}).update(dict.fromkeys(entry.packages))
    for group, packages in wanted.items():
        names = [name for name in packages if name != "fanwire"]
        own = json.loads(_run(group, _VERSIONS, *names, environment=environment))
        found |= {name: number for name, number in own.items() if name not in found}
    shared = ("uvicorn", "websockets", "starlette", "pydantic")
    shown: dict[str, str] = json.loads(
        _run("reference", _VERSIONS, *shared, environment=environment)
    )
    return {**found, **shown}


def fanwire_version(environment: Mapping[str, str]) -> tuple[str, str]:
    """Version and build profile of the fanwire that is measured."""
    number, profile = _run("reference", _FANWIRE, environment=environment).split()
    return number, profile


def _run(group: str, code: str, *arguments: str, environment: Mapping[str, str]) -> str:
    command = [str(environments.python_of(group)), "-c", code, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return done.stdout


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
