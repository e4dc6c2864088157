"""Block Gauss-Newton with a trust region: each Gaussian's own curvature, whole.

A Gaussian's position, size, rotation, opacity and colour explain one another's errors, which a diagonal cannot
see: its 14×14 block of JᵀJ can. Every Gaussian takes the step that minimises its own quadratic model within
one ball of Hellinger radii:

    minimise ĝᵀd + ½ dᵀ(s B̂)d  subject to  Σ_k (d_k/η_k)² ≤ 1

The blocks ignore that Gaussians overlap, and all of them move at once. The overlap factor
κ = ‖J d‖² / Σ dᵀB d of the last step d measures by how much that underrates the curvature; s = overlap · κ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from splatopt.core.checks import InputError, check_fraction, check_max_count, check_positive
from splatopt.core.objective import Oracle
from splatopt.core.optimizer import register
from splatopt.optim.growth import GrowthBound, check_growth
from splatopt.optim.hellinger import TrustRegionOptions
from splatopt.optim.parts.adaptive_radius import AdaptiveRadius
from splatopt.optim.parts.block_solve import BlockSolve
from splatopt.optim.parts.bounds import HellingerBall
from splatopt.optim.parts.composed import ComposedOptimizer, Parts
from splatopt.optim.parts.projections import QuaternionLengths
from splatopt.optim.radius_factors import RadiusFactors


@dataclass(frozen=True)
class BlockGaussNewtonOptions(TrustRegionOptions):
    """Block Gauss-Newton; there are no learning rates, ε is the one knob."""

    epsilon_start: float = 1e-3
    """ε at step 0, the squared Hellinger distance that a whole ball reaches along one axis. Unit: opacity.
    Source: own experiments."""

    epsilon_end: float = 1e-5
    """ε when the run ends; in between it decays exponentially. Unit: opacity. Source: own experiments."""

    max_relative_distance: float = 1.25e-3
    """ε/α counts as at most this: at first, faint Gaussians move no further than opaque ones. Unit: fraction.
    Source: own experiments."""

    momentum: float = 0.9
    """Decay of the mean of gradients. Unit: fraction. Source: 3DGS²-TR."""

    memory: float = 0.9
    """Decay of the mean of blocks, per refresh. Unit: fraction. Source: own experiments."""

    refresh: int = 10
    """Steps from one look at the curvature to the next. Unit: steps. Source: 3DGS²-TR."""

    overlap: float = 4.0
    """Factor on the measured overlap κ. Unit: factor. Source: own experiments."""

    damping: float = 0.18
    """No multiplier lies below this share of the mean |ηg| over the rows seen, their balls' predicted reduction to
    first order; rows with little of it then stay inside theirs. 0 for none. Unit: factor. Source: own experiments."""

    factorisations: int = 2
    """Cholesky factorisations a step. Unit: factorisations. Source: own experiments."""

    max_growth: float = 16.0
    """No Gaussian becomes larger than this multiple of what it began as; 0 for no bound. Unit: factor.
    Source: docs/results/block-gn.md."""

    min_reach: float = 1.0
    """Below 1: where steps make views worse that they did not know, the radii of their types (places, shapes, looks)
    shrink, to this share at least. 1 for radii that ε alone decides. Unit: fraction. Source: own experiments."""

    def __post_init__(self) -> None:
        """Refuse radii that are not positive, decays that never forget, and no refresh at all."""
        super().__post_init__()
        check_positive("overlap", self.overlap)
        check_growth(self.max_growth)
        if not 0 < self.min_reach <= 1:
            raise InputError(f"min_reach must lie above 0 and be at most 1, got {self.min_reach}")
        if not 0 <= self.damping < math.inf:
            raise InputError(f"damping must be at least 0, got {self.damping}")
        for name in ("momentum", "memory"):
            check_fraction(name, getattr(self, name))
        for name in ("refresh", "factorisations"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
            check_max_count(name, getattr(self, name))


class BlockGaussNewton(ComposedOptimizer):
    """One trust-region step per row (Gaussian) with its own block of JᵀJ; the rest by its diagonal.

    A float32 cloud takes one fused pass, native on the CPU and Triton's on a GPU; all others the same iteration in
    torch.
    """

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT, Oracle.JVP, Oracle.GAUSS_NEWTON_BLOCKS})
    options: BlockGaussNewtonOptions

    def compose(self) -> Parts:
        """Return blocks solved in balls whose radii adapt; lengths of quaternions and growth are held."""
        options, objective = self.options, self.objective
        radius_factors = self.remember(RadiusFactors(tuple(objective.parameters), options.min_reach))
        ball = HellingerBall(options, objective.length_scale, radius_factors)
        direction = BlockSolve(
            self,
            ball,
            decay=options.momentum,
            memory=options.memory,
            refresh=options.refresh,
            overlap=options.overlap,
            damping=options.damping,
            factorisations=options.factorisations,
        )
        growth = self.remember(GrowthBound(objective.parameters, options.max_growth))
        return Parts(
            direction, ball, AdaptiveRadius(objective, direction, radius_factors), (QuaternionLengths(), growth)
        )


register(
    "block-gn",
    BlockGaussNewton,
    BlockGaussNewtonOptions,
    help="each Gaussian's own 14x14 block of curvature within one Hellinger ball; the default without --steps",
)
