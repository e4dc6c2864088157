"""Damped Gauss-Newton directions over many views, by preconditioned conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NoReturn

import torch
from torch import Tensor

from splatopt.core.objective import Batch, Evaluation, Oracle, Tensors
from splatopt.core.optimizer import Optimizer, Progress
from splatopt.core.state import Number
from splatopt.curvature.conjugate_gradients import conjugate_gradients, inner
from splatopt.curvature.estimators import Exact
from splatopt.curvature.flat import FlatLayout
from splatopt.curvature.preconditioners import BlockPreconditioner, DiagonalPreconditioner, Preconditioner
from splatopt.optim.hellinger import HellingerRadii, RadiusBounds
from splatopt.optim.parts.direction import Direction, Point

PreconditionerName = Literal["diagonal", "block"]
"""Jacobi's, or each Gaussian's own block."""

_SMALL_DISTANCE = 1e-6
"""η²/ε is taken at this ε, where it is as good as constant."""


@dataclass(frozen=True)
class QuadraticModel:
    """What the linearised residuals say of a step γΔ: the loss changes by γ gᵀΔ + ½ γ² ‖JΔ‖².

    Attributes:
        slope: gᵀΔ.
        bend: ‖JΔ‖².
    """

    slope: float
    bend: float

    def change(self, length: float) -> float:
        """Return the predicted change for γ."""
        return length * self.slope + 0.5 * length**2 * self.bend


class GaussNewtonSolve(Direction):
    """Δ of (JᵀJ + λ (D + h/η²)) Δ = -g, solved for each batch alone and combined by D; a trial is Δ itself.

    The damping λ is another's to adapt: an acceptance's, which :attr:`model` tells what Δ promises.
    """

    def __init__(
        self,
        host: Optimizer,
        damping: Number[float],
        *,
        batches: int,
        curvature_share: float,
        iterations: int,
        tolerance: float,
        preconditioner: PreconditionerName,
        hellinger_damping: float,
    ) -> None:
        """Check what the preconditioner asks.

        Args:
            host: The optimizer.
            damping: λ.
            batches: Into so many a step's views are split.
            curvature_share: Share of a batch's views whose JᵀJ is multiplied by.
            iterations: Of conjugate gradients.
            tolerance: Share of the residual where they end early.
            preconditioner: What makes them converge.
            hellinger_damping: h.
        """
        super().__init__(host)
        if preconditioner == "block":
            self.objective.require(frozenset({Oracle.GAUSS_NEWTON_BLOCKS}), "lm with the block preconditioner")
        self._damping = damping
        self._batches, self._curvature_share = batches, curvature_share
        self._iterations, self._tolerance = iterations, tolerance
        self._preconditioner, self._hellinger_damping = preconditioner, hellinger_damping
        self._radii = HellingerRadii(RadiusBounds(), self.objective.length_scale)
        self._solved: _Solved | None = None
        self._position = 0
        self.model = QuadraticModel(0.0, 0.0)

    def evaluate(self, batch: Batch, progress: Progress) -> Evaluation:
        """Return the mean of the batches' evaluations, having solved each of them."""
        self._position = self.steps.value
        objective, layout = self.objective, FlatLayout(self.objective.parameters)
        batches = objective.split(batch, self._batches)
        weights = [len(objective.parts(views)) / len(objective.parts(batch)) for views in batches]
        means, combination = _MeanEvaluation(layout), _Combination()
        distances = self._distances(layout)
        for views, weight in zip(batches, weights, strict=True):
            gradient = means.add(objective.gradient(views), weight)
            if means.finite:
                combination.add(*self._solve(views, gradient, distances, layout))
        if means.finite:
            shares = [
                (self.some(views, self._curvature_share), weight)
                for views, weight in zip(batches, weights, strict=True)
            ]
            self._solved = _Solved(layout, combination.result(), means.gradient, shares)
        return means.result()

    @property
    def usable(self) -> bool:
        """Whether loss and gradient were finite."""
        return self._solved is not None

    @property
    def wants_trial(self) -> bool:
        """Always: the whole step is known, and what it promises is to be measured."""
        return True

    def trial(self, move: Callable[[Tensors], None]) -> dict[str, Tensor]:
        """Return Δ."""
        assert self._solved is not None  # no trial where nothing was usable
        return dict(self._solved.layout.unflatten(self._solved.direction))

    def learn(self, batch: Batch, step: Tensors) -> None:
        """Find gᵀΔ and ‖JΔ‖²."""
        assert self._solved is not None  # as above
        forms = ((weight, self.objective.gauss_newton_form(views, step)) for views, weight in self._solved.shares)
        bend = sum(weight * form for weight, form in forms)
        self.model = QuadraticModel(inner(self._solved.gradient, self._solved.direction), bend)

    def release(self) -> None:
        """Forget Δ."""
        self._solved = None

    def changes(self, at: Point) -> NoReturn:
        """Refuse: Δ is found at one point, and taken as a trial."""
        raise TypeError("a solved direction is taken as a trial, by an acceptance that searches along it")

    def some(self, views: Batch, share: float) -> Batch:
        """Return a share of ``views``, other ones at every step."""
        microbatches = self.objective.split(views, round(1 / share))
        return microbatches[self._position % len(microbatches)]

    def _solve(self, views: Batch, gradient: Tensor, distances: Tensor, layout: FlatLayout) -> tuple[Tensor, Tensor]:
        """Return Δ of one batch and its diag(JᵀJ)."""
        preconditioner = self._precondition(views, layout)
        diagonal = preconditioner.diagonal
        damping = self._damping.value * (diagonal + self._hellinger_damping * distances)
        preconditioner.factorise(damping)
        some = self.some(views, self._curvature_share)

        def product(vector: Tensor) -> Tensor:
            applied = self.objective.gauss_newton_product(some, layout.unflatten(vector))
            return layout.flatten(applied).addcmul_(damping, vector)

        solution = conjugate_gradients(
            product,
            -gradient,
            iterations=self._iterations,
            tolerance=self._tolerance,
            precondition=preconditioner.solve,
        )
        return solution.x, diagonal

    def _precondition(self, views: Batch, layout: FlatLayout) -> Preconditioner:
        if self._preconditioner == "block":
            return BlockPreconditioner(layout, self.objective.gauss_newton_blocks(views))
        return DiagonalPreconditioner(layout, self.objective.gauss_newton_diagonal(views, Exact()))

    def _distances(self, layout: FlatLayout) -> Tensor:
        """Return 1/η² for η of squared Hellinger distance 1, to second order."""
        parameters = self.objective.parameters
        if not self._hellinger_damping:
            return torch.zeros_like(layout.flatten(parameters))
        radii = self._radii.radii(parameters, _SMALL_DISTANCE)
        return layout.flatten(
            {name: (_SMALL_DISTANCE / radii[name].square()).expand_as(value) for name, value in parameters.items()}
        )


@dataclass(frozen=True)
class _Solved:
    """One step's direction Δ and gradient g, both flat, and the share of each batch with its weight."""

    layout: FlatLayout
    direction: Tensor
    gradient: Tensor
    shares: list[tuple[Batch, float]]


class _MeanEvaluation:
    """The mean of the batches' evaluations, with a gradient of its own."""

    def __init__(self, layout: FlatLayout) -> None:
        self._layout = layout
        self._loss = 0.0
        self._metrics: dict[str, float] = {}
        self._seen: Tensor | None = None
        self._gradient: Tensor | None = None

    def add(self, evaluation: Evaluation, weight: float) -> Tensor:
        """Count one batch by its share of the views, and return a copy of its gradient."""
        gradient = self._layout.flatten(evaluation.gradient)
        self._loss += weight * evaluation.loss
        for name, value in evaluation.metrics.items():
            self._metrics[name] = self._metrics.get(name, 0.0) + weight * value
        if evaluation.seen is not None:
            self._seen = evaluation.seen.clone() if self._seen is None else self._seen | evaluation.seen
        self._gradient = gradient * weight if self._gradient is None else self._gradient.add_(gradient, alpha=weight)
        return gradient

    @property
    def gradient(self) -> Tensor:
        """The mean g of all batches so far."""
        assert self._gradient is not None  # there is at least one batch
        return self._gradient

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are numbers."""
        return math.isfinite(self._loss) and bool(torch.isfinite(self.gradient).all())

    def result(self) -> Evaluation:
        """Return the mean."""
        return Evaluation(self._loss, self._layout.unflatten(self.gradient), self._seen, self._metrics)


class _Combination:
    """Σ D_i Δ_i / Σ D_i of the batches' directions in each entry, 0 where Σ D_i is; one alone stays as it is."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, direction: Tensor, diagonal: Tensor) -> None:
        """Take Δ_i and D_i of one batch, both to keep."""
        self._count += 1
        if self._count == 1:
            self._sum, self._weights = direction, diagonal
            return
        if self._count == 2:
            self._sum = self._sum * self._weights
        self._sum = self._sum.addcmul_(direction, diagonal)
        self._weights = self._weights + diagonal

    def result(self) -> Tensor:
        """Return Δ."""
        if self._count == 1:
            return self._sum
        return torch.where(self._weights > 0, self._sum / self._weights, 0)
