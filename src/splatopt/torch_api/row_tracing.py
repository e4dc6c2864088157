"""How a strategy that knows ``torch.optim`` alone moves the states of any optimizer of ours.

gsplat's strategies add, split, remove and relocate Gaussians by a function of each parameter, and another one of each
tensor in ``optimizer.state[parameter]``: rows are gathered, and those of new Gaussians are zero. So each key's
:class:`RowProxy` holds one such tensor, the number of each row counted from 1. What has become of it tells where every
row came from and which begin anew, and all states follow by one :class:`~splatopt.core.scene_edit.SceneEdit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.scene_edit import SceneEdit, Written
from splatopt.optim.habits import RefusesGradScaler

ROWS = "rows"
"""What the tensor is called in a proxy's state."""


@runtime_checkable
class EditedScene(Protocol):
    """What all keys of a scene share: its optimizer."""

    def step_gaussians(self) -> object:
        """Take one step by the gradients that there are."""
        ...

    def apply(self, edit: SceneEdit) -> None:
        """Carry out an edit of rows, of values and states."""
        ...

    def follow(self) -> None:
        """Have states follow what was done to the rows."""
        ...

    @property
    def position_rate(self) -> float:
        """The means' rate, world units; 0 for none."""
        ...


class RowProxy(RefusesGradScaler, torch.optim.Optimizer):
    """One key's optimizer as a strategy sees it: a parameter, a rate that tells, and a state by row.

    Trainers call ``step()`` and ``zero_grad()`` of every key's; the whole scene's step is taken by the first.

    Attributes:
        penalty: Gradient of a penalty on the parameter, in its shape, that the next step adds to the loss's. It is not
            in ``.grad``, which says by being None that a step takes its gradient from residuals.
    """

    def __init__(self, parameter: Tensor, scene: EditedScene, *, takes_step: bool) -> None:
        """Begin with the rows that there are.

        Args:
            parameter: The key's tensor.
            scene: Whose key it is.
            takes_step: Whether its ``step()`` is the whole scene's.
        """
        self.scene, self._takes_step = scene, takes_step
        super().__init__([{"params": [parameter]}], {"lr": 0.0})
        self.bind(parameter)

    def bind(self, parameter: Tensor) -> None:
        """Number the rows of ``parameter`` anew."""
        self.param_groups[0]["params"] = [parameter]
        self.penalty: Tensor | None = None
        self.state.clear()
        # float64, since strategies append float32 zeros, and float32 does not count beyond sixteen million.
        rows = torch.arange(1, len(parameter) + 1, dtype=torch.float64, device=parameter.device)
        self.state[parameter] = {ROWS: rows}

    @property
    def parameter(self) -> Tensor:
        """The key's tensor, which a strategy may have replaced."""
        found: Tensor = self.param_groups[0]["params"][0]
        return found

    def rows(self) -> Tensor:
        """Return the number of each row before an edit, counted from 1; 0 for those that begin anew."""
        rows = self.state.get(self.parameter, {}).get(ROWS)
        if not isinstance(rows, Tensor) or len(rows) != len(self.parameter):
            raise InputError(
                "a parameter of the scene was replaced in its optimizer without its state; edit rows as gsplat's "
                "strategies do, or by SceneOptimizer.edit_rows"
            )
        return rows

    def add_penalty(self, gradient: Tensor) -> None:
        """Have the next step add ``gradient``, in the parameter's shape, to the loss's; ``zero_grad()`` lets it go."""
        self.penalty = gradient.clone() if self.penalty is None else self.penalty + gradient

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let go of the parameter's gradient, and of a penalty's."""
        super().zero_grad(set_to_none)
        self.penalty = None

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Take the whole scene's step, where this is the first key's.

        Raises:
            InputError: There is a closure, or a ``GradScaler`` calls.
        """
        self.refuse_scaler()
        if closure is not None:
            raise InputError("a key of a scene takes no closure; call SceneOptimizer.step(residuals_fn)")
        if self._takes_step:
            self.scene.step_gaussians()

    def state_dict(self) -> dict[str, object]:
        """Return nothing: the scene's state is ``SceneOptimizer.state_dict()``."""
        return {"state": {}, "param_groups": []}

    def load_state_dict(self, state_dict: object) -> None:
        """Do nothing, as above."""


def traced_edit(proxies: Mapping[str, RowProxy], logits: Tensor, logits_before: Tensor) -> SceneEdit:
    """Return the edit that a strategy has made, of values that are written already.

    A row is fresh where its number has gone, and where its opacity was overwritten in place: so gsplat relocates dead
    rows, whose states it leaves, and shares opacities with copies.

    Args:
        proxies: By our names; all trained tensors'.
        logits: Opacities of now, (M,).
        logits_before: Those before the edit, (N,).
    """
    rows = {name: proxy.rows() for name, proxy in proxies.items()}
    numbers = rows.get("means", next(iter(rows.values())))
    if any(len(other) != len(numbers) for other in rows.values()):
        raise InputError("a strategy has left the scene's parameters with different numbers of rows")
    source, fresh = (numbers.long() - 1).clamp_(min=0), numbers == 0
    changed = logits != logits_before[source] if len(logits_before) else fresh
    cleared = rows.get("logit_opacities", numbers) == 0
    fresh |= changed & ~cleared
    resets = {name: (own == 0) & ~fresh for name, own in rows.items() if bool(((own == 0) & ~fresh).any())}
    written = (changed & ~fresh).nonzero().squeeze(1)
    values = {"logit_opacities": Written(written, logits[written])} if len(written) else {}
    return SceneEdit(source, fresh, values, resets)
