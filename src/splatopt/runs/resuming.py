"""What a run is resumed with: settings that shaped the steps already taken stay, the others may be given anew."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from splatopt.core.checks import InputError, quoted
from splatopt.core.optimizer import find_optimizer
from splatopt.core.typed import Dataclass, Json, told
from splatopt.runs.unread import read_options


@runtime_checkable
class RunSettings(Dataclass, Protocol):
    """A run's configuration."""

    @property
    def out(self) -> Path | None:
        """The run's folder."""
        ...


def resumed_settings(
    asked: RunSettings, saved: RunSettings, own: Collection[str], free: Collection[str], apart: Collection[str] = ()
) -> dict[str, Any]:
    """Return the settings to resume ``saved`` with, by name.

    Args:
        asked: What was given, a dataclass; what is at its default was not.
        saved: What the run was started with, another of its kind.
        own: Taken as asked in any case.
        free: May be given another value.
        apart: Left out.

    Raises:
        InputError: Another setting was given another value.
    """
    chosen = {}
    for item in fields(asked):
        if item.name in apart:
            continue
        given, kept = getattr(asked, item.name), getattr(saved, item.name)
        default = None if item.default is MISSING else item.default
        if item.name in own or (given not in (default, kept) and item.name in free):
            chosen[item.name] = given
        elif given in (default, kept):
            chosen[item.name] = kept
        else:
            raise _another_past(saved, flag(item.name), kept, given)
    return chosen


def check_options(saved: RunSettings, prefix: str, given: Dataclass, kept: Dataclass) -> None:
    """Raise InputError where an option of an optimizer was given another value than it had.

    Args:
        saved: What the run was started with.
        prefix: The word before the options on the command line.
        given: The optimizer's options as asked; what is at its default was not given.
        kept: Those it was started with.
    """
    default = type(given)()
    for item in fields(given):
        now, before = getattr(given, item.name), getattr(kept, item.name)
        if now not in (getattr(default, item.name), before):
            raise _another_past(saved, f"--{prefix}.{item.name.replace('_', '-')}", before, now)


def flag(name: str) -> str:
    """Return how a setting is spelt on the command line."""
    return "--" + name.replace("_", "-")


def _another_past(saved: RunSettings, what: str, kept: object, given: object) -> InputError:
    kept, given = (value.value if isinstance(value, Enum) else value for value in (kept, given))
    return InputError(
        f"the run in {saved.out} was started with {what} {kept}, and cannot go on with {given}; "
        f"leave the option out, or start a new run with another --out"
    )


def saved_options(saved: Json, optimizer: str, staged: bool, where: str) -> object:
    """Return the options that a run's configuration holds: of its optimizer, or by name of each of its stages'.

    Those of an optimizer that is not known here are :class:`~splatopt.runs.unread.UnreadOptions`.

    Args:
        saved: What was read.
        optimizer: The optimizer's name, where there are no stages.
        staged: Whether there are.
        where: The file, for messages.

    Raises:
        InputError: The options are none of the optimizer's.
    """
    if not staged:
        return _options_of(optimizer, saved, f"{where}: optimizer_options")
    if not isinstance(saved, dict):
        raise InputError(f"{where}: optimizer_options must be an object, got {told(saved)}")
    return {name: _options_of(name, one, f"{where}: optimizer_options: {quoted(name)}") for name, one in saved.items()}


def _options_of(optimizer: str, saved: Json, where: str) -> object:
    return read_options(saved, lambda: find_optimizer(optimizer).options, where)
