"""First-order optimizers: what needs the gradient and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from splatopt import kernels
from splatopt.core.checks import InputError, check_fraction, check_positive
from splatopt.core.native import adam_step, available
from splatopt.core.objective import Evaluation, Objective, Oracle
from splatopt.core.optimizer import Optimizer, Progress, register
from splatopt.core.state import Number, PerParameter


@dataclass(frozen=True)
class GaussianRates:
    """The per-group learning rates of 3DGS (Kerbl et al. 2023), tuned for steps of unit size such as Adam's."""

    means_rate: float = 1.6e-4
    """Rate of the means at step 0. Unit: scene extents per step. Source: 3DGS, position_lr_init."""

    means_final_factor: float = 0.01
    """What the means' rate has been multiplied by, decaying exponentially, when the run ends.
    Unit: factor. Source: 3DGS, position_lr_final / position_lr_init."""

    scales_rate: float = 5e-3
    """Rate of the log-scales. Unit: per step. Source: 3DGS, scaling_lr."""

    quats_rate: float = 1e-3
    """Rate of the quaternions. Unit: per step. Source: 3DGS, rotation_lr."""

    opacities_rate: float = 5e-2
    """Rate of the logit opacities. Unit: per step. Source: 3DGS, opacity_lr."""

    sh_dc_rate: float = 2.5e-3
    """Rate of the colour's constant band. Unit: per step. Source: 3DGS, feature_lr."""

    sh_rest_rate: float = 1.25e-4
    """Rate of the colour's higher bands. Unit: per step. Source: 3DGS, feature_lr / 20."""

    rate: float = 1e-3
    """Rate of every parameter that is not of a Gaussian. Unit: per step. Source: Kingma and Ba 2015."""

    def __post_init__(self) -> None:
        """Refuse rates that cannot descend."""
        for field in fields(GaussianRates):
            check_positive(field.name, getattr(self, field.name))

    def rates(self, length_scale: float, progress: Progress) -> dict[str, float]:
        """Return the rates of a cloud's parameters at one step.

        The means' rate is ``means_rate · length_scale · means_final_factor^fraction``, where the
        fraction is the share of the horizon already done; all others are constant.

        Args:
            length_scale: The objective's typical length, world units.
            progress: Where in the run the step stands.
        """
        return {
            "means": self.means_rate * length_scale * self.means_final_factor**progress.fraction,
            "log_scales": self.scales_rate,
            "quats": self.quats_rate,
            "logit_opacities": self.opacities_rate,
            "sh_dc": self.sh_dc_rate,
            "sh_rest": self.sh_rest_rate,
        }

    def other_rate(self, progress: Progress) -> float:
        """Return the rate of every parameter that is not of a Gaussian."""
        return self.rate


@dataclass(frozen=True)
class DecayingRates(GaussianRates):
    """The rates of 3DGS multiplied by one factor, and all decaying exponentially."""

    rate_factor: float = 3.0
    """Multiplies all rates. Unit: factor. Source: swept on lego_200, see docs/optim.md."""

    final_factor: float = 0.4
    """What every rate but the means' has been multiplied by, decaying exponentially, when the run ends.
    Unit: factor. Source: swept on lego_200, see docs/optim.md."""

    means_final_factor: float = 0.4
    """What the means' rate has been multiplied by, decaying exponentially, when the run ends.
    Unit: factor. Source: swept on lego_200, see docs/optim.md."""

    def __post_init__(self) -> None:
        """Refuse factors that cannot descend."""
        super().__post_init__()
        for name in ("rate_factor", "final_factor"):
            check_positive(name, getattr(self, name))

    def rates(self, length_scale: float, progress: Progress) -> dict[str, float]:
        """Return the rates of :class:`GaussianRates` times ``rate_factor``, the others' decaying like the means'."""
        factor = self.rate_factor * self.final_factor**progress.fraction
        own = {"means": self.rate_factor}
        return {name: rate * own.get(name, factor) for name, rate in super().rates(length_scale, progress).items()}

    def other_rate(self, progress: Progress) -> float:
        """Return the rate of every parameter that is not of a Gaussian, multiplied and decaying as well."""
        return super().other_rate(progress) * self.rate_factor * self.final_factor**progress.fraction


@dataclass(frozen=True)
class AdamOptions(GaussianRates):
    """Adam with the per-group learning rates of 3DGS (Kerbl et al. 2023)."""

    beta1: float = 0.9
    """Decay of the mean of gradients. Unit: fraction. Source: Kingma and Ba 2015."""

    beta2: float = 0.999
    """Decay of the mean of squared gradients. Unit: fraction. Source: Kingma and Ba 2015."""

    epsilon: float = 1e-15
    """Added to the root of the mean square. Unit: of the gradient. Source: 3DGS."""

    def __post_init__(self) -> None:
        """Refuse rates that cannot descend and decays that never forget."""
        super().__post_init__()
        check_fraction("beta1", self.beta1)
        check_fraction("beta2", self.beta2)
        check_positive("epsilon", self.epsilon)


@dataclass(frozen=True)
class TunedAdamOptions(DecayingRates, AdamOptions):
    """Adam with all rates of 3DGS raised by one factor, and all decaying: the baseline that is hard to beat."""


@dataclass(frozen=True)
class SearchedAdamOptions(TunedAdamOptions):
    """Adam with every group's rate and both decays searched on made scenes, at 8 views a step.

    What ``learned`` begins as, and the baseline that it has to beat. ``python -m benchmarks.search_rates`` found the
    numbers; with ``final_factor`` and ``means_final_factor`` at 1 the rates are held.
    """

    means_rate: float = 1.024e-2
    """Rate of the means at step 0. Unit: scene extents per step. Source: searched on made scenes, 64 times 3DGS'."""

    scales_rate: float = 0.16
    """Rate of the log-scales. Unit: per step. Source: searched on made scenes, 32 times 3DGS'."""

    quats_rate: float = 0.064
    """Rate of the quaternions. Unit: per step. Source: searched on made scenes, 64 times 3DGS'."""

    opacities_rate: float = 0.4
    """Rate of the logit opacities. Unit: per step. Source: searched on made scenes, 8 times 3DGS'."""

    sh_dc_rate: float = 0.04
    """Rate of the colour's constant band. Unit: per step. Source: searched on made scenes, 16 times 3DGS'."""

    sh_rest_rate: float = 4e-3
    """Rate of the colour's higher bands. Unit: per step. Source: searched on made scenes, 32 times 3DGS'."""

    beta1: float = 0.7
    """Decay of the mean of gradients. Unit: fraction. Source: searched on made scenes."""

    beta2: float = 0.95
    """Decay of the mean of squared gradients. Unit: fraction. Source: searched on made scenes."""

    rate_factor: float = 1.0
    """Multiplies all rates. Unit: factor. Source: searched rates are taken as they are."""

    patience: float = 0.0
    """Steps after which all rates have fallen to 2^-fall, as (1 + steps/patience)^-fall, whatever the horizon; 0 for
    never. Unit: steps. Source: Robbins and Monro 1951."""

    fall: float = 1.0
    """Power of that fall. Unit: none. Source: Robbins and Monro 1951."""

    final_factor: float = 0.03
    """What every rate but the means' has been multiplied by, decaying exponentially, when the run ends.
    Unit: factor. Source: swept on made scenes over 2,000 steps."""

    means_final_factor: float = 0.03
    """What the means' rate has been multiplied by, decaying exponentially, when the run ends.
    Unit: factor. Source: swept on made scenes over 2,000 steps."""

    def __post_init__(self) -> None:
        """Refuse a patience or a fall that means nothing."""
        super().__post_init__()
        for name in ("patience", "fall"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be 0 or a positive number, got {getattr(self, name)}")

    def rates(self, length_scale: float, progress: Progress) -> dict[str, float]:
        """Return the rates of :class:`DecayingRates`, fallen by the steps done."""
        rates = super().rates(length_scale, progress)
        if not self.patience:
            return rates
        factor = (1 + progress.step / self.patience) ** -self.fall
        return {name: rate * factor for name, rate in rates.items()}


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), equal to ``torch.optim.Adam`` up to rounding.

    With the gradient g of step t = 1, 2, …::

        m ← β₁ m + (1-β₁) g
        v ← β₂ v + (1-β₂) g²
        θ ← θ - rate · m/(1-β₁ᵗ) / (√(v/(1-β₂ᵗ)) + ε)

    Contiguous float32 parameters take fused passes that read and write each number once: a native one for each
    parameter on the CPU, one of Triton for all on a GPU. All others take the same formula in torch.
    """

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT})

    def __init__(self, objective: Objective, options: AdamOptions, generator: torch.Generator | None = None) -> None:
        """Start with empty means; see :class:`~splatopt.core.optimizer.Optimizer`."""
        super().__init__(objective, options, generator)
        self._steps = self.remember(Number("steps", 0))
        self._exp_avg = self.remember(PerParameter("exp_avg", objective.parameters, degree=1))
        self._exp_avg_sq = self.remember(PerParameter("exp_avg_sq", objective.parameters, degree=2))

    @torch.no_grad()
    def step(self, batch: Any, progress: Progress) -> Evaluation:
        """Evaluate the gradient on ``batch`` and move every parameter once."""
        options = self.options
        evaluation = self.objective.gradient(batch)
        rates, other_rate = options.rates(self.objective.length_scale, progress), options.other_rate(progress)
        self._steps.value += 1
        parameters, gradient = self.objective.parameters, evaluation.gradient
        if kernels.takes([*parameters.values(), *gradient.values()]):
            self._step_on_gpu(gradient, {name: rates.get(name, other_rate) for name in parameters})
            return evaluation
        for name, parameter in parameters.items():
            adam_update(
                parameter,
                gradient[name],
                self._exp_avg[name],
                self._exp_avg_sq[name],
                rate=rates.get(name, other_rate),
                step=self._steps.value,
                options=options,
                threads=self.threads,
                isa=self.instructions,
            )
        return evaluation

    def _step_on_gpu(self, gradient: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        """Move every parameter in one launch."""
        from splatopt.kernels import adam

        groups = [
            adam.AdamGroup(parameter, gradient[name], self._exp_avg[name], self._exp_avg_sq[name], rates[name])
            for name, parameter in self.objective.parameters.items()
        ]
        options = self.options
        adam.adam_step(
            groups, beta1=options.beta1, beta2=options.beta2, epsilon=options.epsilon, step=self._steps.value
        )


def adam_update(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    rate: float,
    step: int,
    options: AdamOptions,
    threads: int = 0,
    isa: str = "auto",
) -> None:
    """Move ``parameter`` and both means in place by one step of Adam.

    Args:
        parameter: θ, any shape.
        gradient: g, in the parameter's shape.
        exp_avg: m.
        exp_avg_sq: v.
        rate: Learning rate of this tensor.
        step: t, 1 at the first step.
        options: Betas and epsilon.
        threads: Threads of the fused pass, 0 for one per processor; the result does not depend on it.
        isa: Instruction set of the fused pass; the result does not depend on it where it has fused sums.
    """
    beta1, beta2, epsilon = options.beta1, options.beta2, options.epsilon
    if _fits_native(parameter, gradient) and available():
        adam_step(
            parameter,
            gradient,
            exp_avg,
            exp_avg_sq,
            rate=rate,
            beta1=beta1,
            beta2=beta2,
            epsilon=epsilon,
            step=step,
            threads=threads,
            isa=isa,
        )
        return
    exp_avg.lerp_(gradient, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = exp_avg_sq.sqrt().div_((1 - beta2**step) ** 0.5).add_(epsilon)
    parameter.addcdiv_(exp_avg, root, value=-rate / (1 - beta1**step))


def _fits_native(parameter: Tensor, gradient: Tensor) -> bool:
    """Whether the fused pass takes these tensors; the means are made by us in the parameter's layout."""
    return (
        parameter.dtype == torch.float32
        and parameter.device.type == "cpu"
        and parameter.is_contiguous()
        and gradient.is_contiguous()
    )


register("adam", Adam, AdamOptions, help="Adam with the rates of 3DGS; the default")
register("adam-tuned", Adam, TunedAdamOptions, help="Adam with all rates of 3DGS raised, and all decaying")
register("adam-searched", Adam, SearchedAdamOptions, help="Adam with rates and decays searched on made scenes")
