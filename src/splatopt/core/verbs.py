"""Packages that can be called, as ``splatopt.train(…)`` and ``splatopt.fit(…)`` are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType


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
