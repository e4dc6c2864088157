"""Options of many optimizers, each under its optimizer's name: on one command line, and in a run's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def chosen_options(
    parsed: Any, options: Mapping[str, type], optimizers: Sequence[str], *, resuming: bool
) -> dict[str, Any]:
    """Return the options of each of ``optimizers`` that has some, among those that were parsed.

    Args:
        parsed: An instance of the dataclass with the columns.
        options: As for :func:`optimizer_columns`.
        optimizers: Those that were chosen.
        resuming: Whether a run is gone on with, whose optimizer is known only later.

    Raises:
        InputError: Options of another optimizer were given.
    """
    prefixes = {option_prefix(optimizer): optimizer for optimizer in optimizers}
    for name, kind in options.items():
        if name not in prefixes and getattr(parsed, column_name(name)) != kind() and not resuming:
            raise InputError(
                f"options of {name!r} are given, but the optimizer is {' and '.join(map(repr, optimizers))}; "
                f"add --optimizer {name}, or name it in --stages where there are stages"
            )
    return {prefixes[name]: getattr(parsed, column_name(name)) for name in options if name in prefixes}


def column_name(optimizer: str) -> str:
    """The optimizer's name as a field can be called."""
    name = "".join(letter if letter.isalnum() else "_" for letter in optimizer)
    return name if name.isidentifier() else f"_{name}"
