"""Arguments of the Python part, checked, with errors that name them."""

from collections.abc import Callable
from math import inf
from typing import Any, TypeVar

__all__ = ["function", "number", "text"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def text(name: str, value: object) -> str:
    """Return what must be a str.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    return value


def number(name: str, value: float) -> float:
    """Return what must be a number of any kind, finite and not negative.

    Raises:
        TypeError, ValueError: it is none.
    """
    try:
        fits = 0 <= value < inf
    except TypeError:
        raise TypeError(f"{name} must be a number, not {type(value).__name__}") from None
    if not fits:
        raise ValueError(f"{name} must be finite and at least 0, not {value!r}")
    return value


def function(name: str, value: _Function | None) -> _Function | None:
    """Return what must be callable, or None.

    Raises:
        TypeError: it is neither.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable, not {type(value).__name__}")
    return value
