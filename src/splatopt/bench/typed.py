"""Values from TOML, JSON and the command line, as the dataclass field that they are for wants them."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Collection, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from splatopt.core.checks import InputError, nearest_names

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def check_names(names: Collection[str], known: Collection[str], what: str, where: str) -> None:
    """Make sure that all of ``names`` are known.

    Args:
        names: What was given.
        known: What there is.
        what: Word for one of them.
        where: Where they stand, for the message.

    Raises:
        InputError: One is not; names the nearest that are.
    """
    for name in names:
        if name not in known:
            raise InputError(f"{where}: there is no {what} {name!r}; {nearest_names(name, known)}")


def typed_fields(
    values: Mapping[str, Any], kind: type, known: Collection[str], what: str, where: str
) -> dict[str, Any]:
    """Return ``values`` with each in the type of its field.

    Args:
        values: Field names and what was given for them.
        kind: The dataclass.
        known: Names of those of its fields that may be given.
        what: Word for one of them.
        where: Where they stand, for messages.

    Raises:
        InputError: A name is unknown, or a value has another type.
    """
    check_names(values, known, what, where)
    hints = get_type_hints(kind)
    return {name: typed(value, hints[name], f"{where}: {name}") for name, value in values.items()}


def field_names(kind: type) -> set[str]:
    """Names of a dataclass's fields."""
    return {item.name for item in dataclasses.fields(kind)}


def typed(value: Any, hint: Any, where: str) -> Any:  # noqa: PLR0911 - one for each kind of annotation
    """Return ``value`` as the type ``hint`` wants it: a list as a tuple, a word as a member of an enumeration.

    Args:
        value: What was read.
        hint: The annotation: a plain type, an enumeration, a tuple, or one of these or None.
        where: What it is, for the message.

    Raises:
        InputError: It is of another type.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return typed(value, inner[0], where)
    if origin in (Union, types.UnionType):
        return None if value is None else typed(value, next(one for one in inner if one is not type(None)), where)
    if origin is tuple:
        return _typed_tuple(value, inner, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _member(value, hint, where)
    fits = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if fits and not (isinstance(value, float) and math.isnan(value)):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    raise InputError(f"{where} must be {_WORDS.get(hint, hint.__name__)}, got {value!r}")


def _typed_tuple(value: Any, inner: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{where} must be a list, got {value!r}")
    hints = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
    if len(hints) != len(value):
        raise InputError(f"{where} must hold {len(hints)} values, got {len(value)}")
    return tuple(typed(one, hint, where) for one, hint in zip(value, hints, strict=True))


def _member(value: Any, kind: type[Enum], where: str) -> Enum:
    if isinstance(value, kind):
        return value
    known = [str(member.value) for member in kind]
    if value not in known:
        raise InputError(f"{where} must be {' or '.join(known)}, got {value!r}")
    return kind(value)
