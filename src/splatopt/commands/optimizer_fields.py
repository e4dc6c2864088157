"""Options of many optimizers, losses or density strategies, each under its own name on one command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from splatopt.core.checks import InputError
from splatopt.core.optimizer import option_prefix


def option_columns(options: Mapping[str, type], kind: str = "optimizer") -> list[tuple[str, Any, Any]]:
    """Return fields for ``make_dataclass``: the options of each optimizer, loss or strategy, with its name as prefix.

    Args:
        options: Dataclass of options by name, or by the name of an optimizer's family.
        kind: What they are options of.
    """
    import tyro

    return [
        (field_name(name, kind), Annotated[options_kind, tyro.conf.arg(name=name)], options_kind())
        for name, options_kind in options.items()
    ]


def chosen_options(
    parsed: Any, options: Mapping[str, type], optimizers: Sequence[str], *, resuming: bool
) -> dict[str, Any]:
    """Return the options of each of ``optimizers`` that has some, among those that were parsed.

    Args:
        parsed: An instance of the dataclass with these fields.
        options: As for :func:`option_columns`.
        optimizers: Those that were chosen.
        resuming: Whether a run is gone on with, whose optimizer is known only later.

    Raises:
        InputError: Options of another optimizer were given.
    """
    prefixes = {option_prefix(optimizer): optimizer for optimizer in optimizers}
    for name, kind in options.items():
        if name not in prefixes and getattr(parsed, field_name(name)) != kind() and not resuming:
            raise InputError(
                f"options of {name!r} are given, but the optimizer is {' and '.join(map(repr, optimizers))}; "
                f"add --optimizer {name}, or name it in --stages where there are stages"
            )
    return {prefixes[name]: getattr(parsed, field_name(name)) for name in options if name in prefixes}


def one_of_options(parsed: Any, options: Mapping[str, type], chosen: str, kind: str) -> Any:
    """Return the options of the one loss or density strategy that was chosen, None where it has none.

    Args:
        parsed: An instance of the dataclass with the fields of :func:`option_columns`.
        options: As given there.
        chosen: Which one.
        kind: What they are options of, which is also the flag that chooses: loss or density.

    Raises:
        InputError: Another's options were given.
    """
    for name, default in options.items():
        if name != chosen and getattr(parsed, field_name(name, kind)) != default():
            raise InputError(f"options of {name!r} are given, but the {kind} is {chosen!r}; add --{kind} {name}")
    return getattr(parsed, field_name(chosen, kind)) if chosen in options else None


def field_name(name: str, kind: str = "optimizer") -> str:
    """The name of an optimizer, a loss or a strategy as a field can be called, which no other field is."""
    return f"{kind}_{''.join(letter if letter.isalnum() else '_' for letter in name)}"
