"""Rooms that add to a registry below them: named by the package, imported when the registry is first asked."""

from __future__ import annotations

ANNOUNCED: dict[str, tuple[str, ...]] = {}
"""Modules by the registry that they add to."""


def announce(group: str, *modules: str) -> None:
    """Name the modules that register splatopt's own entries of a registry below them, when they are imported.

    Args:
        group: The registry's entry points, such as ``splatopt.optimizers``.
        modules: The first look-up imports them.
    """
    ANNOUNCED[group] = (*ANNOUNCED.get(group, ()), *modules)
