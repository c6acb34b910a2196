"""Checks of arguments: one of several names, a rate, a count."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real

from DeepLabSegLib.errors import InvalidInput

__all__ = ["check_choice", "check_count", "check_kind", "check_rate", "counts", "is_count", "kind_of", "known_name"]


def check_choice(argument: str, value: object, choices: Iterable[object]) -> None:
    """Raise `InvalidInput` unless `value` is one of `choices`."""
    names = list(choices)
    if value not in names:
        raise InvalidInput(f"{argument} is {value!r}; choose one of {', '.join(map(repr, names))}")


def known_name(argument: str, value: str, choices: Iterable[object]) -> str:
    """The one of `choices` that `value` is, in any case; raise `InvalidInput` where it is none."""
    name = value.lower() if isinstance(value, str) else value
    check_choice(argument, name, choices)
    return name


def check_kind(argument: str, value: object, kind: type) -> None:
    """Raise `InvalidInput` unless `value` is a `kind`."""
    if not isinstance(value, kind):
        raise InvalidInput(f"{argument} is {value!r}; give a {kind.__name__}")


def check_rate(argument: str, value: float) -> None:
    """Raise `InvalidInput` unless `value` is in [0, 1)."""
    if not isinstance(value, Real) or not 0 <= value < 1:
        raise InvalidInput(f"{argument} is {value!r}; it must be in [0, 1)")


def check_count(argument: str, value: object) -> None:
    """Raise `InvalidInput` unless `value` is a positive integer."""
    if not is_count(value):
        raise InvalidInput(f"{argument} is {value!r}; it must be a positive integer")


def counts(argument: str, values: object) -> tuple[int, ...]:
    """`values` as Python's integers; raise `InvalidInput` unless they are one or more positive ones, in a list."""
    if not isinstance(values, Iterable) or not (listed := tuple(values)) or not all(map(is_count, listed)):
        raise InvalidInput(f"{argument} is {values!r}; give one or more positive integers in a list")
    return tuple(map(int, listed))


def is_count(value: object) -> bool:
    """Whether `value` is a positive integer, Python's or numpy's."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


def kind_of(value: object) -> str:
    """The class of `value`, with its package where another one may have a class of that name, as SimpleITK's Image."""
    package = type(value).__module__.partition(".")[0]
    known = package in ("builtins", "numpy", __name__.partition(".")[0])
    return type(value).__name__ if known else f"{package}.{type(value).__name__}"
