"""First-order optimizers: what needs the gradient and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, fields

from splatopt.core.checks import InputError, check_fraction, check_positive
from splatopt.core.optimizer import Progress, register
from splatopt.optim.parts.adam import AdamMoments
from splatopt.optim.parts.bounds import Unbounded
from splatopt.optim.parts.composed import ComposedOptimizer, Parts
from splatopt.optim.parts.own_frames import OwnFrameMoments


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
    """Multiplies all rates. Unit: factor. Source: swept on lego_200, see docs/results/optim.md."""

    final_factor: float = 0.4
    """What every rate but the means' has been multiplied by, decaying exponentially, when the run ends.
    Unit: factor. Source: swept on lego_200, see docs/results/optim.md."""

    means_final_factor: float = 0.4
    """What the means' rate has been multiplied by, decaying exponentially, when the run ends.
    Unit: factor. Source: swept on lego_200, see docs/results/optim.md."""

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
    """Adam with every group's rate and both decays searched on synthetic scenes, at 8 views a step.

    What ``learned`` begins as, and the baseline that it has to beat. ``python -m benchmarks.search_rates`` found the
    numbers; with ``final_factor`` and ``means_final_factor`` at 1 the rates are held.
    """

    means_rate: float = 1.024e-2
    """Rate of the means at step 0. Unit: scene extents per step. Source: searched on synthetic scenes, 64 times
    3DGS'."""

    scales_rate: float = 0.16
    """Rate of the log-scales. Unit: per step. Source: searched on synthetic scenes, 32 times 3DGS'."""

    quats_rate: float = 0.064
    """Rate of the quaternions. Unit: per step. Source: searched on synthetic scenes, 64 times 3DGS'."""

    opacities_rate: float = 0.4
    """Rate of the logit opacities. Unit: per step. Source: searched on synthetic scenes, 8 times 3DGS'."""

    sh_dc_rate: float = 0.04
    """Rate of the colour's constant band. Unit: per step. Source: searched on synthetic scenes, 16 times 3DGS'."""

    sh_rest_rate: float = 4e-3
    """Rate of the colour's higher bands. Unit: per step. Source: searched on synthetic scenes, 32 times 3DGS'."""

    beta1: float = 0.7
    """Decay of the mean of gradients. Unit: fraction. Source: searched on synthetic scenes."""

    beta2: float = 0.95
    """Decay of the mean of squared gradients. Unit: fraction. Source: searched on synthetic scenes."""

    rate_factor: float = 1.0
    """Multiplies all rates. Unit: factor. Source: searched rates are taken as they are."""

    patience: float = 0.0
    """Steps after which all rates have fallen to 2^-fall, as (1 + steps/patience)^-fall, whatever the horizon; 0 for
    never. Unit: steps. Source: Robbins and Monro 1951."""

    fall: float = 1.0
    """Power of that fall. Unit: none. Source: Robbins and Monro 1951."""

    final_factor: float = 0.03
    """What every rate but the means' has been multiplied by, decaying exponentially, when the run ends.
    Unit: factor. Source: swept on synthetic scenes over 2,000 steps."""

    means_final_factor: float = 0.03
    """What the means' rate has been multiplied by, decaying exponentially, when the run ends.
    Unit: factor. Source: swept on synthetic scenes over 2,000 steps."""

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


class Adam(ComposedOptimizer):
    """Adam (Kingma and Ba 2015), equal to ``torch.optim.Adam`` up to rounding.

    With the gradient g of step t = 1, 2, …::

        m ← β₁ m + (1-β₁) g
        v ← β₂ v + (1-β₂) g²
        θ ← θ - rate · m/(1-β₁ᵗ) / (√(v/(1-β₂ᵗ)) + ε)

    Contiguous float32 parameters take fused passes that read and write each number once: a native one for each
    parameter on the CPU, one of Triton for all on a GPU. All others take the same formula in torch.
    """

    options: AdamOptions

    def position_rate(self, progress: Progress) -> float | None:
        """Return the means' rate."""
        return self.options.rates(self.objective.length_scale, progress)["means"]

    def compose(self) -> Parts:
        """Return Adam's direction, which nothing bounds."""
        return Parts(AdamMoments(self, self.options), Unbounded())


@dataclass(frozen=True)
class OwnFrameAdamOptions(TunedAdamOptions):
    """Adam in each Gaussian's own frame; the rates of centres and turns are in the Gaussian's own units."""

    means_rate: float = 0.02
    """Rate of the means at step 0, along the own axes. Unit: own standard deviations per step.
    Source: swept on synthetic scenes over 500 steps."""

    quats_rate: float = 2e-3
    """Rate of the turns about the own axes. Unit: radians per step. Source: 3DGS, rotation_lr, of a unit quaternion."""


class OwnFrameAdam(ComposedOptimizer):
    """Adam whose moments live in each Gaussian's own frame, see ``splatopt.optim.parts.own_frames``."""

    options: OwnFrameAdamOptions

    def compose(self) -> Parts:
        """Return Adam's direction in own frames, which nothing bounds."""
        return Parts(OwnFrameMoments(self, self.options), Unbounded())


register("adam-frames", OwnFrameAdam, OwnFrameAdamOptions, help="Adam in each Gaussian's own frame")
register("adam", Adam, AdamOptions, help="Adam with the rates of 3DGS; the default with --steps")
register("adam-tuned", Adam, TunedAdamOptions, help="Adam with all rates of 3DGS raised, and all decaying")
register("adam-searched", Adam, SearchedAdamOptions, help="Adam with rates and decays searched on synthetic scenes")
