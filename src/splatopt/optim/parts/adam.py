"""Adam's direction, and Adam's whole step of one tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from splatopt.core.native import adam_step, available
from splatopt.core.objective import Batch, Evaluation
from splatopt.core.optimizer import Optimizer, Progress
from splatopt.core.state import PerParameter
from splatopt.optim.parts.bounds import Rates
from splatopt.optim.parts.direction import Change, Direction, Point, Quotient


@runtime_checkable
class Decays(Protocol):
    """The numbers of Adam's formula."""

    @property
    def beta1(self) -> float:
        """Decay of the mean of gradients."""
        ...

    @property
    def beta2(self) -> float:
        """Decay of the mean of squared gradients."""
        ...

    @property
    def epsilon(self) -> float:
        """What is added to the root of the mean square."""
        ...


@runtime_checkable
class AdamNumbers(Decays, Rates, Protocol):
    """Adam's numbers and its rates, such as ``AdamOptions``."""


class AdamMoments(Direction):
    """-rate · m/(1-β₁ᵗ) / (√(v/(1-β₂ᵗ)) + ε), m and v running means of g and g²; ``steps`` is t."""

    def __init__(self, host: Optimizer, options: AdamNumbers, *, rate_factor: float = 1.0) -> None:
        """Start with empty means.

        Args:
            host: The optimizer.
            options: Rates, betas and epsilon.
            rate_factor: Multiplies all rates.
        """
        super().__init__(host)
        self.options, self._rate_factor = options, rate_factor
        self.exp_avg = host.remember(PerParameter("exp_avg", self.objective.parameters, degree=1))
        self.exp_avg_sq = host.remember(PerParameter("exp_avg_sq", self.objective.parameters, degree=2))
        self.rates: dict[str, float] = {}

    def evaluate(self, batch: Batch, progress: Progress) -> Evaluation:
        """Return loss and gradient, and take up the rates of this step."""
        rates = self.options.rates(self.objective.length_scale, progress)
        other_rate, factor = self.options.other_rate(progress), self._rate_factor
        self.rates = {name: rates.get(name, other_rate) * factor for name in self.objective.parameters}
        return super().evaluate(batch, progress)

    def changes(self, at: Point) -> Iterator[tuple[str, Change]]:
        """Yield Adam's step."""
        for name in at.parameters:
            gradient = at.gradient[name]
            moments = self.exp_avg[name], self.exp_avg_sq[name]
            yield name, adam_quotient(gradient, *moments, self.rates[name], self.steps.value, self.options)

    def update(self, at: Point) -> None:
        """Take the whole step of every parameter, one by one, in a native pass where it fits."""
        step, workers = self.steps.value, (self._host.threads, self._host.instructions)
        for name, parameter in at.parameters.items():
            adam_update(
                parameter,
                at.gradient[name],
                self.exp_avg[name],
                self.exp_avg_sq[name],
                rate=self.rates[name],
                step=step,
                options=self.options,
                workers=workers,
            )


def adam_quotient(
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rate: float,
    step: int,
    options: Decays,
    square: Tensor | None = None,
) -> Quotient:
    """Bring both means up to date, in place, and return Adam's step.

    Args:
        gradient: g.
        exp_avg: m, in its shape.
        exp_avg_sq: v, likewise.
        rate: Learning rate of this tensor.
        step: t, 1 at the first step.
        options: Betas and epsilon.
        square: What v is the mean of; g² when None.
    """
    exp_avg.lerp_(gradient, 1 - options.beta1)
    exp_avg_sq.mul_(options.beta2)
    if square is None:
        exp_avg_sq.addcmul_(gradient, gradient, value=1 - options.beta2)
    else:
        exp_avg_sq.add_(square, alpha=1 - options.beta2)
    root = exp_avg_sq.sqrt().div_((1 - options.beta2**step) ** 0.5).add_(options.epsilon)
    return Quotient(exp_avg, root, rate / (1 - options.beta1**step))


def adam_update(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    rate: float,
    step: int,
    options: Decays,
    workers: tuple[int, str] = (0, "auto"),
) -> None:
    """Move ``parameter`` and both means in place by one step of Adam that nothing bounds.

    Args:
        parameter: θ, any shape.
        gradient: g, in the parameter's shape.
        exp_avg: m.
        exp_avg_sq: v.
        rate: Learning rate of this tensor.
        step: t, 1 at the first step.
        options: Betas and epsilon.
        workers: Threads of the fused pass, 0 for one per processor, and its instruction set; the result does not
            depend on them where the set has fused sums.
    """
    if not (_fits_native(parameter, gradient) and available()):
        change = adam_quotient(gradient, exp_avg, exp_avg_sq, rate, step, options)
        parameter.addcdiv_(change.numerator, change.denominator, value=-change.factor)
        return
    adam_step(
        parameter,
        gradient,
        exp_avg,
        exp_avg_sq,
        rate=rate,
        beta1=options.beta1,
        beta2=options.beta2,
        epsilon=options.epsilon,
        step=step,
        threads=workers[0],
        isa=workers[1],
    )


def _fits_native(parameter: Tensor, gradient: Tensor) -> bool:
    """Whether the fused pass takes these tensors; the means are made by us in the parameter's layout."""
    return (
        parameter.dtype == torch.float32
        and parameter.device.type == "cpu"
        and parameter.is_contiguous()
        and gradient.is_contiguous()
    )
