"""Directions clipped to trust radii: 3DGS²-TR (Hsiao et al. 2026, arXiv 2602.00395), and what it is compared with.

Every optimizer here is θ ← θ + clip(Δ, -η, η), elementwise. η are the Hellinger radii of a distance ε that decays
exponentially over the run, ε(f) = ε₀^(1-f) · ε₁^f; there is no learning rate. Quaternions keep their lengths. The
optimizers differ in the direction Δ alone:

    sign-tr             -sign(m) · ∞      no curvature; every entry moves by its radius
    adam-tr             Adam's step
    tr2-paper, tr2      -m / D, where D ≤ 0 to the end of the radius

with the momentum m ← θ₁m + (1-θ₁)g of the gradient g, and D a running mean of diag(JᵀJ). clip(-m/D) minimises
the model m·Δ + ½D·Δ² over |Δ| ≤ η in each entry; where D ≤ 0 (a noisy estimate may be negative) its minimum is
at the end of the radius, and where m = 0 nothing moves.

The objective's loss and its residuals r are both means over pixels and over the views of a batch (loss = ½‖r‖²),
so gradient and diagonal estimate the same mean and Δ = -m/D needs no factor M/|S| for the number of views,
which the publication, whose losses are sums, needs.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from splatopt.core.checks import InputError, check_fraction, check_positive
from splatopt.core.objective import DiagonalEstimator, Evaluation, Objective, Oracle
from splatopt.core.optimizer import Progress, register
from splatopt.curvature.estimators import Exact, ParameterProbes, ResidualProbes
from splatopt.optim.first_order import AdamOptions
from splatopt.optim.hellinger import (
    HellingerRadii,
    PublishedTrustRegionOptions,
    TrustRegionOptions,
    quaternion_lengths_kept,
)
from splatopt.optim.kept_state import KeptStateOptimizer

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
    """Our diagonal form: exact diagonal, bias-corrected per row, within a bounded trust region."""

    momentum: float = 0.9
    """θ₁, decay of the mean of gradients. Unit: fraction. Source: 3DGS²-TR."""

    curvature_decay: float = 0.999
    """θ₂, decay of the mean of curvatures, per refresh. Unit: fraction. Source: 3DGS²-TR."""

    curvature_factor: float = 1.0
    """Multiplies the curvature; above 1 it makes up for the overlap of Gaussians, which no diagonal sees.
    Unit: factor. Source: 3DGS²-TR has none."""

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
        if self.refresh < 1:
            raise InputError(f"refresh must be at least 1 step, got {self.refresh}; 3DGS²-TR takes 10")
        if self.estimator not in get_args(EstimatorName):
            raise InputError(f"estimator must be one of {', '.join(get_args(EstimatorName))}, got {self.estimator!r}")
        if self.probes < 1:
            raise InputError(f"the number of probes must be at least 1, got {self.probes}; one is the usual choice")

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

    estimator: EstimatorName = "parameter"
    """How it is measured: exact in one pass, by residual probes, or by parameter probes.
    Unit: choice. Source: 3DGS²-TR."""


class TrustRegionOptimizer(KeptStateOptimizer):
    """Moves every parameter along a direction clipped to its Hellinger radii; subclasses give the direction."""

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT})

    def __init__(
        self, objective: Objective, options: TrustRegionOptions, generator: torch.Generator | None = None
    ) -> None:
        """Start with empty states; see :class:`~splatopt.core.optimizer.Optimizer`."""
        super().__init__(objective, options, generator)
        self._radii = HellingerRadii(options)

    @torch.no_grad()
    def step(self, batch: Any, progress: Progress) -> Evaluation:
        """Evaluate the gradient on ``batch`` and move every parameter once, within its radii."""
        evaluation = self.objective.gradient(batch)
        self._prepare(batch, progress)
        self._steps += 1
        parameters = self.objective.parameters
        radii = self._radii.radii(parameters, self.options.distance(progress))
        with quaternion_lengths_kept(parameters):
            for name, parameter in parameters.items():
                self._move(name, parameter, evaluation.gradient[name], radii[name])
        return evaluation

    @abstractmethod
    def _prepare(self, batch: Any, progress: Progress) -> None:
        """Measure what the direction needs beyond the gradient; ``self._steps`` steps are done."""

    @abstractmethod
    def _move(self, name: str, parameter: Tensor, gradient: Tensor, radius: Tensor) -> None:
        """Update the states and the parameter of one name in place."""


class SignTrustRegion(TrustRegionOptimizer):
    """Momentum's sign times the radius: the trust region without any curvature."""

    kept = ("momentum",)

    def _prepare(self, batch: Any, progress: Progress) -> None:
        pass

    def _move(self, name: str, parameter: Tensor, gradient: Tensor, radius: Tensor) -> None:
        sign_update(parameter, gradient, self._kept["momentum"][name], radius, decay=self.options.momentum)


class AdamTrustRegion(TrustRegionOptimizer):
    """ADAM-TR: the step of :class:`~splatopt.optim.first_order.Adam`, clipped to the radius."""

    kept = ("exp_avg", "exp_avg_sq")
    _rates: dict[str, float]

    def _prepare(self, batch: Any, progress: Progress) -> None:
        self._rates = self.options.rates(self.objective.length_scale, progress)

    def _move(self, name: str, parameter: Tensor, gradient: Tensor, radius: Tensor) -> None:
        adam_clipped_update(
            parameter,
            gradient,
            self._kept["exp_avg"][name],
            self._kept["exp_avg_sq"][name],
            radius,
            rate=self._rates.get(name, self.options.rate) * self.options.rate_factor,
            step=self._steps,
            options=self.options,
        )


class _DiagonalTrustRegion(TrustRegionOptimizer):
    """-m/D clipped to the radius, D a running mean of the diagonal, measured at every so many-th step.

    The diagonal is measured on the batch of its step, which the gradient is of as well.
    """

    kept = ("momentum", "curvature")

    def __init__(
        self, objective: Objective, options: DiagonalGaussNewtonOptions, generator: torch.Generator | None = None
    ) -> None:
        """Check the estimator's oracles too; see :class:`~splatopt.core.optimizer.Optimizer`."""
        self._estimator = options.make_estimator()
        objective.require(self.needs | self._estimator.needs, type(self).__name__)
        super().__init__(objective, options, generator)

    def _prepare(self, batch: Any, progress: Progress) -> None:
        if self._steps % self.options.refresh:
            return
        diagonal = self.objective.gauss_newton_diagonal(batch, self._estimator, self.generator)
        for name, curvature in self._kept["curvature"].items():
            curvature.lerp_(diagonal[name], 1 - self.options.curvature_decay)
        for age in self._kept_by_row.values():
            age.add_(1)

    @abstractmethod
    def _share(self, parameter: Tensor) -> Tensor | float:
        """Return the weight of all measurements in D's mean, in a shape that broadcasts to ``parameter``."""

    def _move(self, name: str, parameter: Tensor, gradient: Tensor, radius: Tensor) -> None:
        diagonal_update(
            parameter,
            gradient,
            self._kept["momentum"][name],
            self._kept["curvature"][name],
            radius,
            decay=self.options.momentum,
            share=self._share(parameter),
            factor=self.options.curvature_factor,
        )


class PublishedGaussNewton(_DiagonalTrustRegion):
    """3DGS²-TR: D is the raw mean D ← θ₂D + (1-θ₂)·diag that starts at 0, so it is too small for long.

    Differs from the publication in one point: where D ≤ 0, which a mean of few Hutchinson estimates often is,
    it moves to the end of the radius against m and not along it.
    """

    def _share(self, parameter: Tensor) -> Tensor | float:
        return 1.0


class DiagonalGaussNewton(_DiagonalTrustRegion):
    """3DGS²-TR with D divided by 1-θ₂ᵃ, a the age of each row: how often its curvature has been measured.

    A row that was added since the last measurement has age 0 and no curvature; it moves by its radii.
    """

    kept_by_row = ("age",)

    def _share(self, parameter: Tensor) -> Tensor | float:
        age = self._kept_by_row["age"].to(parameter.dtype)
        share = torch.where(age > 0, 1 - self.options.curvature_decay**age, 1.0)
        return share.view(-1, *[1] * (parameter.dim() - 1)) if parameter.dim() else share.view(())


def clip_and_subtract(parameter: Tensor, step: Tensor, radius: Tensor) -> None:
    """θ ← θ - clip(step, -η, η) in place; ``step`` is overwritten, ``radius`` broadcasts to it."""
    parameter.sub_(step.clamp_(-radius, radius))


def sign_update(parameter: Tensor, gradient: Tensor, momentum: Tensor, radius: Tensor, *, decay: float) -> None:
    """Take m ← θ₁m + (1-θ₁)g, θ ← θ - sign(m)·η, in place.

    Args:
        parameter: θ, any shape.
        gradient: g, in the parameter's shape.
        momentum: m, likewise.
        radius: η, in a shape that broadcasts to it.
        decay: θ₁.
    """
    momentum.lerp_(gradient, 1 - decay)
    parameter.sub_(momentum.sign().mul_(radius))


def adam_clipped_update(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    radius: Tensor,
    *,
    rate: float,
    step: int,
    options: AdamOptions,
) -> None:
    """Move ``parameter`` and both means in place by one step of Adam that ``radius`` clips.

    Args:
        parameter: θ, any shape.
        gradient: g, in the parameter's shape.
        exp_avg: m, likewise.
        exp_avg_sq: v, likewise.
        radius: η, in a shape that broadcasts to it.
        rate: Learning rate of this tensor.
        step: t, 1 at the first step.
        options: Betas and epsilon.
    """
    exp_avg.lerp_(gradient, 1 - options.beta1)
    exp_avg_sq.mul_(options.beta2).addcmul_(gradient, gradient, value=1 - options.beta2)
    root = exp_avg_sq.sqrt().div_((1 - options.beta2**step) ** 0.5).add_(options.epsilon)
    change = torch.div(exp_avg, root, out=root).mul_(rate / (1 - options.beta1**step))
    clip_and_subtract(parameter, change, radius)


def diagonal_update(
    parameter: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    curvature: Tensor,
    radius: Tensor,
    *,
    decay: float,
    share: Tensor | float,
    factor: float,
) -> None:
    """Take m ← θ₁m + (1-θ₁)g, θ ← θ - clip(m·share / (factor·D), -η, η), in place; to ±η where D ≤ 0.

    Args:
        parameter: θ, any shape.
        gradient: g, in the parameter's shape.
        momentum: m, likewise.
        curvature: D before its bias is corrected, likewise; not written.
        radius: η, in a shape that broadcasts to it.
        decay: θ₁.
        share: Weight of all measurements in D's mean, likewise.
        factor: What the curvature is multiplied by.
    """
    momentum.lerp_(gradient, 1 - decay)
    # At the smallest number instead of 0, m/D is beyond any radius for m ≠ 0, and 0 for m = 0.
    scaled = curvature.mul(factor).div_(share).clamp_min_(torch.finfo(curvature.dtype).tiny)
    clip_and_subtract(parameter, torch.div(momentum, scaled, out=scaled), radius)


register("sign-tr", SignTrustRegion, SignTrustRegionOptions, help="momentum's sign times the trust radius")
register("adam-tr", AdamTrustRegion, AdamTrustRegionOptions, help="Adam's step clipped to the trust radius (ADAM-TR)")
register("tr2-paper", PublishedGaussNewton, PublishedGaussNewtonOptions, help="3DGS²-TR as published")
register("tr2", DiagonalGaussNewton, DiagonalGaussNewtonOptions, help="3DGS²-TR, our diagonal form")
