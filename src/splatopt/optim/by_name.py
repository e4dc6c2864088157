"""Optimizers by name, on any objective."""

from __future__ import annotations

from dataclasses import fields

import torch

from splatopt.core.checks import InputError, nearest_names
from splatopt.core.objective import Objective
from splatopt.core.optimizer import Entry, Optimizer, find_optimizer, optimizer_names
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.optim.field_optimizers import FIELD_OPTIMIZERS, field_options

_FIELD = "sine"
"""What an optimizer of fields alone takes its usual rate of."""


def make_optimizer(
    name: str, objective: Objective, *, generator: torch.Generator | None = None, **options: object
) -> Optimizer:
    """Return the optimizer ``name`` bound to ``objective``.

    Args:
        name: One of ``optimizer_names()``, ``zoo:NAME``, or an optimizer of fields alone, such as ``kfac``.
        objective: What is minimised; ``ModuleObjective`` and ``ResidualObjective`` make one of a function.
        generator: Source of probes; one with seed 0 when None.
        **options: The optimizer's own, by name.

    Returns:
        The optimizer, whose ``step(batch, progress)`` takes steps.

    Raises:
        InputError: There is no such optimizer or option, or the objective lacks what it needs.
    """
    generator = generator or torch.Generator().manual_seed(0)
    if name in FIELD_OPTIMIZERS and (name not in optimizer_names() or not _is_cloud(objective)):
        entry = FIELD_OPTIMIZERS[name].entry
        chosen = field_options(name, _FIELD, options_of(entry, name, options))
    else:
        entry = find_optimizer(name)
        chosen = options_of(entry, name, options)
    made: Optimizer = entry.optimizer(objective, chosen, generator)
    return made


def options_of(entry: Entry, name: str, given: dict[str, object]) -> object:
    """Return an optimizer's options with ``given`` among them; raises InputError where one is unknown."""
    known = {field.name for field in fields(entry.options)}
    for option in given:
        if option not in known:
            raise InputError(f"the optimizer {name!r} has no option {option!r}; {nearest_names(option, known)}")
    return entry.options(**given)


def _is_cloud(objective: Objective) -> bool:
    """Whether an objective's parameters are Gaussians', for which some names stand for other rates."""
    return set(objective.parameters) == set(GAUSSIAN_TENSORS)
