"""Names of settings and options that files of older versions hold."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

Value = TypeVar("Value")

# The format of config.json is that of version 0.1, whose files hold these names.
_RENAMED = {
    "start": "init",
    "damping_least": "damping_min",  # words: old
    "damping_most": "damping_max",  # words: old
}
_RENAMED_PREFIXES = {"most_": "max_", "least_": "min_"}


_RENAMED_STATES = (
    (re.compile(r"^promise\b"), "predicted"),
    (re.compile(r"^reach\.turn$"), "radius_factors.position"),
    (re.compile(r"^reach\.(\d+)\.promised$"), r"radius_factors.\1.predicted"),
    (re.compile(r"^reach\."), "radius_factors."),
    (re.compile(r"^met_views$"), "visited_views"),
)


def renamed_states(values: Mapping[str, Value], known: Collection[str]) -> dict[str, Value]:
    """Return an optimizer's saved tensors or numbers under the names of today.

    Args:
        values: By the names that a checkpoint holds.
        known: Names that the optimizer has for its own; others' states are called what they call them.
    """
    found, stems = {}, {_stem(name) for name in known}
    for name, value in values.items():
        today = name
        for before, now in _RENAMED_STATES:
            today = before.sub(now, today)
        found[name if _stem(name) in stems else today] = value
    return found


def _stem(name: str) -> str:
    return name.partition(".")[0]


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
