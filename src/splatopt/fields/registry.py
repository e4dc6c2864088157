"""Names of fields, and a field from its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from splatopt.core.checks import InputError, nearest_names
from splatopt.fields.networks import (
    Architecture,
    EncodedReluField,
    Field,
    GaussianField,
    ReluField,
    SincField,
    SineField,
    WaveletField,
)


@dataclass(frozen=True)
class FieldEntry:
    """One registered field: its class, the constants of its activation and one line of help."""

    field: type[Field]
    constants: tuple[str, ...]
    help: str


_FIELDS: dict[str, FieldEntry] = {}


def register_field(name: str, field: type[Field], constants: tuple[str, ...] = (), help: str = "") -> None:
    """Make ``field`` known under ``name``; ``constants`` are the keywords that its class takes."""
    if name in _FIELDS:
        raise ValueError(f"a field named {name!r} is registered already")
    _FIELDS[name] = FieldEntry(field, constants, help)


def field_names() -> tuple[str, ...]:
    """Names of all registered fields, in the order of registration."""
    return tuple(_FIELDS)


def find_field(name: str) -> FieldEntry:
    """Return the entry of ``name``; raises InputError with the nearest names if there is none."""
    if name not in _FIELDS:
        raise InputError(f"no field is named {name!r}; {nearest_names(name, _FIELDS)}")
    return _FIELDS[name]


def check_constants(name: str, constants: Mapping[str, object]) -> None:
    """Raise InputError if the field ``name`` takes one of ``constants`` not."""
    known = find_field(name).constants
    for constant in constants:
        if constant not in known:
            taken = f"it takes {' and '.join(known)}" if known else "it takes none"
            raise InputError(f"the field {name!r} has no constant {constant!r}; {taken}")


def make_field(name: str, architecture: Architecture, generator: torch.Generator, **constants: float) -> Field:
    """Return the field ``name`` at its start.

    Args:
        name: One of :func:`field_names`.
        architecture: Sizes.
        generator: Draws the start.
        **constants: Of the activation, such as ``sigma``; the class's own where not given.

    Raises:
        InputError: There is no such field, or it has no such constant.
    """
    check_constants(name, constants)
    return find_field(name).field(architecture, generator, **constants)


register_field("gaussian", GaussianField, ("sigma",), help="exp(-z²/2σ²)")
register_field("sine", SineField, ("omega",), help="sin(ωz), SIREN")
register_field("wavelet", WaveletField, ("omega", "scale"), help="cos(ωz₁)·exp(-(sz₂)²), WIRE")
register_field("sinc", SincField, ("omega",), help="sin(ωz)/(ωz)")
register_field("relu", ReluField, help="max(z, 0)")
register_field("relu-pe", EncodedReluField, ("frequencies",), help="ReLU on positionally encoded coordinates")
