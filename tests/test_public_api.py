"""The public names: all documented, and with the signatures that the stub promises."""

import ast
import importlib.metadata
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fanwire

STUB = ast.parse((Path(fanwire.__file__).parent / "_core.pyi").read_text())
CLASSES = ["ConnectionManager", "UploadProgressPublisher"]
FUNCTIONS = ["init_manager", "get_manager", "init_publisher", "get_publisher"]
ERRORS = ["Error", "ConfigError", "BrokerError", "PublishError"]


Function = ast.FunctionDef | ast.AsyncFunctionDef


def members(name: str) -> Iterator[Function]:
    """What the stub says a class has."""
    for node in STUB.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            yield from (item for item in node.body if isinstance(item, Function))


def is_property(node: Function) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)


def parameters_of_stub(node: Function) -> list[tuple[str, str, object]]:
    arguments, found = node.args, list[tuple[str, str, object]]()
    positional = [*arguments.posonlyargs, *arguments.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    for argument, default in zip(positional, [*missing, *arguments.defaults], strict=True):
        if argument.arg == "self":
            continue
        kind = "POSITIONAL_ONLY" if argument in arguments.posonlyargs else "POSITIONAL_OR_KEYWORD"
        found.append((argument.arg, kind, literal(default)))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append((argument.arg, "KEYWORD_ONLY", literal(default)))
    if arguments.kwarg is not None:
        found.append((arguments.kwarg.arg, "VAR_KEYWORD", "none given"))
    return found


def literal(default: ast.expr | None) -> object:
    return "none given" if default is None else ast.literal_eval(default)


def is_overload(node: Function) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)


def parameters_of_binary(function: Any) -> list[tuple[str, str, object]]:
    return [
        (p.name, p.kind.name, "none given" if p.default is p.empty else p.default)
        for p in inspect.signature(function).parameters.values()
        if p.name != "self"
    ]


METHODS = [(name, node) for name in CLASSES for node in members(name)]


@pytest.mark.parametrize("name", [*CLASSES, *FUNCTIONS, *ERRORS, "__version__"])
def test_the_name_is_public(name: str) -> None:
    assert name in fanwire.__all__
    assert hasattr(fanwire, name)


@pytest.mark.parametrize("name", sorted(set(fanwire.__all__) - {"__version__"}))
def test_every_public_name_has_a_docstring(name: str) -> None:
    documentation = inspect.getdoc(getattr(fanwire, name))
    assert documentation is not None and len(documentation.split()) >= 4, documentation


@pytest.mark.parametrize(
    ("name", "node"),
    [(name, node) for name, node in METHODS if node.name != "__init__"],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_every_member_has_a_docstring(name: str, node: Function) -> None:
    documentation = inspect.getdoc(getattr(getattr(fanwire, name), node.name))
    assert documentation is not None and len(documentation.split()) >= 4, documentation


@pytest.mark.parametrize(
    ("name", "node"),
    [(n, m) for n, m in METHODS if not is_property(m) and m.name != "__init__"],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_methods_have_the_signatures_of_the_stub(name: str, node: Function) -> None:
    binary = parameters_of_binary(getattr(getattr(fanwire, name), node.name))
    stub = parameters_of_stub(node)
    if is_overload(node):  # each says for itself what is given
        assert [parameter[:2] for parameter in binary] == [parameter[:2] for parameter in stub]
    else:
        assert binary == stub


@pytest.mark.parametrize("name", CLASSES)
def test_constructors_have_the_signatures_of_the_stub(name: str) -> None:
    (constructor,) = [node for node in members(name) if node.name == "__init__"]
    assert parameters_of_binary(getattr(fanwire, name)) == parameters_of_stub(constructor)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_the_signatures_of_the_stub(name: str) -> None:
    (node,) = [n for n in STUB.body if isinstance(n, Function) and n.name == name]
    assert parameters_of_binary(getattr(fanwire, name)) == parameters_of_stub(node)


@pytest.mark.parametrize("name", CLASSES)
def test_nothing_public_is_missing_in_the_stub(name: str) -> None:
    public = {member for member in vars(getattr(fanwire, name)) if not member.startswith("_")}
    assert public == {node.name for node in members(name) if not node.name.startswith("_")}


@pytest.mark.parametrize("name", CLASSES)
def test_properties_cannot_be_set(name: str) -> None:
    instance = getattr(fanwire, name)(*(["memory://"] if name == CLASSES[1] else []))
    for node in members(name):
        if is_property(node):
            with pytest.raises(AttributeError):
                setattr(instance, node.name, None)


def test_track_takes_what_its_tracker_takes() -> None:
    """The arguments stand in the binary, in the stub and in Python."""
    made_of = parameters_of_binary(fanwire.Tracker)
    assert (made_of[0][0], made_of[-1][0]) == ("publisher", "clock")
    assert parameters_of_binary(fanwire.UploadProgressPublisher.track) == made_of[1:-1]


def test_a_tracker_is_documented() -> None:
    names = [name for name in dir(fanwire.Tracker) if not name.startswith("_")]
    assert {"advance", "stage", "message", "wrap", "percent"} <= set(names)
    for name in names:
        documentation = inspect.getdoc(getattr(fanwire.Tracker, name))
        assert documentation is not None and len(documentation) > 10, name


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        ("ConfigError", ValueError),
        ("BrokerError", ConnectionError),
        ("PublishError", ConnectionError),
    ],
)
def test_errors_are_also_what_a_caller_would_catch_anyway(
    error: str, builtin: type[Exception]
) -> None:
    kind = getattr(fanwire, error)
    assert issubclass(kind, fanwire.Error)
    assert issubclass(kind, builtin)


@pytest.mark.parametrize("name", [*CLASSES, *FUNCTIONS, *ERRORS])
def test_names_say_where_they_live(name: str) -> None:
    assert getattr(fanwire, name).__module__.split(".")[0] == "fanwire"


def test_the_version_is_that_of_the_distribution() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", fanwire.__version__)
    assert importlib.metadata.version("fanwire") == fanwire.__version__


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(fanwire.__file__).parent / "py.typed").exists()


def test_repr_says_what_matters() -> None:
    publisher = fanwire.UploadProgressPublisher("redis://app:hunter2@localhost:1/0")
    assert "UploadProgressPublisher" in repr(publisher)
    assert "redis://app:***@localhost:1/0" in repr(publisher)
    assert "hunter2" not in repr(publisher)
    assert publisher.url == "redis://app:***@localhost:1/0"
    assert "ConnectionManager" in repr(fanwire.ConnectionManager())
