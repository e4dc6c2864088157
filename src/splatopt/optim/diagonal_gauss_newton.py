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

In units of its radius, x = Δ/η, an entry promises h = mη to first order, and its damped step is -h/(Dη² + δ). With
δ a tensor's mean |h| of the step before, entries that promise much go to the end of their radii, and those that
promise little stay inside: noise in a Gaussian that hardly matters no longer moves it as far as any other.

The objective's loss and its residuals r are both means over pixels and over the views of a batch (loss = ½‖r‖²),
so gradient and diagonal estimate the same mean and Δ = -m/D needs no factor M/|S| for the number of views,
which the publication, whose losses are sums, needs.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from splatopt.core.checks import InputError, check_fraction, check_not_endless, check_positive
from splatopt.core.objective import DiagonalEstimator, Evaluation, Objective, Oracle, Tensors
from splatopt.core.optimizer import Optimizer, Progress, register
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.core.state import Number, OptimizerState, PerParameter, PerRow, StatePart
from splatopt.curvature.estimators import Exact, ParameterProbes, ResidualProbes
from splatopt.optim.first_order import AdamOptions
from splatopt.optim.fused import FusedPasses, fused_passes
from splatopt.optim.hellinger import (
    HellingerRadii,
    PublishedTrustRegionOptions,
    TrustRegionOptions,
    quaternion_lengths_kept,
)

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
    """δ of each tensor over the mean |mη| of its entries; entries that promise less than that stay inside their radii.
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
            check_not_endless(name, getattr(self, name))

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


class TrustRegionOptimizer(Optimizer):
    """Moves every parameter along a direction clipped to its Hellinger radii; subclasses give the direction."""

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT})

    kept: ClassVar[Mapping[str, tuple[int, bool]]]
    """The states by name: their degree in the gradient, and whether the reset of a parameter clears them."""

    def __init__(
        self, objective: Objective, options: TrustRegionOptions, generator: torch.Generator | None = None
    ) -> None:
        """Start with empty states; see :class:`~splatopt.core.optimizer.Optimizer`."""
        super().__init__(objective, options, generator)
        self._radii = HellingerRadii(options, objective.length_scale)
        self._steps = self.remember(Number("steps", 0))
        self._kept = {
            name: self.remember(PerParameter(name, objective.parameters, degree=degree, resettable=resettable))
            for name, (degree, resettable) in self.kept.items()
        }

    @torch.no_grad()
    def step(self, batch: Any, progress: Progress) -> Evaluation:
        """Evaluate the gradient on ``batch`` and move every parameter once, within its radii."""
        with self.objective.held():
            evaluation = self.objective.gradient(batch)
            self._prepare(batch, progress)
        self._steps.value += 1
        parameters, epsilon = self.objective.parameters, self.options.distance(progress)
        clouds = (parameters, evaluation.gradient, *(part.values for part in self._kept.values()))
        passes = fused_passes(self.threads, *clouds, isa=self.instructions)
        if passes is not None:
            self._move_fused(passes, epsilon, evaluation.gradient)
            return evaluation
        radii = self._radii.radii(parameters, epsilon)
        with quaternion_lengths_kept(parameters):
            for name, parameter in parameters.items():
                self._move(name, parameter, evaluation.gradient[name], radii[name])
        return evaluation

    def _move_fused(self, passes: FusedPasses, epsilon: float, gradient: Tensors) -> None:
        """Do what :meth:`_move` does to a whole cloud in one fused pass; the same bits for any number of threads."""
        bounds = self._radii.fused_bounds(passes, epsilon)
        operands = [self.objective.parameters, gradient, *(part.values for part in self._kept.values())]
        fused = self._fused_pass(passes.passes)
        self._note(fused(bounds, *(passes.cloud(operand) for operand in operands), **self._numbers()))

    @abstractmethod
    def _fused_pass(self, passes: Any) -> Callable[..., Any]:
        """Return the fused pass that does what :meth:`_move` does; it takes the states in the order of ``kept``."""

    @abstractmethod
    def _numbers(self) -> dict[str, Any]:
        """Return the pass's numbers."""

    def _note(self, answer: Any) -> None:
        """Keep what the pass measured."""

    @abstractmethod
    def _prepare(self, batch: Any, progress: Progress) -> None:
        """Measure what the direction needs beyond the gradient; ``self._steps`` steps are done."""

    @abstractmethod
    def _move(self, name: str, parameter: Tensor, gradient: Tensor, radius: Tensor) -> None:
        """Update the states and the parameter of one name in place."""


class SignTrustRegion(TrustRegionOptimizer):
    """Momentum's sign times the radius: the trust region without any curvature."""

    kept: ClassVar[Mapping[str, tuple[int, bool]]] = {"momentum": (1, True)}

    def _prepare(self, batch: Any, progress: Progress) -> None:
        pass

    def _move(self, name: str, parameter: Tensor, gradient: Tensor, radius: Tensor) -> None:
        sign_update(parameter, gradient, self._kept["momentum"][name], radius, **self._numbers())

    def _fused_pass(self, passes: Any) -> Callable[..., Any]:
        return passes.sign_step

    def _numbers(self) -> dict[str, Any]:
        return {"decay": self.options.momentum}


class AdamTrustRegion(TrustRegionOptimizer):
    """ADAM-TR: the step of :class:`~splatopt.optim.first_order.Adam`, clipped to the radius."""

    kept: ClassVar[Mapping[str, tuple[int, bool]]] = {"exp_avg": (1, True), "exp_avg_sq": (2, True)}
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
            step=self._steps.value,
            options=self.options,
        )

    def _fused_pass(self, passes: Any) -> Callable[..., Any]:
        return passes.adam_clipped_step

    def _numbers(self) -> dict[str, Any]:
        options = self.options
        rates = [options.rate_factor * self._rates[name] for name in GAUSSIAN_TENSORS]
        return {
            "rates": rates,
            "beta1": options.beta1,
            "beta2": options.beta2,
            "epsilon": options.epsilon,
            "step": self._steps.value,
        }


class _DiagonalTrustRegion(TrustRegionOptimizer):
    """-m/D clipped to the radius, D a running mean of the diagonal, measured at every so many-th step.

    The diagonal is measured on the batch of its step, which the gradient is of as well.
    """

    kept: ClassVar[Mapping[str, tuple[int, bool]]] = {"momentum": (1, True), "curvature": (2, False)}

    def __init__(
        self, objective: Objective, options: DiagonalGaussNewtonOptions, generator: torch.Generator | None = None
    ) -> None:
        """Check the estimator's oracles too; see :class:`~splatopt.core.optimizer.Optimizer`."""
        self._estimator = options.make_estimator()
        objective.require(self.needs | self._estimator.needs, type(self).__name__)
        super().__init__(objective, options, generator)
        self._promise = self.remember(_Promises(tuple(objective.parameters)))

    def _prepare(self, batch: Any, progress: Progress) -> None:
        if self._steps.value % self.options.refresh:
            return
        diagonal = self.objective.gauss_newton_diagonal(batch, self._estimator, self.generator)
        weight = self._weight()
        for name, curvature in self._kept["curvature"].values.items():
            curvature.lerp_(diagonal[name], _along_rows(weight, curvature))

    @abstractmethod
    def _weight(self) -> Tensor:
        """Return the weight of this measurement in D, of each row or of all, and count it."""

    def _move(self, name: str, parameter: Tensor, gradient: Tensor, radius: Tensor) -> None:
        self._take_promise(
            name,
            diagonal_update(
                parameter,
                gradient,
                self._kept["momentum"][name],
                self._kept["curvature"][name],
                radius,
                decay=self.options.momentum,
                factor=self.options.curvature_factor,
                damping=self.options.damping * self._promise.values.get(name, 0.0),
            ),
        )

    def _take_promise(self, name: str, promise: float) -> None:
        """Keep what a step promised; of one with a row that broke down it is no number."""
        if math.isfinite(promise):
            self._promise.values[name] = promise

    def _fused_pass(self, passes: Any) -> Callable[..., Any]:
        return passes.curvature_step

    def _numbers(self) -> dict[str, Any]:
        options = self.options
        damping = [options.damping * self._promise.values.get(name, 0.0) for name in GAUSSIAN_TENSORS]
        return {"decay": options.momentum, "factor": options.curvature_factor, "damping": damping}

    def _note(self, answer: Any) -> None:
        for name, promise in zip(GAUSSIAN_TENSORS, answer, strict=True):
            self._take_promise(name, promise)


class _Promises(StatePart):
    """What the last step promised, by parameter."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.values: dict[str, float] = {}

    def scalars(self) -> dict[str, float | int]:
        return {f"promise.{name}": value for name, value in self.values.items()}

    def load(self, state: OptimizerState) -> None:
        self.values = {name: float(state.scalars.get(f"promise.{name}", 0.0)) for name in self._names}


class PublishedGaussNewton(_DiagonalTrustRegion):
    """3DGS²-TR: D is the raw mean D ← θ₂D + (1-θ₂)·diag that starts at 0, so it is too small for long.

    Differs from the publication in one point: where D ≤ 0, which a mean of few Hutchinson estimates often is,
    it moves to the end of the radius against m and not along it.
    """

    def _weight(self) -> Tensor:
        return torch.tensor(1 - self.options.curvature_decay, dtype=torch.float64)


class DiagonalGaussNewton(_DiagonalTrustRegion):
    """3DGS²-TR with D corrected for its start: after a measurements of a row it is their weighted mean.

    D ← D + (1-θ₂)/(1-θ₂ᵃ)·(diag - D) is the raw mean divided by 1-θ₂ᵃ. A row that was added since the last
    measurement has age a = 0 and no curvature; it moves by its radii.
    """

    def __init__(
        self, objective: Objective, options: DiagonalGaussNewtonOptions, generator: torch.Generator | None = None
    ) -> None:
        """Count the measurements of each row; see :class:`~splatopt.core.optimizer.Optimizer`."""
        super().__init__(objective, options, generator)
        self._age = self.remember(PerRow("age", objective.parameters))

    def _weight(self) -> Tensor:
        age = self._age.values.add_(1)
        return (1 - self.options.curvature_decay) / (1 - self.options.curvature_decay ** age.double())


def _along_rows(per_row: Tensor, tensor: Tensor) -> Tensor:
    """Return a number for each row, or one for all, in a shape that broadcasts to ``tensor``."""
    return per_row.to(tensor).view([-1, *[1] * (tensor.dim() - 1)] if tensor.dim() else [])


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
    factor: float,
    damping: float,
) -> float:
    """Take m ← θ₁m + (1-θ₁)g, θ ← θ - clip(m / (factor·D + damping/η²), -η, η), in place; to ±η where that is 0.

    Args:
        parameter: θ, any shape.
        gradient: g, in the parameter's shape.
        momentum: m, likewise.
        curvature: D, likewise; not written.
        radius: η, in a shape that broadcasts to it.
        decay: θ₁.
        factor: What the curvature is multiplied by.
        damping: δ, curvature per squared radius that every entry has besides its own.

    Returns:
        The mean of |m η| over the entries where it is not 0.
    """
    momentum.lerp_(gradient, 1 - decay)
    promise = momentum * radius
    # At the smallest number instead of 0, the quotient is beyond any radius for m ≠ 0, and 0 for m = 0.
    scaled = (factor * curvature * radius**2).add_(damping).clamp_min_(torch.finfo(curvature.dtype).tiny)
    parameter.sub_(torch.div(promise, scaled, out=scaled).clamp_(-1, 1).mul_(radius))
    return float(promise.abs().sum(dtype=torch.float64)) / max(1, int(promise.count_nonzero()))


register("sign-tr", SignTrustRegion, SignTrustRegionOptions, help="momentum's sign times the trust radius")
register("adam-tr", AdamTrustRegion, AdamTrustRegionOptions, help="Adam's step clipped to the trust radius (ADAM-TR)")
register("tr2-paper", PublishedGaussNewton, PublishedGaussNewtonOptions, help="3DGS²-TR as published")
register("tr2", DiagonalGaussNewton, DiagonalGaussNewtonOptions, help="3DGS²-TR, our diagonal form")
