"""What ``splatopt.train(…)`` and ``splatopt.fit(…)`` share: settings by name, and packages that can be called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from splatopt.core.checks import InputError, nearest_names
from splatopt.core.plugins import as_plugins

Config = TypeVar("Config")


def settings_of(config: type[Config], first: str, given: str, settings: Mapping[str, object]) -> Config:
    """Return a configuration from keyword arguments.

    Args:
        config: Its dataclass.
        first: Name of the field that is given by its place.
        given: That field.
        settings: The others by name; ``out`` may be a string, and so may each of ``plugins``, which are loaded.

    Raises:
        InputError: There is no such setting, or something that was given cannot be used.
    """
    known = {item.name for item in fields(config)} - {first}  # type: ignore[arg-type] # a dataclass
    for name in settings:
        if name not in known:
            raise InputError(f"there is no setting {name!r}; {nearest_names(name, known)}")
    values = dict(settings)
    if isinstance(out := values.get("out"), str):
        values["out"] = Path(out)
    if "plugins" in values:
        values["plugins"] = as_plugins(values["plugins"])
    return config(**{first: given}, **values)


def make_callable(room: str, load: Callable[[], Callable[..., object]]) -> None:
    """Have the room ``splatopt.NAME``, a package, be called as the verb of its name.

    Python binds a package to its name as soon as anything below it is imported, so that a function could not keep
    that name.

    Args:
        room: The package's name.
        load: Imports and returns the function that a call means.
    """

    class Verb(ModuleType):
        """A package that can be called."""

        def __call__(self, *arguments: object, **settings: object) -> object:
            return load()(*arguments, **settings)

    sys.modules[room].__class__ = Verb
