"""Names of settings and options that files of older versions hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping

# The format of config.json is that of version 0.1, whose files hold these names.
_RENAMED = {
    "start": "init",
    "damping_least": "damping_min",  # words: old
    "damping_most": "damping_max",  # words: old
}
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
