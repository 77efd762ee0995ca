"""fanwire itself, as an app uses it."""

from collections.abc import Mapping

from contract import Contender

import fanwire
from fanwire import _core

NAME = "fanwire"
TITLE = "fanwire"
PACKAGES = ("fanwire",)
CANNOT: Mapping[str, str] = {}


def build(url: str) -> Contender:
    profile = getattr(_core, "__build_profile__", "unknown")
    if profile != "release":
        raise SystemExit(f"fanwire is a {profile} build: measure a release build")
    manager = fanwire.ConnectionManager()
    return Contender(manager, fanwire.UploadProgressPublisher(url, manager=manager))
