"""Damped Gauss-Newton steps of a minibatch, exact, through the Gram matrix of its residuals."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.graph import GraphObjective
from splatopt.core.objective import Batch, Evaluation, Tensors
from splatopt.core.optimizer import Optimizer, Progress
from splatopt.core.state import PerParameter
from splatopt.curvature.layer_jacobian import LayerJacobian, layer_jacobian, layer_names
from splatopt.optim.parts.direction import Direction, Point


class GramSolve(Direction):
    """d ← μd₋ - P Jᵀ (J P Jᵀ + λκ I)⁻¹ (r + μ J d₋), κ the mean of diag(J P Jᵀ); a trial is η d.

    d is where ½‖r + Jd‖² + ½λκ (d - μd₋)ᵀ P⁻¹ (d - μd₋) is least. P is a number for each layer, the inverse of the
    mean of its diag(JᵀJ), so that layers are as stiff as they count.
    """

    def __init__(self, host: Optimizer, *, rate: float, damping: float, momentum: float) -> None:
        """Check that the objective is of a network of linear layers.

        Args:
            host: The optimizer.
            rate: η.
            damping: λ.
            momentum: μ.
        """
        super().__init__(host)
        if not isinstance(self.objective, GraphObjective):
            what = type(self.objective).__name__
            raise InputError(f"egn needs the layers of a network, which {what} has none of; take another optimizer")
        layer_names(self.objective.module)
        self._graph = self.objective
        self._rate, self._damping, self._momentum = rate, damping, momentum
        self._last = host.remember(PerParameter("direction", self.objective.parameters, degree=0))
        self._usable = False

    def evaluate(self, batch: Batch, progress: Progress) -> Evaluation:
        """Return loss and gradient, having solved for d where both are finite."""
        jacobian = layer_jacobian(self._graph.module, lambda: self._graph.residual(batch))
        residual = jacobian.residual
        found = jacobian.vjp(residual)
        loss = 0.5 * float(residual.square().sum())
        self._usable = all(bool(torch.isfinite(part).all()) for part in (residual, *found.values()))
        if self._usable:
            self._solve(jacobian)
        return self._graph.evaluation(loss, [found[name] for name in self.objective.parameters])

    @property
    def usable(self) -> bool:
        """Whether residuals and gradient were finite."""
        return self._usable

    @property
    def wants_trial(self) -> bool:
        """Always: the whole step is known."""
        return True

    def trial(self, move: Callable[[Tensors], None]) -> dict[str, Tensor]:
        """Return η d."""
        return {name: self._rate * value for name, value in self._last.values.items()}

    def changes(self, at: Point) -> NoReturn:
        """Refuse: d is found at one point, and taken as a trial."""
        raise TypeError("a solved direction is taken as a trial")

    def _solve(self, jacobian: LayerJacobian) -> None:
        """Put d in the place of d₋."""
        weights = [1 / square if square > 0 else 0.0 for square in jacobian.mean_squares()]
        gram = jacobian.gram(weights)
        diagonal = gram.diagonal()
        diagonal.add_(self._damping * diagonal.mean())
        ahead = jacobian.residual + self._momentum * jacobian.jvp(self._last.values)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if failed or not float(diagonal[0]) > 0:
            return  # rounding has made it indefinite, or nothing moves the residuals: the last direction goes on
        solved = torch.cholesky_solve(ahead.reshape(-1, 1), factor).reshape(ahead.shape)
        for name, value in jacobian.vjp(solved, weights).items():
            self._last.values[name].mul_(self._momentum).sub_(value)
