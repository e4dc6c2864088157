"""Values from TOML, JSON and the command line, in the types that they are wanted in."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from collections.abc import Collection, Mapping
from enum import Enum
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

from splatopt.core.checks import InputError, nearest_names, quoted, shown

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
_CHANGED = "the file was changed since it was written"

MAX_LETTERS = 100_000
"""Of a text."""

MAX_SETTING_LETTERS = 10_000
"""Of a text that is a setting, such as a path."""

MAX_ENTRIES = 100_000
"""Of a list."""

MAX_NUMBER = 1e15
"""No number is larger; sums and squares of such numbers are still finite."""

MAX_INTEGER = 2**63 - 1
"""No whole number that is a setting is larger."""

_Dataclass = TypeVar("_Dataclass")


@runtime_checkable
class Dataclass(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


Json: TypeAlias = Any
"""A value of a JSON file; what it is, is known once it was asked for by type."""


# ---------------------------------------------------------------------- fields of dataclasses


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
            raise InputError(f"{where}: there is no {what} {quoted(name)}; {nearest_names(name, known)}")


def typed_fields(
    values: Mapping[str, object], kind: type, known: Collection[str], what: str, where: str
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
    return typed_values(values, get_type_hints(kind), known, what, where)


def typed_values(
    values: Mapping[str, Any], hints: Mapping[str, Any], known: Collection[str], what: str, where: str
) -> dict[str, Any]:
    """Return ``values`` with each in the type of its name.

    Args:
        values: Names and what was given for them.
        hints: The type of each name.
        known: Names that may be given.
        what: Word for one of them.
        where: Where they stand, for messages.

    Raises:
        InputError: A name is unknown, or a value has another type.
    """
    check_names(values, known, what, where)
    return {name: typed(value, hints[name], f"{where}: {name}") for name, value in values.items()}


def field_names(kind: type) -> set[str]:
    """Names of a dataclass's fields."""
    return {item.name for item in dataclasses.fields(kind)}


def read_dataclass(value: object, kind: type[_Dataclass], what: str, where: str) -> _Dataclass:
    """Return the dataclass that a JSON object holds; what it does not name is at its default.

    Args:
        value: What was read.
        kind: The dataclass.
        what: Word for one of its fields.
        where: Where it stands, for messages.

    Raises:
        InputError: It is no object, a name is unknown, a value has another type or is refused by the class.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where} must be an object, got {told(value)}")
    return make(kind, typed_fields(value, kind, field_names(kind), what, where), where)


def make(kind: type[_Dataclass], settings: Mapping[str, object], where: str) -> _Dataclass:
    """Return ``kind`` with ``settings``, whose types were checked.

    Args:
        kind: The dataclass.
        settings: Its fields.
        where: Where they stand, for the message.

    Raises:
        InputError: The class refuses them, or one that it cannot do without is missing.
    """
    required = [
        item.name
        for item in dataclasses.fields(kind)  # type: ignore[arg-type]
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in settings]
    if missing:
        raise InputError(f"{where}: {missing[0]} is missing")
    try:
        return kind(**settings)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def typed(value: object, hint: Any, where: str) -> Any:  # noqa: PLR0911 - one for each kind of annotation
    """Return ``value`` as the type ``hint`` wants it: a list as a tuple, a word as a member of an enumeration.

    Args:
        value: What was read.
        hint: The annotation: a plain type, an enumeration, words, a tuple, or one of these or None.
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
    if origin is Literal:
        return _one_of(value, [str(one) for one in inner], where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        known = {str(member.value): member for member in hint}
        return value if isinstance(value, hint) else known[_one_of(value, list(known), where)]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(typed(value, str, where))
    fits = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if not fits or (isinstance(value, float) and math.isnan(value)):
        raise InputError(f"{where} must be {_WORDS.get(hint, hint.__name__)}, got {told(value)}")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise InputError(f"{where} must be a whole number of at most 63 bits, got {told(value)}")
    if isinstance(value, str) and (len(value) > MAX_SETTING_LETTERS or "\0" in value):
        raise InputError(
            f"{where} must be a text of at most {MAX_SETTING_LETTERS:,} letters, none of them NUL, got {told(value)}"
        )
    return value


def _typed_tuple(value: object, inner: tuple[object, ...], where: str) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{where} must be a list, got {told(value)}")
    hints = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
    if len(hints) != len(value):
        raise InputError(f"{where} must hold {len(hints)} values, got {len(value)}")
    if len(value) > MAX_ENTRIES:
        raise InputError(f"{where} must hold at most {MAX_ENTRIES:,} values, got {len(value):,}")
    return tuple(typed(one, hint, where) for one, hint in zip(value, hints, strict=True))


def _one_of(value: object, known: list[str], where: str) -> str:
    if value not in known:
        raise InputError(f"{where} must be {' or '.join(known)}, got {told(value)}")
    return str(value)


def told(value: object) -> str:
    """Return a value of a file as a message tells it: what it is, and no more of it than a few words."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list | tuple):
        return f"a list of {len(value):,}"
    if isinstance(value, Mapping):
        return f"an object of {len(value):,}"
    return "null" if value is None else shown(value)[:80]


# ---------------------------------------------------------------------- objects without a class


class Fields:
    """An object of a JSON file, whose entries are asked for by name and type."""

    def __init__(self, value: object, where: str) -> None:
        """Look into ``value``.

        Args:
            value: What was read.
            where: The file and the place in it, for messages.

        Raises:
            InputError: It is no object.
        """
        if not isinstance(value, dict):
            raise InputError(f"{where} must be an object, got {told(value)}; {_CHANGED}")
        self.values: dict[str, Json] = value
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def refusal(self, name: str, wanted: str) -> InputError:
        """Return the error that says that ``name`` must be ``wanted``."""
        came = told(self.values[name]) if name in self.values else "nothing"
        return InputError(f"{self.where}: {name} must be {wanted}, got {came}; {_CHANGED}")

    def text(self, name: str) -> str:
        """Return a text."""
        value = self.values.get(name)
        if not isinstance(value, str) or len(value) > MAX_LETTERS:
            raise self.refusal(name, "a text")
        return value

    def number(self, name: str, minimum: float = -MAX_NUMBER, maximum: float = MAX_NUMBER) -> float:
        """Return a number from ``minimum`` to ``maximum``."""
        value = self.values.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise self.refusal(name, "a number of a reasonable size" + f", at least {minimum:g}" * (minimum >= 0))
        return value

    def any_number(self, name: str) -> float:
        """Return a number that is finite, however large."""
        return self.number(name, -sys.float_info.max, sys.float_info.max)

    def count(self, name: str, maximum: int = 2**62) -> int:
        """Return a whole number from 0 to ``maximum``."""
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
            raise self.refusal(name, f"a whole number from 0 to {maximum:,}")
        return value

    def entries(self, name: str, maximum: int = MAX_ENTRIES) -> list[Json]:
        """Return a list of at most so many entries."""
        value = self.values.get(name)
        if not isinstance(value, list) or len(value) > maximum:
            raise self.refusal(name, f"a list of at most {maximum:,}")
        return value

    def texts(self, name: str, maximum: int = MAX_ENTRIES) -> list[str]:
        """Return a list of texts."""
        return [Fields({name: one}, self.where).text(name) for one in self.entries(name, maximum)]

    def object(self, name: str) -> Fields:
        """Return an object within this one."""
        return Fields(self.values.get(name), f"{self.where}: {name}")

    def objects(self, name: str, maximum: int = MAX_ENTRIES) -> list[Fields]:
        """Return a list of objects."""
        return [
            Fields(one, f"{self.where}: {name} {at}") for at, one in enumerate(self.entries(name, maximum), start=1)
        ]
