"""Bounds of numbers, declared as metadata of the dataclass fields that hold them and checked by one function."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from splatopt.core.checks import InputError

MIN, MAX = "min", "max"
"""Keys of a field's metadata."""


def bounds(min: float, max: float | None = None) -> dict[str, object]:
    """Return metadata of a field whose number must lie within [``min``, ``max``], both included.

    The number must be finite as well. A field that holds None is not checked, and one that holds a tuple is checked
    number by number.

    Args:
        min: The smallest value that is allowed.
        max: The largest value that is allowed; none when None.
    """
    return {MIN: min} if max is None else {MIN: min, MAX: max}


def check_bounds(options: Any) -> None:
    """Make sure that every number of a dataclass lies within the bounds that its field declares.

    Raises:
        InputError: One does not; names the option.
    """
    for item in fields(options):
        if MIN not in item.metadata:
            continue
        held = getattr(options, item.name)
        for value in held if isinstance(held, tuple) else (held,):
            _check(item.name, value, item.metadata[MIN], item.metadata.get(MAX))


def _check(name: str, value: float | None, low: float, high: float | None) -> None:
    if value is None:
        return
    if not low <= value < float("inf"):
        raise InputError(f"{flag(name)} must be at least {low}, got {value}")
    if high is not None and value > high:
        raise InputError(f"{flag(name)} must be at most {high}, got {value}")


def flag(name: str) -> str:
    """Return how a setting is spelt on the command line, such as ``--view-batch``."""
    return "--" + name.replace("_", "-")
