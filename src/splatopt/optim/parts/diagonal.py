"""Momentum over a damped diagonal of JᵀJ."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from splatopt.core.objective import Batch, DiagonalEstimator, Evaluation
from splatopt.core.optimizer import Optimizer, Progress
from splatopt.core.state import Measurements, OptimizerState, PerParameter, StatePart
from splatopt.optim.parts.bounds import HellingerBox
from splatopt.optim.parts.direction import Change, Direction, Point, Share


class Weighting(ABC):
    """What a measurement weighs in a running mean."""

    @abstractmethod
    def weight(self) -> Tensor:
        """Return the weight of the measurement at hand, of each row or one for all, and count it."""


class RawMean(Weighting):
    """D ← θ₂D + (1-θ₂)·diag, which starts at 0 and so is too small for long, as published."""

    def __init__(self, decay: float) -> None:
        """Keep θ₂."""
        self._decay = decay

    def weight(self) -> Tensor:
        """Return 1-θ₂."""
        return torch.tensor(1 - self._decay, dtype=torch.float64)


class CorrectedMean(Weighting):
    """A mean corrected for its start: after a measurements of a row it is their weighted mean.

    D ← D + (1-θ₂)/(1-θ₂ᵃ)·(diag - D) is the raw mean divided by 1-θ₂ᵃ. A row that was added since the last
    measurement has age a = 0 and no curvature; it moves by its radii.
    """

    def __init__(self, host: Optimizer, decay: float) -> None:
        """Keep θ₂ and count the measurements of each row."""
        self._decay = decay
        self._age = host.remember(Measurements("age", host.objective.parameters))

    def weight(self) -> Tensor:
        """Return (1-θ₂)/(1-θ₂ᵃ) of each row, once its age a has risen by 1."""
        age = self._age.values.add_(1)
        return (1 - self._decay) / (1 - self._decay ** age.double())


class MomentumOverDiagonal(Direction):
    """-m / (factor·D + δ/η²), D a running mean of diag(JᵀJ), measured at every so many-th step.

    The diagonal is measured on the batch of its step, which the gradient is of as well. δ of a tensor is a share of
    its predicted reduction of the step before, the mean of |mη| over the entries where that is not 0.
    """

    asks_twice: ClassVar[bool] = True

    def __init__(
        self,
        host: Optimizer,
        box: HellingerBox,
        estimator: DiagonalEstimator,
        weighting: Weighting,
        *,
        decay: float,
        factor: float,
        damping: float,
        refresh: int,
    ) -> None:
        """Start with empty means; raises MissingOracleError where the estimator needs more than the objective gives.

        Args:
            host: The optimizer.
            box: The radii η.
            estimator: How the diagonal is measured.
            weighting: What each measurement weighs in D.
            decay: θ₁, of the mean of gradients.
            factor: What D is multiplied by.
            damping: δ over the predicted reduction of the step before.
            refresh: Steps from one measurement to the next.
        """
        host.objective.require(host.needs | estimator.needs, type(host).__name__)
        super().__init__(host)
        self._box, self._estimator, self._weighting = box, estimator, weighting
        self.decay, self.factor = decay, factor
        self._damping, self._refresh = damping, refresh
        parameters = self.objective.parameters
        self.momentum = host.remember(PerParameter("momentum", parameters, degree=1))
        self.curvature = host.remember(PerParameter("curvature", parameters, degree=2, resettable=False))
        self._predicted = host.remember(_PredictedReductions(tuple(parameters)))

    def evaluate(self, batch: Batch, progress: Progress) -> Evaluation:
        """Return loss and gradient; where it is due, take the diagonal on this batch into D."""
        evaluation = super().evaluate(batch, progress)
        if self.steps.value % self._refresh == 0:
            diagonal = self.objective.gauss_newton_diagonal(batch, self._estimator, self._host.generator)
            weight = self._weighting.weight()
            for name, curvature in self.curvature.values.items():
                curvature.lerp_(diagonal[name], _along_rows(weight, curvature))
        return evaluation

    def damping(self, name: str) -> float:
        """Return δ of the parameter ``name``, from the step before."""
        return self._damping * self._predicted.values.get(name, 0.0)

    def changes(self, at: Point) -> Iterator[tuple[str, Change]]:
        """Yield m / (factor·D + δ/η²) in shares of η; beyond any radius where that divides by 0, but 0 for m = 0."""
        for name in at.parameters:
            gradient = at.gradient[name]
            radius, curvature = self._box.radii[name], self.curvature[name]
            momentum = self.momentum[name].lerp_(gradient, 1 - self.decay)
            predicted = momentum * radius
            # At the smallest number instead of 0, the quotient is beyond any radius for m ≠ 0, and 0 for m = 0.
            scaled = (self.factor * curvature * radius**2).add_(self.damping(name))
            scaled.clamp_min_(torch.finfo(curvature.dtype).tiny)
            yield name, Share(torch.div(predicted, scaled, out=scaled))
            total = float(predicted.abs().sum(dtype=torch.float64))
            self.note(name, total / max(1, int(predicted.count_nonzero())))

    def note(self, name: str, predicted: float) -> None:
        """Keep a step's predicted reduction; of one with a row that broke down it is no number."""
        if math.isfinite(predicted):
            self._predicted.values[name] = predicted


class _PredictedReductions(StatePart):
    """The last step's predicted reduction, by parameter."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.values: dict[str, float] = {}

    def scalars(self) -> dict[str, float | int]:
        return {f"predicted.{name}": value for name, value in self.values.items()}

    def load(self, state: OptimizerState) -> None:
        self.values = {name: float(state.scalars.get(f"predicted.{name}", 0.0)) for name in self._names}


def _along_rows(per_row: Tensor, tensor: Tensor) -> Tensor:
    """Return a number for each row, or one for all, in a shape that broadcasts to ``tensor``."""
    return per_row.to(tensor).view([-1, *[1] * (tensor.dim() - 1)] if tensor.dim() else [])
