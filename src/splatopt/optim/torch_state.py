"""Whether a saved state is one that a ``torch.optim`` optimizer of these parameters can go on from.

Such an optimizer makes its state at its first step, and takes whatever is loaded in its place. What the state must
look like is seen from another one that takes one step, of zero gradients, on copies of the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from splatopt.core.checks import InputError, quoted
from splatopt.core.objective import Tensors
from splatopt.core.scene_edit import SceneEdit
from splatopt.optim.types import Group

_COUNTS = ("step", "steps")
_MAX_NUMBER = 1e15
_FIXED = (
    *("beta", "momentum", "decay", "interval", "history", "warmup", "max_iter", "max_eval"),
    *("clip", "damping", "eps", "floor"),
)
"""What settings begin with that no optimizer changes as it goes; nor does any change a truth value or a pair."""
_MAX_COUNT = 2.0**53
_ANEW = "resume the run that wrote it, or start a new one"


def first_state(made: torch.optim.Optimizer, leaves: Tensors, order: Sequence[str]) -> dict[str, Group]:
    """Return what an optimizer keeps of each parameter after a step of zero gradients.

    Args:
        made: On ``leaves``; it is of no use afterwards.
        leaves: Its parameters, which may be moved.
        order: Their names in the order of its groups.
    """

    def closure() -> Tensor:
        loss = torch.stack([(0 * leaf * leaf).sum() for leaf in leaves.values()]).sum()
        for leaf in leaves.values():
            leaf.grad = torch.zeros_like(leaf)
        return loss

    closure()
    if callable(turn := getattr(made, "train", None)):
        turn()
    step: Any = made.step
    step(closure)
    saved = made.state_dict()["state"]
    return {name: saved[index] for index, name in enumerate(order) if index in saved}


def check_state(found: Any, groups: Sequence[Mapping[str, Any]], leaves: Tensors) -> None:
    """Make sure that an unflattened state has the form of one, for these parameters.

    Args:
        found: What was read.
        groups: The groups of an optimizer as it is made.
        leaves: The parameters.

    Raises:
        InputError: It has not.
    """
    if not isinstance(found, dict) or not {"state", "groups", "shapes"} <= set(found):
        raise InputError(f"the optimizer's state is incomplete; {_ANEW}")
    state, saved = found["state"], found["groups"]
    whole = isinstance(state, dict) and isinstance(found.get("rest", {}), dict)  # what is kept of no parameter
    if not whole or not all(isinstance(one, dict) for one in state.values()):
        raise InputError(f"the optimizer's state must be by parameter and name; {_ANEW}")
    if not set(state) <= set(leaves):
        other = next(name for name in state if name not in leaves)
        raise InputError(f"the optimizer's state is of a parameter {quoted(other)}, which there is not; {_ANEW}")
    if not isinstance(saved, list) or len(saved) != len(groups) or not all(isinstance(one, dict) for one in saved):
        raise InputError(f"the optimizer's state must have {len(groups)} groups of parameters; {_ANEW}")
    for mine, given in zip(groups, saved, strict=True):
        for key, value in given.items():
            fixed = isinstance(mine.get(key), bool | tuple) or key.startswith(_FIXED)
            if key in mine and not (value == mine[key] if fixed else _alike(value, mine[key])):
                raise InputError(f"the optimizer's state has another {quoted(key)} than the run's options say; {_ANEW}")


def _alike(value: Any, mine: Any) -> bool:
    """Whether a setting of a group is of the kind that the optimizer has."""
    if isinstance(mine, int | float) and isinstance(value, Tensor):
        return value.numel() == 1
    if isinstance(mine, int | float):
        minimum = 0 if mine >= 0 else -_MAX_NUMBER
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (value == mine or minimum <= value <= _MAX_NUMBER)
    return True


def check_like(state: Mapping[str, Mapping[str, Any]], like: Mapping[str, Mapping[str, Any]]) -> None:
    """Make sure that a state keeps of each parameter what another one does, in the same shapes and types.

    Args:
        state: By parameter and name.
        like: What it is to be like; a state may keep more.

    Raises:
        InputError: Something is missing or different.
    """
    for name in state:
        for key, wanted in like.get(name, {}).items():
            value: Any = state[name].get(key)
            if not _fits(value, wanted) or (key in _COUNTS and not 0 <= float(value) <= _MAX_COUNT):
                raise misfit(key, name)


def misfit(key: str, name: str) -> InputError:
    """Return the error that says that a part of the state does not fit."""
    return InputError(f"the optimizer's state {quoted(key)} of {name} is missing or does not fit; {_ANEW}")


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Tensor):
        return isinstance(value, Tensor) and value.shape == wanted.shape and value.dtype == wanted.dtype
    if isinstance(wanted, list | tuple):
        same = isinstance(value, type(wanted)) and len(value) == len(wanted)
        return same and all(_fits(one, like) for one, like in zip(value, wanted, strict=True))
    if isinstance(wanted, bool | int | float):
        return isinstance(value, bool) if isinstance(wanted, bool) else isinstance(value, int | float | Tensor)
    return True


def misfit_of_history(kept: Mapping[str, Any], size: int, history: int) -> str | None:
    """Return what does not fit in what ``torch.optim.LBFGS`` keeps; None where all does.

    Args:
        kept: Its state, which lies with its first parameter.
        size: Numbers that it steps in.
        history: Steps that it remembers at most.
    """
    counts = [kept.get(key) for key in ("n_iter", "func_evals")]
    if not all(isinstance(count, int) and 0 <= count <= _MAX_COUNT for count in counts):
        return "n_iter"
    if not counts[0]:
        return None
    steps, places = kept.get("old_dirs"), kept.get("al", [None] * history)
    count = min(len(steps), history) if isinstance(steps, list) else -1

    def rows(value: object) -> bool:
        return isinstance(value, list) and len(value) == count and all(_is_row(one, size) for one in value)

    fits = {key: _is_row(kept.get(key), size) for key in ("d", "prev_flat_grad")}
    fits |= {key: _is_number(kept.get(key)) for key in ("t", "H_diag", "prev_loss")}
    fits |= {key: rows(kept.get(key)) for key in ("old_dirs", "old_stps")}
    weights = kept.get("ro")
    fits["ro"] = isinstance(weights, list) and len(weights) == count and all(map(_is_number, weights))
    fits["al"] = isinstance(places, list) and len(places) == history
    return next((key for key, good in fits.items() if not good), None)


def _is_row(value: object, size: int) -> bool:
    return isinstance(value, Tensor) and value.shape == (size,) and value.is_floating_point()


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0 and value.is_floating_point()
    return isinstance(value, int | float) and not isinstance(value, bool)


COPIES = frozenset(("z", "x0", "p0", "slow_params", "slow_buffer", "lookahead_params", "prev_param", "mov_avg_param"))
"""Usual names of states that are places of a parameter: averages, slow weights, where it began."""

_DEGREES = {
    **dict.fromkeys(("exp_avg", "momentum_buffer", "ema", "gradient_mean"), 1),
    **dict.fromkeys(("exp_avg_diff", "exp_avg_slow", "exp_inf", "grad_avg", "previous_grad"), 1),
    **dict.fromkeys(("exp_avg_sq", "max_exp_avg_sq", "exp_avg_var", "max_exp_avg_var"), 2),
    **dict.fromkeys(("square_avg", "sum", "diagonal"), 2),
}
"""Of which degree in the gradient the usual states are; all others are taken to be of none, see ``SceneEdit``."""


def edited_state(
    name: str,
    shape: torch.Size,
    state: Mapping[str, object],
    edit: SceneEdit,
    leaf: Tensor,
    copies: frozenset[str] = COPIES,
) -> Group:
    """Return the state of a parameter after an edit of its rows; empty where it cannot follow.

    Args:
        name: The parameter's, as the edit knows it.
        shape: Its shape before.
        state: What a ``torch.optim`` optimizer keeps of it.
        edit: The edit.
        leaf: The parameter after it.
        copies: States that are places of the parameter: those of new and of written rows begin there.
    """
    edited: Group = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim() and value.shape == shape:
            is_place = key.rpartition(".")[2] in copies
            edited[key] = edit.parameter_state(name, value, _DEGREES.get(key, 0), resettable=not is_place)
            if is_place:
                anew = edit.fresh.clone()
                if name in edit.values:
                    anew[edit.values[name].rows] = True
                edited[key][anew] = leaf.detach()[anew].to(value.dtype)
        elif isinstance(value, bool | int | float) or (isinstance(value, Tensor) and value.numel() == 1):
            edited[key] = value
        else:
            return {}
    return edited
