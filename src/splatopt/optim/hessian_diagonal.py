"""Gradient over a diagonal of the Hessian: ESGD, AdaHessian and Sophia, for scenes.

Every optimizer here is θ ← θ - ℓ·clip(ratio, -1, 1), elementwise, with a ratio of gradient to curvature, gain · m/D.
ℓ is the rate of the parameter's type: the rates of 3DGS, times ``rate_factor``, decaying over the run. D differs:

    esgd         √E[(Hv)²] + damping, the 2-norms of the Hessian's rows   (Dauphin et al. 2015, arXiv 1502.04390)
    adahessian   (√E[(v ⊙ Hv)²])^k, averaged over each Gaussian's tensor  (Yao et al. 2021, arXiv 2006.00719)
    sophia       γ · E[v ⊙ Hv], or γ · diag(JᵀJ)                          (Liu et al. 2023, arXiv 2305.14342)

with v of random signs (H the Hessian of the batch's loss), m a running mean of the gradient and E a running mean.

A scene's parameters have different units, in which row norms of H are no fair scale: the largest unit would decide for
all. So all that is measured is of x = θ/u, u the rates of 3DGS as they stand at step 0, in which one is what Adam moves
a parameter by: gradient u·g, Hessian uHu, product u ⊙ H(u ⊙ v). ESGD and AdaHessian then give m/D of x, which is free
of units, and so is Sophia's.

A row (Gaussian) that the batch did not see keeps its parameters and its states as they are, so each row has its own
count of gradients and of measurements that the means are corrected by. What has no curvature, or has not been measured
yet, does not move. Quaternions keep their lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from torch import Tensor

from splatopt.core.checks import InputError, check_fraction, check_max_count, check_positive
from splatopt.core.objective import DiagonalEstimator, HessianProduct, Objective
from splatopt.core.optimizer import Progress, register
from splatopt.curvature.estimators import Exact, ResidualProbes
from splatopt.curvature.hessian import CentralDifference, ExactHessian
from splatopt.optim.first_order import DecayingRates
from splatopt.optim.parts.bounds import RateBox
from splatopt.optim.parts.composed import ComposedOptimizer, Parts
from splatopt.optim.parts.gradient_over_curvature import GradientOverCurvature, Ratio
from splatopt.optim.parts.hessian_measures import (
    AveragedDiagonal,
    CurvatureMeasure,
    GaussNewtonDiagonal,
    HutchinsonDiagonal,
    SquaredAveragedDiagonal,
    SquaredRowNorms,
)
from splatopt.optim.parts.projections import QuaternionLengths
from splatopt.optim.parts.ratios import adahessian_ratio, esgd_ratio, sophia_ratio

ProductName = Literal["difference", "exact"]
"""A central difference of gradients, for every backend, or the exact product, which the reference renderer has."""

MomentName = Literal["squares", "signed"]
SophiaEstimatorName = Literal["hutchinson", "residual", "exact"]


@dataclass(frozen=True)
class HessianDiagonalOptions(DecayingRates):
    """What ESGD, AdaHessian and Sophia share."""

    rate_factor: float = 4.0
    """Multiplies all rates, which here bound the steps. Unit: factor. Source: swept on fox and lego_200, see
    docs/results/optim.md."""

    final_factor: float = 0.1
    """What every rate but the means' has been multiplied by, decaying exponentially, when the run ends.
    Unit: factor. Source: swept on fox, see docs/results/optim.md."""

    means_final_factor: float = 0.1
    """What the means' rate has been multiplied by, decaying exponentially, when the run ends.
    Unit: factor. Source: swept on fox, see docs/results/optim.md."""

    beta1: float = 0.9
    """Decay of the mean of gradients. Unit: fraction. Source: Kingma and Ba 2015."""

    beta2: float = 0.999
    """Decay of the mean of curvatures, per measurement. Unit: fraction. Source: Chng et al. 2025."""

    refresh: int = 10
    """Curvature is measured at every so many-th step. Unit: steps. Source: Sophia."""

    warmup: int = 10
    """And at each of the first so many steps. Unit: steps. Source: own experiments; Chng et al. 2025 take 50."""

    probes: int = 1
    """Random probes per measurement. Unit: probes. Source: all three publications."""

    product: ProductName = "difference"
    """How Hessian-vector products come: difference, of two gradients, or exact. Unit: choice. Source: own choice."""

    relative_step: float = 1e-2
    """Step of that difference, relative to the parameters. Unit: of their norm. Source: own experiments."""

    def __post_init__(self) -> None:
        """Refuse decays that never forget, and curvature that is never measured."""
        super().__post_init__()
        check_fraction("beta1", self.beta1)
        check_fraction("beta2", self.beta2)
        for name, minimum in (("refresh", 1), ("warmup", 0), ("probes", 1)):
            if getattr(self, name) < minimum:
                raise InputError(f"{name} must be at least {minimum}, got {getattr(self, name)}")
            check_max_count(name, getattr(self, name))
        _check_choice("product", self.product, get_args(ProductName))
        check_positive("relative_step", self.relative_step)

    def make_product(self) -> HessianProduct:
        """Return the way to get Hv that the options name."""
        return ExactHessian() if self.product == "exact" else CentralDifference(self.relative_step)

    def units(self, objective: Objective) -> dict[str, float]:
        """Return u of every parameter: its rate at step 0, without the common factor."""
        start = Progress(0, 1)
        rates = self.rates(objective.length_scale, start)
        units = {name: rates.get(name, self.other_rate(start)) for name in objective.parameters}
        return {name: unit / self.rate_factor for name, unit in units.items()}

    def is_due(self, step: int) -> bool:
        """Whether curvature is measured at a step, the first being 0."""
        return step < self.warmup or step % self.refresh == 0


@dataclass(frozen=True)
class EsgdOptions(HessianDiagonalOptions):
    """ESGD: gradient over the equilibrated diagonal, the norms of the Hessian's rows."""

    gain: float = 0.1
    """Multiplies gradient over curvature, before it is clipped. Unit: factor. Source: own experiments."""

    damping: float = 1e-2
    """Added to the norms, relative to their mean over a tensor. Unit: fraction. Source: own experiments."""

    def __post_init__(self) -> None:
        """Refuse gains and dampings that are none."""
        super().__post_init__()
        check_positive("gain", self.gain)
        check_positive("damping", self.damping)


@dataclass(frozen=True)
class AdaHessianOptions(HessianDiagonalOptions):
    """AdaHessian: gradient over a running mean of Hutchinson's estimates of the Hessian's diagonal."""

    gain: float = 0.1
    """Multiplies gradient over curvature, before it is clipped. Unit: factor. Source: own experiments."""

    moment: MomentName = "squares"
    """The mean of curvatures: squares, the root of the mean of squared estimates, as published; or signed, the
    magnitude of the mean of estimates, which is the diagonal itself. Unit: choice. Source: Yao et al. 2021."""

    hessian_power: float = 1.0
    """Power k that the curvature is taken to, relative to its mean over a tensor: 1 for Newton's step, 0 for the
    gradient's. Unit: exponent. Source: Yao et al. 2021."""

    epsilon: float = 1e-4
    """Added to the curvature, relative to its mean over a tensor. Unit: fraction. Source: own experiments."""

    def __post_init__(self) -> None:
        """Refuse gains that are none and powers that are no publication's."""
        super().__post_init__()
        check_positive("gain", self.gain)
        check_positive("epsilon", self.epsilon)
        _check_choice("moment", self.moment, get_args(MomentName))
        if not 0 <= self.hessian_power <= 1:
            raise InputError(f"hessian_power must lie in [0, 1], got {self.hessian_power}; 1 is Newton's step")


@dataclass(frozen=True)
class SophiaOptions(HessianDiagonalOptions):
    """Sophia: gradient over curvature, clipped to the sign of the gradient where that is longer."""

    beta2: float = 0.99
    """Decay of the mean of curvatures, per measurement. Unit: fraction. Source: Liu et al. 2023."""

    estimator: SophiaEstimatorName = "residual"
    """The diagonal: hutchinson, of the Hessian (Sophia-H); residual, of the Gauss-Newton matrix by one residual probe
    per view (Sophia-G), or exact, the same without a probe. Unit: choice. Source: Liu et al. 2023."""

    gamma: float = 300.0
    """γ, multiplies the curvature; the smaller, the more is clipped. Unit: factor. Source: own experiments."""

    epsilon: float = 1e-15
    """Lower bound of γ·curvature. Unit: loss. Source: Liu et al. 2023."""

    def __post_init__(self) -> None:
        """Refuse factors that are none."""
        super().__post_init__()
        check_positive("gamma", self.gamma)
        check_positive("epsilon", self.epsilon)
        _check_choice("estimator", self.estimator, get_args(SophiaEstimatorName))

    def make_estimator(self) -> DiagonalEstimator:
        """Return how diag(JᵀJ) is estimated; hutchinson is of the Hessian and has none."""
        return Exact() if self.estimator == "exact" else ResidualProbes(self.probes)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


class Esgd(ComposedOptimizer):
    """ESGD (Dauphin et al. 2015): D ← β₂D + (1-β₂)(Hv)², ratio = gain · m̂ / (√D̂ + damping)."""

    options: EsgdOptions

    def compose(self) -> Parts:
        """Return gradient over row norms of the Hessian, in a box of rates."""
        return _compose(self, self.options, SquaredRowNorms(*_probes(self, self.options)), self._ratio)

    def _ratio(self, momentum: Tensor, squares: Tensor) -> Tensor:
        return esgd_ratio(momentum, squares, damping=self.options.damping).mul_(self.options.gain)


class AdaHessian(ComposedOptimizer):
    """AdaHessian (Yao et al. 2021): the diagonal d = v ⊙ Hv, averaged over the entries that a Gaussian has in a tensor.

    D ← β₂D + (1-β₂)d², ratio = gain · m̂ / (√D̂)^k; with ``moment`` signed, D ← β₂D + (1-β₂)d and |D̂| for √D̂.
    """

    options: AdaHessianOptions

    def compose(self) -> Parts:
        """Return gradient over an averaged Hessian diagonal, in a box of rates."""
        measure = SquaredAveragedDiagonal if self.options.moment == "squares" else AveragedDiagonal
        return _compose(self, self.options, measure(*_probes(self, self.options)), self._ratio)

    def _ratio(self, momentum: Tensor, curvature: Tensor) -> Tensor:
        options = self.options
        size = curvature.sqrt() if options.moment == "squares" else curvature.abs()
        ratio = adahessian_ratio(momentum, size, power=options.hessian_power, epsilon=options.epsilon)
        return ratio.mul_(options.gain)


class Sophia(ComposedOptimizer):
    """Sophia (Liu et al. 2023): ratio = m / max(γh, ε), h a running mean of v ⊙ Hv or of diag(JᵀJ).

    Both means are corrected for their start, which the publication leaves out.
    """

    options: SophiaOptions

    def compose(self) -> Parts:
        """Return gradient over a diagonal of Hessian or JᵀJ, in a box of rates."""
        options, measure = self.options, self._measure()
        ratio = partial(sophia_ratio, gamma=options.gamma, epsilon=options.epsilon)
        return _compose(self, options, measure, ratio)

    def _measure(self) -> CurvatureMeasure:
        if self.options.estimator == "hutchinson":
            return HutchinsonDiagonal(*_probes(self, self.options))
        return GaussNewtonDiagonal(self, self.options.make_estimator())


def _probes(host: ComposedOptimizer, options: HessianDiagonalOptions) -> tuple[ComposedOptimizer, HessianProduct, int]:
    return host, options.make_product(), options.probes


def _compose(
    host: ComposedOptimizer, options: HessianDiagonalOptions, measure: CurvatureMeasure, ratio: Ratio
) -> Parts:
    direction = GradientOverCurvature(
        host,
        measure,
        ratio,
        units=lambda: options.units(host.objective),
        is_due=options.is_due,
        beta1=options.beta1,
        beta2=options.beta2,
    )
    return Parts(direction, RateBox(options, host.objective.length_scale), projections=(QuaternionLengths(),))


register("esgd", Esgd, EsgdOptions, help="gradient over the norms of the Hessian's rows, clipped")
register("adahessian", AdaHessian, AdaHessianOptions, help="gradient over Hutchinson's Hessian diagonal, clipped")
register("sophia", Sophia, SophiaOptions, help="gradient over curvature, clipped to its sign")
