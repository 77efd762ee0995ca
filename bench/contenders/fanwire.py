"""fanwire itself, as an app uses it."""

from inspect import signature
from typing import Any

from contract import Contender

import fanwire
from fanwire import _core


def build(url: str, *, history: bool = False) -> Contender:
    profile = getattr(_core, "__build_profile__", "unknown")
    if profile != "release":
        raise SystemExit(f"fanwire is a {profile} build: measure a release build")
    # Every message is delivered and counted: coalescing would save fanwire some of the work.
    options: dict[str, Any] = {}
    if "coalesce" in signature(fanwire.ConnectionManager).parameters:
        options["coalesce"] = False
    manager = fanwire.ConnectionManager(**options)
    kept = fanwire.History() if history else None
    publisher = fanwire.UploadProgressPublisher(url, manager=manager, history=kept)
    return Contender(
        manager,
        publisher,
        topics=lambda: fanwire.RedisPubSub(url),
        postgres=fanwire.PostgresPubSub,
        events=fanwire.EventPublisher,
        another=build,
    )
