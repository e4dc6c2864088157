"""What a run is resumed with: settings that shaped the steps already taken stay, the others may be given anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from splatopt.core.bounds import flag
from splatopt.core.checks import InputError

_KEY = "on_resume"
FREE_ON_RESUME: dict[str, object] = {_KEY: "free"}
"""Metadata of a setting that may change when a run is resumed: it leaves the steps already taken as they were."""

AS_ASKED: dict[str, object] = {_KEY: "as asked"}
"""Metadata of a setting that is the resumed run's own, at its default too, such as where the folder lies now."""


def is_free(setting: Field[object]) -> bool:
    """Whether a resumed run may be given another value of this setting."""
    return setting.metadata.get(_KEY) == FREE_ON_RESUME[_KEY]


def is_as_asked(setting: Field[object]) -> bool:
    """Whether a resumed run takes this setting as it was asked."""
    return setting.metadata.get(_KEY) == AS_ASKED[_KEY]


def resumed_settings(
    settings: Iterable[Field[object]], asked: Mapping[str, object], saved: Mapping[str, object]
) -> dict[str, object]:
    """Return the settings to resume a run with, by name.

    Args:
        settings: Their fields, which say whether a setting is free on resume.
        asked: What was given; what is at its default was not.
        saved: What the run was started with; ``out`` is its folder.

    Raises:
        InputError: A setting that is not free was given another value.
    """
    chosen = {}
    for item in settings:
        given, kept = asked[item.name], saved[item.name]
        default = None if item.default is MISSING else item.default
        if is_as_asked(item) or (given not in (default, kept) and is_free(item)):
            chosen[item.name] = given
        elif given in (default, kept):
            chosen[item.name] = kept
        else:
            raise _another_past(saved["out"], flag(item.name), kept, given)
    return chosen


def check_options(run: Path | None, prefix: str, given: Any, kept: Any) -> None:
    """Raise InputError where an option of an optimizer was given another value than it had.

    Args:
        run: The run's folder.
        prefix: The word before the options on the command line.
        given: The optimizer's options as asked; what is at its default was not given.
        kept: Those it was started with.
    """
    default = type(given)()
    for item in fields(given):
        now, before = getattr(given, item.name), getattr(kept, item.name)
        if now not in (getattr(default, item.name), before):
            raise _another_past(run, f"--{prefix}.{item.name.replace('_', '-')}", before, now)


def _another_past(run: object, what: str, kept: object, given: object) -> InputError:
    kept, given = (value.value if isinstance(value, Enum) else value for value in (kept, given))
    return InputError(
        f"the run in {run} was started with {what} {kept}, and cannot go on with {given}; "
        f"leave the option out, or start a new run with another --out"
    )
