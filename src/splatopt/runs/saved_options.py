"""Settings and options as a run's file holds them, those of older versions too."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from splatopt.core.checks import InputError, quoted
from splatopt.core.optimizer import find_optimizer
from splatopt.core.typed import field_names, read_dataclass, told

# The format of config.json is that of version 0.1, whose files hold these names.
_RENAMED = {"start": "init"}
_RENAMED_PREFIXES = {"most_": "max_", "least_": "min_"}


def renamed(values: Mapping[str, object], known: Collection[str]) -> dict[str, object]:
    """Return what a run's file holds under the names of today; names that are unknown then as well stay.

    Args:
        values: By the names that the file holds.
        known: Names of today.
    """
    found = {}
    for name, value in values.items():
        today = _RENAMED.get(name, name)
        for before, now in _RENAMED_PREFIXES.items():
            if name.startswith(before):
                today = now + name.removeprefix(before)
        found[today if name not in known and today in known else name] = value
    return found


def read_options(saved: object, kind: type, where: str) -> Any:
    """Return an optimizer's options as a run's file holds them.

    Args:
        saved: What was read.
        kind: The dataclass of the options.
        where: Where they stand, for messages.

    Raises:
        InputError: They are no such options.
    """
    values = renamed(saved, field_names(kind)) if isinstance(saved, dict) else saved
    return read_dataclass(values, kind, "option", where)


def saved_options(saved: object, optimizer: str, staged: bool, where: str) -> Any:
    """Return the options that a run's configuration holds: of its optimizer, or by name of each of its stages'.

    Args:
        saved: What was read.
        optimizer: The optimizer's name, where there are no stages.
        staged: Whether there are.
        where: The file, for messages.

    Raises:
        InputError: An optimizer is unknown, or its options are not such.
    """
    if not staged:
        return _options_of(optimizer, saved, f"{where}: optimizer_options")
    if not isinstance(saved, dict):
        raise InputError(f"{where}: optimizer_options must be an object, got {told(saved)}")
    return {name: _options_of(name, one, f"{where}: optimizer_options: {quoted(name)}") for name, one in saved.items()}


def _options_of(optimizer: str, saved: object, where: str) -> Any:
    try:
        kind = find_optimizer(optimizer).options
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return read_options(saved, kind, where)
