"""EGN: exact Gauss-Newton of a minibatch, for neural fields (Korbit et al. 2024, arXiv 2405.14402).

With n residuals r in the batch and d parameters, n ≪ d, the push-through identity makes of a d×d system an n×n one:

    (JᵀJ + λI)⁻¹ Jᵀ r = Jᵀ (J Jᵀ + λI)⁻¹ r

and J Jᵀ of a network of linear layers is a sum of entrywise products of two Gram matrices for each layer, see
``splatopt.curvature.layer_jacobian``, so that J is never formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from splatopt.core.checks import check_fraction, check_positive
from splatopt.core.objective import Batch, Oracle
from splatopt.optim.parts.bounds import Unbounded
from splatopt.optim.parts.composed import ComposedOptimizer, Parts
from splatopt.optim.parts.gram_solve import GramSolve

_MATRICES = 4
"""J P Jᵀ, a layer's share of it, the products of its inputs, and Cholesky's factor."""


@dataclass(frozen=True)
class ExactGaussNewtonOptions:
    """Exact Gauss-Newton of a minibatch; 128 pixels are a good batch."""

    rate: float = 0.02
    """η, the share of the direction that a step takes. Unit: fraction. Source: own experiments."""

    damping: float = 0.01
    """λ. Unit: mean of the diagonal of J P Jᵀ. Source: own experiments."""

    momentum: float = 0.99
    """μ, the share of the last direction that the next one begins with. Unit: fraction. Source: own experiments."""

    def __post_init__(self) -> None:
        """Refuse what cannot descend."""
        check_positive("rate", self.rate)
        check_positive("damping", self.damping)
        check_fraction("momentum", self.momentum)


class ExactGaussNewton(ComposedOptimizer):
    """θ ← θ + η d, d of :class:`~splatopt.optim.parts.gram_solve.GramSolve`."""

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT})
    options: ExactGaussNewtonOptions

    def compose(self) -> Parts:
        """Return a solved direction, taken whole."""
        options = self.options
        direction = GramSolve(self, rate=options.rate, damping=options.damping, momentum=options.momentum)
        return Parts(direction, Unbounded())

    def memory_needed(self, batch: Batch) -> int:
        """Return the bytes of the four n×n matrices that a step on ``batch`` holds at its peak."""
        parts = self.objective.empty_residuals(batch)
        return _MATRICES * sum(part.numel() for part in parts) ** 2 * parts[0].element_size()
