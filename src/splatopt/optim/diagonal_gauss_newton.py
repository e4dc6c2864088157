"""Directions clipped to trust radii: 3DGS²-TR (Hsiao et al. 2026, arXiv 2602.00395), and what it is compared with.

Every optimizer here is θ ← θ + clip(Δ, -η, η), elementwise. η are the Hellinger radii of a distance ε that decays
exponentially over the run, ε(f) = ε₀^(1-f) · ε₁^f; there is no learning rate. Quaternions keep their lengths. The
optimizers differ in the direction Δ alone:

    sign-tr             -sign(m) · ∞      no curvature; every entry moves by its radius
    adam-tr             Adam's step
    tr2-paper           -m / D, where D ≤ 0 to the end of the radius
    tr2                 -m / (D + δ/η²)

with the momentum m ← θ₁m + (1-θ₁)g of the gradient g, and D a running mean of diag(JᵀJ). clip(-m/D) minimises
the model m·Δ + ½D·Δ² over |Δ| ≤ η in each entry; where D ≤ 0 (a noisy estimate may be negative) its minimum is
at the end of the radius, and where m = 0 nothing moves.

In units of its radius, x = Δ/η, an entry's first-order predicted reduction is h = mη, and its damped step is -h/(Dη² +
δ). With δ a tensor's mean |h| of the step before, entries with a large one go to the end of their radii, and those with
a small one stay inside: noise in a Gaussian that hardly matters no longer moves it as far as any other.

The objective's loss and its residuals r are both means over pixels and over the views of a batch (loss = ½‖r‖²),
so gradient and diagonal estimate the same mean and Δ = -m/D needs no factor M/|S| for the number of views,
which the publication, whose losses are sums, needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from splatopt.core.checks import InputError, check_fraction, check_max_count, check_positive
from splatopt.core.objective import DiagonalEstimator
from splatopt.core.optimizer import register
from splatopt.curvature.estimators import Exact, ParameterProbes, ResidualProbes
from splatopt.optim.first_order import AdamOptions
from splatopt.optim.hellinger import PublishedTrustRegionOptions, TrustRegionOptions
from splatopt.optim.parts.adam import AdamMoments
from splatopt.optim.parts.bounds import HellingerBox
from splatopt.optim.parts.composed import ComposedOptimizer, Parts
from splatopt.optim.parts.diagonal import CorrectedMean, MomentumOverDiagonal, RawMean, Weighting
from splatopt.optim.parts.projections import QuaternionLengths
from splatopt.optim.parts.sign import MomentumSign

EstimatorName = Literal["exact", "residual", "parameter"]
"""The estimators of ``splatopt.curvature``, by the names of their probes."""


@dataclass(frozen=True)
class SignTrustRegionOptions(TrustRegionOptions):
    """Momentum's sign times the trust radius; no curvature."""

    momentum: float = 0.9
    """θ₁, decay of the mean of gradients. Unit: fraction. Source: 3DGS²-TR."""

    def __post_init__(self) -> None:
        """Refuse momenta that never forget."""
        super().__post_init__()
        check_fraction("momentum", self.momentum)


@dataclass(frozen=True)
class AdamTrustRegionOptions(AdamOptions, PublishedTrustRegionOptions):
    """ADAM-TR: Adam with the rates of 3DGS, its steps clipped to the published trust region."""

    rate_factor: float = 1.0
    """Multiplies all of Adam's rates before clipping. Unit: factor. Source: own choice."""

    def __post_init__(self) -> None:
        """Check the trust region and Adam's own options."""
        PublishedTrustRegionOptions.__post_init__(self)
        AdamOptions(**{field.name: getattr(self, field.name) for field in fields(AdamOptions)})
        check_positive("rate_factor", self.rate_factor)


@dataclass(frozen=True)
class DiagonalGaussNewtonOptions(TrustRegionOptions):
    """Our diagonal form: exact diagonal, bias-corrected per row, damped, within a bounded trust region."""

    epsilon_start: float = 3e-5
    """ε at step 0, the squared Hellinger distance that one parameter may move a Gaussian, over det(S).
    Unit: opacity. Source: own experiments; published 1e-6."""

    momentum: float = 0.9
    """θ₁, decay of the mean of gradients. Unit: fraction. Source: 3DGS²-TR."""

    curvature_decay: float = 0.999
    """θ₂, decay of the mean of curvatures, per refresh. Unit: fraction. Source: 3DGS²-TR."""

    curvature_factor: float = 1.0
    """Multiplies the curvature; above 1 it makes up for the overlap of Gaussians, which no diagonal sees.
    Unit: factor. Source: 3DGS²-TR has none."""

    damping: float = 1.0
    """δ of each tensor over the mean |mη| of its entries; entries that predict less than that stay inside their radii.
    0 for none. Unit: factor. Source: own experiments; 3DGS²-TR has none."""

    refresh: int = 10
    """Curvature is measured at every so many-th step. Unit: steps. Source: 3DGS²-TR."""

    estimator: EstimatorName = "exact"
    """How it is measured: exact in one pass, by residual probes, or by parameter probes.
    Unit: choice. Source: own experiments; published: parameter."""

    probes: int = 1
    """Random probes per view; the exact diagonal draws none. Unit: probes. Source: 3DGS²-TR."""

    def __post_init__(self) -> None:
        """Refuse decays that never forget, and curvature that is never measured."""
        super().__post_init__()
        check_fraction("momentum", self.momentum)
        check_fraction("curvature_decay", self.curvature_decay)
        check_positive("curvature_factor", self.curvature_factor)
        if not 0 <= self.damping < math.inf:
            raise InputError(f"damping must be at least 0, got {self.damping}")
        if self.refresh < 1:
            raise InputError(f"refresh must be at least 1 step, got {self.refresh}; 3DGS²-TR takes 10")
        if self.estimator not in get_args(EstimatorName):
            raise InputError(f"estimator must be one of {', '.join(get_args(EstimatorName))}, got {self.estimator!r}")
        if self.probes < 1:
            raise InputError(f"the number of probes must be at least 1, got {self.probes}; one is the usual choice")
        for name in ("refresh", "probes"):
            check_max_count(name, getattr(self, name))

    def make_estimator(self) -> DiagonalEstimator:
        """Return the estimator that the options name."""
        match self.estimator:
            case "exact":
                return Exact()
            case "residual":
                return ResidualProbes(self.probes)
            case _:
                return ParameterProbes(self.probes)


@dataclass(frozen=True)
class PublishedGaussNewtonOptions(PublishedTrustRegionOptions, DiagonalGaussNewtonOptions):
    """3DGS²-TR as published: raw means, Hutchinson's parameter probes, radii bounded for finiteness alone."""

    epsilon_start: float = 1e-6
    """ε at step 0, the squared Hellinger distance that one parameter may move a Gaussian, over det(S).
    Unit: opacity. Source: 3DGS²-TR."""

    damping: float = 0.0
    """δ of each tensor over the mean |mη| of its entries; 0 for none. Unit: factor. Source: 3DGS²-TR has none."""

    estimator: EstimatorName = "parameter"
    """How it is measured: exact in one pass, by residual probes, or by parameter probes.
    Unit: choice. Source: 3DGS²-TR."""


class SignTrustRegion(ComposedOptimizer):
    """Momentum's sign times the radius: the trust region without any curvature."""

    options: SignTrustRegionOptions

    def compose(self) -> Parts:
        """Return momentum's sign in a box of radii."""
        box = HellingerBox(self.options, self.objective.length_scale)
        return Parts(MomentumSign(self, decay=self.options.momentum), box, projections=(QuaternionLengths(),))


class AdamTrustRegion(ComposedOptimizer):
    """ADAM-TR: the step of :class:`~splatopt.optim.first_order.Adam`, clipped to the radius."""

    options: AdamTrustRegionOptions

    def compose(self) -> Parts:
        """Return Adam's direction in a box of radii."""
        direction = AdamMoments(self, self.options, rate_factor=self.options.rate_factor)
        box = HellingerBox(self.options, self.objective.length_scale)
        return Parts(direction, box, projections=(QuaternionLengths(),))


class PublishedGaussNewton(ComposedOptimizer):
    """3DGS²-TR: D is the raw mean D ← θ₂D + (1-θ₂)·diag that starts at 0, so it is too small for long.

    Differs from the publication in one point: where D ≤ 0, which a mean of few Hutchinson estimates often is,
    it moves to the end of the radius against m and not along it.
    """

    options: PublishedGaussNewtonOptions

    def compose(self) -> Parts:
        """Return -m/D with the raw mean, in a box of radii."""
        return _over_diagonal(self, self.options, RawMean(self.options.curvature_decay))


class DiagonalGaussNewton(ComposedOptimizer):
    """3DGS²-TR with D corrected for its start, and damped."""

    options: DiagonalGaussNewtonOptions

    def compose(self) -> Parts:
        """Return -m/D with the corrected mean, in a box of radii."""
        return _over_diagonal(self, self.options, CorrectedMean(self, self.options.curvature_decay))


def _over_diagonal(host: ComposedOptimizer, options: DiagonalGaussNewtonOptions, weighting: Weighting) -> Parts:
    box = HellingerBox(options, host.objective.length_scale)
    direction = MomentumOverDiagonal(
        host,
        box,
        options.make_estimator(),
        weighting,
        decay=options.momentum,
        factor=options.curvature_factor,
        damping=options.damping,
        refresh=options.refresh,
    )
    return Parts(direction, box, projections=(QuaternionLengths(),))


register("sign-tr", SignTrustRegion, SignTrustRegionOptions, help="momentum's sign times the trust radius")
register("adam-tr", AdamTrustRegion, AdamTrustRegionOptions, help="Adam's step clipped to the trust radius (ADAM-TR)")
register("tr2-paper", PublishedGaussNewton, PublishedGaussNewtonOptions, help="3DGS²-TR as published")
register("tr2", DiagonalGaussNewton, DiagonalGaussNewtonOptions, help="3DGS²-TR, our diagonal form")
