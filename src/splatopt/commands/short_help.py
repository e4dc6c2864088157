"""Help in two lengths: ``--help`` shows the options that people use, ``--help-all`` every one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import MISSING, field, fields, make_dataclass
from typing import Any, get_type_hints

import tyro

SHORT, WHOLE = frozenset({"-h", "--help"}), "--help-all"

_SUPPRESSED: Any = tyro.conf.Suppress


def is_help(words: Sequence[str]) -> bool:
    """Return whether a command line asks for help of either length."""
    return not (SHORT | {WHOLE}).isdisjoint(words)


def is_short_help(words: Sequence[str]) -> bool:
    """Return whether a command line asks for the options that people use, and not for all."""
    return not SHORT.isdisjoint(words) and WHOLE not in words


def as_help(words: Sequence[str]) -> list[str]:
    """Return the words, or where they ask for help of either length what the parser knows it by, and nothing else."""
    return ["--help"] if is_help(words) else list(words)


def shortened(config: type, shown: Collection[str]) -> Any:
    """Return a twin of a configuration in groups whose help has the settings ``shown`` alone.

    The others can be given all the same, and a group without one that is shown has no part of the help.

    Args:
        config: A dataclass whose fields are groups of settings.
        shown: Names of settings.
    """
    kinds = get_type_hints(config, include_extras=True)
    groups = []
    for group in fields(config):
        twin = shortened_group(kinds[group.name], shown)
        groups.append((group.name, twin, field() if group.default_factory is MISSING else field(default_factory=twin)))
    twin = make_dataclass(config.__name__, groups, frozen=True)
    twin.__doc__ = config.__doc__
    return twin


def shortened_group(group: type, shown: Collection[str]) -> type:
    """Return a subclass of a group of settings whose help has those ``shown`` alone."""
    hints = get_type_hints(group, include_extras=True)
    hidden = []
    for setting in fields(group):
        if setting.name not in shown:
            given = {"default": setting.default, "default_factory": setting.default_factory}
            default: dict[str, Any] = {name: value for name, value in given.items() if value is not MISSING}
            hidden.append((setting.name, _SUPPRESSED[hints[setting.name]], field(**default)))
    twin = make_dataclass(group.__name__, hidden, bases=(group,), frozen=True)
    twin.__doc__ = group.__doc__
    return twin
