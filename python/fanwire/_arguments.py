"""Arguments of the Python part, checked, with errors that name them."""

from collections.abc import Callable
from math import inf
from operator import index
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


def number(name: str, value: Any) -> float:
    """Return what must be a number, finite and not negative, as an int or a float.

    Other kinds, such as Decimal, do not mix with floats.

    Raises:
        TypeError, ValueError: it is none.
    """
    plain = value
    try:
        fits = 0 <= value < inf
        if fits and type(value) not in (int, float):
            plain = index(value) if hasattr(value, "__index__") else float(value)
            fits = plain < inf
    except TypeError:
        raise TypeError(f"{name} must be a number, not {type(value).__name__}") from None
    except OverflowError:  # a fraction that is larger than any float
        fits = False
    if not fits:
        raise ValueError(f"{name} must be finite and at least 0, not {value!r}")
    return plain  # type: ignore[no-any-return] # an int or a float by now


def function(name: str, value: _Function | None) -> _Function | None:
    """Return what must be callable, or None.

    Raises:
        TypeError: it is neither.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable, not {type(value).__name__}")
    return value
