"""What a running mean of curvature takes in: row norms or diagonal of the Hessian by probes, or diag(JᵀJ)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from splatopt.core.objective import Batch, DiagonalEstimator, HessianProduct, Oracle, Tensors
from splatopt.core.optimizer import Optimizer
from splatopt.curvature.estimators import rademacher

Units = Mapping[str, float]
"""u of every parameter: all that is measured is of x = θ/u."""


class CurvatureMeasure(ABC):
    """One measurement of curvature."""

    degree: int
    """Of which degree in the gradient it is: 2 for a curvature, 4 for a squared one."""

    def __init__(self, host: Optimizer) -> None:
        """Keep the optimizer, which says what is asked and draws."""
        self._host = host

    @property
    @abstractmethod
    def needs(self) -> frozenset[Oracle]:
        """What it asks of the objective."""

    @abstractmethod
    def measure(self, batch: Batch, units: Units) -> dict[str, Tensor]:
        """Return it on ``batch``, of x, in each parameter's shape."""


class HessianProbes(CurvatureMeasure):
    """Random signs v, and H v."""

    def __init__(self, host: Optimizer, method: HessianProduct, probes: int) -> None:
        """Keep how products come and how many a measurement takes."""
        super().__init__(host)
        self._method, self._probes = method, probes

    @property
    def needs(self) -> frozenset[Oracle]:
        """Those of the product."""
        return self._method.needs

    def _products(self, batch: Batch, units: Units) -> Iterator[tuple[Tensors, dict[str, Tensor]]]:
        """Yield random signs v and u ⊙ H(u ⊙ v), as often as was said."""
        host = self._host
        if host.generator is None:
            raise ValueError(f"{type(host).__name__} draws random signs: hand it the run's torch.Generator, got None")
        for _ in range(self._probes):
            signs = {name: rademacher(value, host.generator) for name, value in host.objective.parameters.items()}
            tangent = {name: units[name] * part for name, part in signs.items()}
            product = host.objective.hvp(batch, tangent, self._method)
            yield signs, {name: units[name] * part for name, part in product.items()}

    def _mean(self, batch: Batch, units: Units, *, squared: bool) -> dict[str, Tensor]:
        """Return the mean over the probes of (Hv)² or of v ⊙ Hv."""
        total = {name: torch.zeros_like(parameter) for name, parameter in self._host.objective.parameters.items()}
        for signs, product in self._products(batch, units):
            for name, sum in total.items():
                sum.addcmul_(product[name], product[name] if squared else signs[name], value=1 / self._probes)
        return total


class SquaredRowNorms(HessianProbes):
    """(Hv)², whose mean is the squared 2-norm of a row of H."""

    degree = 4

    def measure(self, batch: Batch, units: Units) -> dict[str, Tensor]:
        """Return the mean of (Hv)²."""
        return self._mean(batch, units, squared=True)


class HutchinsonDiagonal(HessianProbes):
    """v ⊙ Hv, whose mean is the Hessian's diagonal."""

    degree = 2

    def measure(self, batch: Batch, units: Units) -> dict[str, Tensor]:
        """Return the mean of v ⊙ Hv."""
        return self._mean(batch, units, squared=False)


class AveragedDiagonal(HessianProbes):
    """v ⊙ Hv, averaged over the entries that a row has in a tensor."""

    degree = 2

    def measure(self, batch: Batch, units: Units) -> dict[str, Tensor]:
        """Return the averages of the mean of v ⊙ Hv."""
        return {name: averaged(part) for name, part in self._mean(batch, units, squared=False).items()}


class SquaredAveragedDiagonal(HessianProbes):
    """The square of what :class:`AveragedDiagonal` measures."""

    degree = 4

    def measure(self, batch: Batch, units: Units) -> dict[str, Tensor]:
        """Return the squared averages of the mean of v ⊙ Hv."""
        return {name: averaged(part).square() for name, part in self._mean(batch, units, squared=False).items()}


class GaussNewtonDiagonal(CurvatureMeasure):
    """diag(JᵀJ)."""

    degree = 2

    def __init__(self, host: Optimizer, estimator: DiagonalEstimator) -> None:
        """Keep how it is estimated."""
        super().__init__(host)
        self._estimator = estimator

    @property
    def needs(self) -> frozenset[Oracle]:
        """Those of the estimator."""
        return self._estimator.needs

    def measure(self, batch: Batch, units: Units) -> dict[str, Tensor]:
        """Return u² ⊙ diag(JᵀJ)."""
        diagonal = self._host.objective.gauss_newton_diagonal(batch, self._estimator, self._host.generator)
        return {name: units[name] ** 2 * part for name, part in diagonal.items()}


def averaged(diagonal: Tensor) -> Tensor:
    """Return the mean over each row's entries in every entry: AdaHessian's spatial average, a row being a block."""
    if diagonal.dim() < 2:
        return diagonal
    return diagonal.flatten(1).mean(dim=1).view(-1, *[1] * (diagonal.dim() - 1)).expand_as(diagonal)
