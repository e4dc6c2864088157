"""Options of many optimizers on one command line, each under its optimizer's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from splatopt.core.checks import InputError
from splatopt.core.optimizer import option_prefix


def optimizer_columns(options: Mapping[str, type]) -> list[tuple[str, Any, Any]]:
    """Return fields for ``make_dataclass``: the options of each optimizer, with its name as their prefix.

    Args:
        options: Dataclass of options by the optimizer's name, or by its family's.
    """
    import tyro

    return [(column_name(name), Annotated[kind, tyro.conf.arg(name=name)], kind()) for name, kind in options.items()]


def chosen_options(parsed: Any, options: Mapping[str, type], optimizer: str, *, resuming: bool) -> Any:
    """Return the options of ``optimizer`` among those that were parsed; None where it has none.

    Args:
        parsed: An instance of the dataclass with the columns.
        options: As for :func:`optimizer_columns`.
        optimizer: The one that was chosen.
        resuming: Whether a run is gone on with, whose optimizer is known only later.

    Raises:
        InputError: Options of another optimizer were given.
    """
    chosen = None
    for name, kind in options.items():
        given = getattr(parsed, column_name(name))
        if name == option_prefix(optimizer):
            chosen = given
        elif given != kind() and not resuming:
            raise InputError(
                f"options of {name!r} are given, but the optimizer is {optimizer!r}; add --optimizer {name}"
            )
    return chosen


def column_name(optimizer: str) -> str:
    """The optimizer's name as a field can be called."""
    name = "".join(letter if letter.isalnum() else "_" for letter in optimizer)
    return name if name.isidentifier() else f"_{name}"
