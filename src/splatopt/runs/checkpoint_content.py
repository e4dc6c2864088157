"""What a checkpoint of any run holds, checked before anything is made of it."""

from __future__ import annotations

import torch

from splatopt.core.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    below,
    check_generator,
    check_tensor_names,
    damage_in,
)
from splatopt.core.checks import InputError, quoted
from splatopt.core.optimizer import Optimizer
from splatopt.core.state import OptimizerState, Stateful
from splatopt.core.typed import Fields
from splatopt.runs.renamed import renamed_states

OPTIMIZER = "optimizer."
"""What the names of an optimizer's tensors begin with."""

_MAX_COUNT = 2**53


def check_tensors(checkpoint: Checkpoint, groups: tuple[str, ...], single: tuple[str, ...]) -> None:
    """Make sure that every tensor is of one of ``groups`` or one of ``single``, and that these are there."""
    others = [name for name in checkpoint.tensors if not name.startswith(groups)]
    check_tensor_names(others, single, checkpoint.where)
    check_generator(checkpoint.tensors["generator"], f"{checkpoint.where}: generator")


def check_finite(checkpoint: Checkpoint, prefix: str) -> None:
    """Make sure that the tensors whose names begin with ``prefix`` hold finite floating-point numbers."""
    for name, value in checkpoint.tensors.items():
        if name.startswith(prefix) and not (value.is_floating_point() and bool(torch.isfinite(value).all())):
            raise DamagedCheckpointError(f"{checkpoint.where}: {quoted(name)} must hold finite numbers")


def check_state_numbers(state: Fields) -> None:
    """Make sure that an optimizer's scalars are numbers."""
    for name, value in state.values.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise state.refusal(name, "a number")


def load_optimizer(optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Have an optimizer at its start go on from a checkpoint whose form was checked.

    Its numbers must be of the kinds that the optimizer itself gives: what counts is a whole number of at least 0. They
    need not be finite: a row that broke down is met at the next look at the state, and some optimizers keep infinities.

    Args:
        optimizer: As it is made.
        checkpoint: Written by one of the same kind.

    Raises:
        DamagedCheckpointError: The state does not fit the optimizer; names the checkpoint.
    """
    load_stateful(optimizer, checkpoint, OPTIMIZER, "optimizer")


def load_stateful(part: Stateful, checkpoint: Checkpoint, prefix: str, name: str) -> None:
    """Have an optimizer or a density strategy at its start go on from a checkpoint; see :func:`load_optimizer`.

    Args:
        part: As it is made.
        checkpoint: Written by one of the same kind.
        prefix: What the names of its tensors begin with.
        name: Of its numbers.

    Raises:
        DamagedCheckpointError: The state does not fit; names the checkpoint.
    """
    fresh = part.state()
    with damage_in(checkpoint.fields.where):
        numbers = checkpoint.fields.object(name)
        check_state_numbers(numbers)
    tensors = renamed_states(below(checkpoint.tensors, prefix), fresh.tensors)
    state = OptimizerState(tensors, renamed_states(checkpoint.scalars[name], fresh.scalars))
    with damage_in(numbers.where):
        for entry, number in fresh.scalars.items():
            # Settings among them may be -1, which some take for none.
            if entry in numbers and isinstance(number, int) and number >= 0:
                numbers.count(entry, maximum=_MAX_COUNT)
    with damage_in(checkpoint.where):
        for entry, value in state.tensors.items():
            like = fresh.tensors.get(entry)
            if like is not None and like.is_floating_point() and (value.shape, value.dtype) != (like.shape, like.dtype):
                wanted, came = (f"{tuple(one.shape)} {one.dtype}" for one in (like, value))
                raise InputError(f"{quoted(prefix + entry)} must be {wanted}, got {came}")
        part.load_state(state)
