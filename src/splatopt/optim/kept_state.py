"""What optimizers keep from step to step: tensors in the parameters' shapes, and one number per row."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.objective import Objective, Tensors
from splatopt.core.optimizer import Optimizer, OptimizerState
from splatopt.core.rows import RowEdit
from splatopt.optim.first_order import load_like


class KeptStateOptimizer(Optimizer):
    """An optimizer that names its states; they are saved, loaded and gathered here. Subclasses give the step."""

    kept: ClassVar[tuple[str, ...]]
    """Names of the states that have a parameter's shape, one tensor per parameter each."""

    kept_by_row: ClassVar[tuple[str, ...]] = ()
    """Names of the states with one number per row, in the parameters' type."""

    def __init__(self, objective: Objective, options: Any, generator: torch.Generator | None = None) -> None:
        """Start with empty states; see :class:`~splatopt.core.optimizer.Optimizer`."""
        super().__init__(objective, options, generator)
        self._steps = 0
        parameters = objective.parameters
        self._kept = {kind: {name: torch.zeros_like(value) for name, value in parameters.items()} for kind in self.kept}
        self._kept_by_row = {kind: zero_per_row(parameters) for kind in self.kept_by_row}

    def state(self) -> OptimizerState:
        """Return the states of every parameter and the number of steps."""
        tensors = {f"{kind}.{name}": value for kind, kept in self._kept.items() for name, value in kept.items()}
        tensors |= {f"{kind}.rows": value for kind, value in self._kept_by_row.items()}
        return OptimizerState(tensors=tensors, scalars={"steps": self._steps})

    def load_state(self, state: OptimizerState) -> None:
        """Go on from ``state``; raises InputError where it does not fit the parameters."""
        if "steps" not in state.scalars:
            name = type(self).__name__
            raise InputError(f"this is not a state of {name}: it holds no number of steps; start a new run")
        self._kept = {kind: load_like(self.objective.parameters, state.tensors, kind) for kind in self.kept}
        for kind in self.kept_by_row:
            rows = {"rows": zero_per_row(self.objective.parameters)}
            self._kept_by_row[kind] = load_like(rows, state.tensors, kind)["rows"]
        self._steps = int(state.scalars["steps"])

    def edit_rows(self, edit: RowEdit) -> None:
        """Gather the states; fresh rows start at zero, and the number of steps goes on for all."""
        self._kept = {
            kind: {name: edit.gather_state(value) for name, value in kept.items()} for kind, kept in self._kept.items()
        }
        self._kept_by_row = {kind: edit.gather_state(value) for kind, value in self._kept_by_row.items()}


def zero_per_row(parameters: Tensors) -> Tensor:
    """Return a zero for each row that all parameters share, or a single one where their rows differ."""
    first = next(iter(parameters.values()))
    counts = {value.shape[:1] for value in parameters.values()}
    return first.new_zeros(counts.pop() if len(counts) == 1 and first.dim() else 1)
