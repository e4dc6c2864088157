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

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from splatopt.core.checks import InputError, check_fraction, check_not_endless, check_positive
from splatopt.core.objective import DiagonalEstimator, Evaluation, HessianProduct, Objective, Oracle, Tensors
from splatopt.core.optimizer import Optimizer, Progress, register
from splatopt.core.state import Number, PerParameter, PerRow
from splatopt.curvature.estimators import Exact, ResidualProbes, rademacher
from splatopt.curvature.hessian import CentralDifference, ExactHessian
from splatopt.optim.first_order import DecayingRates
from splatopt.optim.hellinger import quaternion_lengths_kept

ProductName = Literal["difference", "exact"]
"""A central difference of gradients, for every backend, or the exact product, which the reference renderer has."""

MomentName = Literal["squares", "signed"]
SophiaEstimatorName = Literal["hutchinson", "residual", "exact"]


@dataclass(frozen=True)
class HessianDiagonalOptions(DecayingRates):
    """What ESGD, AdaHessian and Sophia share."""

    rate_factor: float = 4.0
    """Multiplies all rates, which here bound the steps. Unit: factor. Source: swept on fox and lego_200, see
    docs/optim.md."""

    final_factor: float = 0.1
    """What every rate but the means' has been multiplied by, decaying exponentially, when the run ends.
    Unit: factor. Source: swept on fox, see docs/optim.md."""

    means_final_factor: float = 0.1
    """What the means' rate has been multiplied by, decaying exponentially, when the run ends.
    Unit: factor. Source: swept on fox, see docs/optim.md."""

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
        for name, least in (("refresh", 1), ("warmup", 0), ("probes", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
            check_not_endless(name, getattr(self, name))
        _check_choice("product", self.product, get_args(ProductName))
        check_positive("relative_step", self.relative_step)

    def make_product(self) -> HessianProduct:
        """Return the way to get Hv that the options name."""
        return ExactHessian() if self.product == "exact" else CentralDifference(self.relative_step)

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
    """Least value of γ·curvature. Unit: loss. Source: Liu et al. 2023."""

    def __post_init__(self) -> None:
        """Refuse factors that are none."""
        super().__post_init__()
        check_positive("gamma", self.gamma)
        check_positive("epsilon", self.epsilon)
        _check_choice("estimator", self.estimator, get_args(SophiaEstimatorName))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def folded(mean: Tensor, value: Tensor, decay: float, seen: Tensor | None) -> None:
    """Take mean ← β·mean + (1-β)·value in place, in the rows that were seen.

    Args:
        mean: Any shape.
        value: In the mean's shape.
        decay: β.
        seen: Rows that take part, (N,) bool; None for all.
    """
    if seen is None:
        mean.lerp_(value, 1 - decay)
    else:
        mean.lerp_(value, (1 - decay) * by_row(seen, mean))


def by_row(rows: Tensor, like: Tensor) -> Tensor:
    """Return one number per row in a shape that broadcasts to ``like``, and in its type."""
    return rows.to(like.dtype).view(-1, *[1] * (like.dim() - 1)) if like.dim() else rows.to(like.dtype).view(())


def averaged(diagonal: Tensor) -> Tensor:
    """Return the mean over each row's entries in every entry: AdaHessian's spatial average, a row being a block."""
    if diagonal.dim() < 2:
        return diagonal
    return diagonal.flatten(1).mean(dim=1).view(-1, *[1] * (diagonal.dim() - 1)).expand_as(diagonal)


def esgd_ratio(momentum: Tensor, squares: Tensor, *, damping: float) -> Tensor:
    """Return m / (√D + damping · mean √D).

    Args:
        momentum: m, the gradient's mean, corrected for its start.
        squares: D, the mean of (Hv)², likewise; its mean is taken over what is not 0.
        damping: Relative to the mean of √D.
    """
    norms = squares.sqrt()
    return momentum / norms.add_(damping * mean_of_nonzero(norms))


def adahessian_ratio(momentum: Tensor, curvature: Tensor, *, power: float, epsilon: float) -> Tensor:
    """Return m / (s·(c/s + ε)^k), s the mean of the curvatures c; m/c for k = 1 and ε = 0.

    Args:
        momentum: m, the gradient's mean, corrected for its start.
        curvature: c ≥ 0, likewise; its mean is taken over what is not 0.
        power: k, the Hessian power.
        epsilon: ε, relative to s.
    """
    scale = mean_of_nonzero(curvature)
    return momentum / curvature.div(scale).add_(epsilon).pow_(power).mul_(scale)


def sophia_ratio(momentum: Tensor, diagonal: Tensor, *, gamma: float, epsilon: float) -> Tensor:
    """Return m / max(γh, ε), before it is clipped.

    Args:
        momentum: m, the gradient's mean.
        diagonal: h, of either sign.
        gamma: γ.
        epsilon: ε.
    """
    return momentum / diagonal.mul(gamma).clamp_min_(epsilon)


def mean_of_nonzero(values: Tensor) -> Tensor:
    """Return the mean over what is not 0, of values that are not negative; 0 where there is none.

    What is not finite, of a row that broke down, does not count.
    """
    mean = values.sum() / values.count_nonzero().clamp_min(1)
    return mean if bool(torch.isfinite(mean)) else mean_of_nonzero(torch.where(torch.isfinite(values), values, 0))


class _HessianDiagonal(Optimizer):
    """θ ← θ - ℓ·clip(ratio) with measured curvature; subclasses say what is measured and what the ratio is."""

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT})

    def __init__(
        self, objective: Objective, options: HessianDiagonalOptions, generator: torch.Generator | None = None
    ) -> None:
        """Check what the curvature needs as well; see :class:`~splatopt.core.optimizer.Optimizer`."""
        objective.require(self.needs | self._measure_needs(options), type(self).__name__)
        super().__init__(objective, options, generator)
        parameters = objective.parameters
        self._steps = self.remember(Number("steps", 0))
        self._momentum = self.remember(PerParameter("momentum", parameters, degree=1))
        self._curvature = self.remember(
            PerParameter("curvature", parameters, degree=4 if self._squares_curvature else 2, resettable=False)
        )
        self._age = self.remember(PerRow("age", parameters))
        self._measured = self.remember(PerRow("measured", parameters))

    @property
    def _squares_curvature(self) -> bool:
        """Whether the running mean is one of squared curvatures, of the fourth degree in the gradient."""
        return False

    def _measure_needs(self, options: Any) -> frozenset[Oracle]:
        """Return the oracles of the curvature."""
        return options.make_product().needs

    @torch.no_grad()
    def step(self, batch: Any, progress: Progress) -> Evaluation:
        """Evaluate the gradient on ``batch``, its curvature where that is due, and move what was seen once."""
        options, parameters = self.options, self.objective.parameters
        units = self._units()
        # Before the gradient, whose buffers a difference of gradients would overwrite.
        fresh = self._measure(batch, units) if options.is_due(self._steps.value) else {}
        evaluation = self.objective.gradient(batch)
        seen = evaluation.seen
        self._steps.value += 1
        self._age.values += 1 if seen is None else seen
        if fresh:
            self._measured.values += 1 if seen is None else seen
        rates, other_rate = options.rates(self.objective.length_scale, progress), options.other_rate(progress)
        with quaternion_lengths_kept(parameters):
            for name, parameter in parameters.items():
                momentum, curvature = self._momentum[name], self._curvature[name]
                folded(momentum, evaluation.gradient[name], options.beta1, seen)
                if fresh:
                    folded(curvature, fresh[name], options.beta2, seen)
                if not curvature.any():  # nothing measured yet, or spherical harmonics above the rendered degree
                    continue
                ratio = self._ratio(
                    self._corrected(momentum, self._age, options.beta1, units[name]),
                    self._corrected(curvature, self._measured, options.beta2),
                ).clamp_(-1, 1)
                known = curvature != 0
                if seen is not None:
                    known &= by_row(seen, parameter) > 0
                parameter.sub_(torch.where(known, ratio, 0), alpha=rates.get(name, other_rate))
        return evaluation

    def _units(self) -> dict[str, float]:
        """Return u of every parameter: its rate at step 0, without the common factor."""
        start = Progress(0, 1)
        rates = self.options.rates(self.objective.length_scale, start)
        units = {name: rates.get(name, self.options.other_rate(start)) for name in self.objective.parameters}
        return {name: unit / self.options.rate_factor for name, unit in units.items()}

    def _corrected(self, mean: Tensor, count: PerRow, decay: float, factor: float = 1.0) -> Tensor:
        """Return a running mean, times a factor, over the weight of all that went into it; 0 where nothing did."""
        count_by_row = by_row(count.values, mean)
        return mean * torch.where(count_by_row > 0, factor / (1 - decay**count_by_row), 0)

    def _products(self, batch: Any, units: dict[str, float]) -> Iterator[tuple[Tensors, dict[str, Tensor]]]:
        """Yield random signs v and u ⊙ H(u ⊙ v), as often as the options say."""
        if self.generator is None:
            raise ValueError(f"{type(self).__name__} draws random signs: hand it the run's torch.Generator, got None")
        method, parameters = self.options.make_product(), self.objective.parameters
        for _ in range(self.options.probes):
            signs = {name: rademacher(parameter, self.generator) for name, parameter in parameters.items()}
            tangent = {name: units[name] * part for name, part in signs.items()}
            product = self.objective.hvp(batch, tangent, method)
            yield signs, {name: units[name] * part for name, part in product.items()}

    def _mean_of_probes(self, batch: Any, units: dict[str, float], *, squared: bool) -> dict[str, Tensor]:
        """Return the mean over the probes of (Hv)² or of v ⊙ Hv, of x."""
        total = {name: torch.zeros_like(parameter) for name, parameter in self.objective.parameters.items()}
        for signs, product in self._products(batch, units):
            for name, sum in total.items():
                sum.addcmul_(product[name], product[name] if squared else signs[name], value=1 / self.options.probes)
        return total

    @abstractmethod
    def _measure(self, batch: Any, units: dict[str, float]) -> dict[str, Tensor]:
        """Return what the running mean of curvature takes in, of x."""

    @abstractmethod
    def _ratio(self, momentum: Tensor, curvature: Tensor) -> Tensor:
        """Return the step of x before it is clipped, from both means, corrected; any value where there is none."""


class Esgd(_HessianDiagonal):
    """ESGD (Dauphin et al. 2015): D ← β₂D + (1-β₂)(Hv)², ratio = gain · m̂ / (√D̂ + damping)."""

    @property
    def _squares_curvature(self) -> bool:
        return True

    def _measure(self, batch: Any, units: dict[str, float]) -> dict[str, Tensor]:
        return self._mean_of_probes(batch, units, squared=True)

    def _ratio(self, momentum: Tensor, curvature: Tensor) -> Tensor:
        return esgd_ratio(momentum, curvature, damping=self.options.damping).mul_(self.options.gain)


class AdaHessian(_HessianDiagonal):
    """AdaHessian (Yao et al. 2021): the diagonal d = v ⊙ Hv, averaged over the entries that a Gaussian has in a tensor.

    D ← β₂D + (1-β₂)d², ratio = gain · m̂ / (√D̂)^k; with ``moment`` signed, D ← β₂D + (1-β₂)d and |D̂| for √D̂.
    """

    @property
    def _squares_curvature(self) -> bool:
        return self.options.moment == "squares"

    def _measure(self, batch: Any, units: dict[str, float]) -> dict[str, Tensor]:
        diagonal = self._mean_of_probes(batch, units, squared=False)
        means = {name: averaged(part) for name, part in diagonal.items()}
        return {name: part.square() for name, part in means.items()} if self.options.moment == "squares" else means

    def _ratio(self, momentum: Tensor, curvature: Tensor) -> Tensor:
        options = self.options
        size = curvature.sqrt() if options.moment == "squares" else curvature.abs()
        ratio = adahessian_ratio(momentum, size, power=options.hessian_power, epsilon=options.epsilon)
        return ratio.mul_(options.gain)


class Sophia(_HessianDiagonal):
    """Sophia (Liu et al. 2023): ratio = m / max(γh, ε), h a running mean of v ⊙ Hv or of diag(JᵀJ).

    Both means are corrected for their start, which the publication leaves out.
    """

    def _measure_needs(self, options: SophiaOptions) -> frozenset[Oracle]:
        if options.estimator == "hutchinson":
            return super()._measure_needs(options)
        return self._gauss_newton(options).needs

    @staticmethod
    def _gauss_newton(options: SophiaOptions) -> DiagonalEstimator:
        return Exact() if options.estimator == "exact" else ResidualProbes(options.probes)

    def _measure(self, batch: Any, units: dict[str, float]) -> dict[str, Tensor]:
        if self.options.estimator == "hutchinson":
            return self._mean_of_probes(batch, units, squared=False)
        diagonal = self.objective.gauss_newton_diagonal(batch, self._gauss_newton(self.options), self.generator)
        return {name: units[name] ** 2 * part for name, part in diagonal.items()}

    def _ratio(self, momentum: Tensor, curvature: Tensor) -> Tensor:
        return sophia_ratio(momentum, curvature, gamma=self.options.gamma, epsilon=self.options.epsilon)


register("esgd", Esgd, EsgdOptions, help="gradient over the norms of the Hessian's rows, clipped")
register("adahessian", AdaHessian, AdaHessianOptions, help="gradient over Hutchinson's Hessian diagonal, clipped")
register("sophia", Sophia, SophiaOptions, help="gradient over curvature, clipped to its sign")
