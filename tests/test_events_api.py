"""The names for daemons and workers: documented, and with the signatures that the stub promises."""

import inspect
from typing import Any

import pytest

import fanwire
from tests.test_public_api import (
    Function,
    is_property,
    members,
    parameters_of_binary,
    parameters_of_stub,
)

NAME = "EventPublisher"
MEMBERS = list(members(NAME))
METHODS = [node for node in MEMBERS if not is_property(node)]
name_of: Any = lambda node: node.name  # noqa: E731


@pytest.mark.parametrize("node", METHODS, ids=name_of)
def test_methods_have_the_signatures_of_the_stub(node: Function) -> None:
    whole = node.name == "__init__"
    function = fanwire.EventPublisher if whole else getattr(fanwire.EventPublisher, node.name)
    assert parameters_of_binary(function) == parameters_of_stub(node)


@pytest.mark.parametrize("node", [n for n in MEMBERS if n.name != "__init__"], ids=name_of)
def test_every_member_has_a_docstring(node: Function) -> None:
    documentation = inspect.getdoc(getattr(fanwire.EventPublisher, node.name))
    assert documentation is not None and len(documentation.split()) >= 3, documentation


def test_nothing_public_is_missing_in_the_stub() -> None:
    constants = {"CHANNEL_LOGS", "CHANNEL_EVENTS", "CHANNEL_STATS"}
    public = {name for name in vars(fanwire.EventPublisher) if not name.startswith("_")}
    assert public - constants == {n.name for n in MEMBERS if not n.name.startswith("_")}


def test_properties_cannot_be_set() -> None:
    publisher = fanwire.EventPublisher("memory://")
    for node in MEMBERS:
        if is_property(node):
            with pytest.raises(AttributeError):
                setattr(publisher, node.name, None)


def test_everything_in_the_module_has_a_docstring() -> None:
    for name in fanwire.events.__all__:
        documentation = inspect.getdoc(getattr(fanwire.events, name))
        assert documentation is not None and len(documentation.split()) >= 4, name
