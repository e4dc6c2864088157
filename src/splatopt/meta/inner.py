"""The Adam inside the learned step, and all that a learned run remembers of a Gaussian."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from splatopt.core.checks import InputError, check_fraction, check_positive
from splatopt.core.objective import Tensors
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.core.state import OptimizerState, StatePart
from splatopt.optim.first_order import SearchedAdamOptions

SLOW_GROUPS = GAUSSIAN_TENSORS[:-1]
"""Tensors with a second, slower mean of gradients: all but the colour's higher bands."""

LOSS_DECAYS = (0.8, 0.98, 0.998)
"""Decays of the running means of the loss whose ratios say whether it still falls. Unit: fraction a step."""


MIN_SHARE = 0.01
"""Shares of the network below count as none. Unit: fraction. Source: own choice."""


@dataclass(frozen=True)
class InnerRates:
    """Adam's rates per group, at a Gaussian's first step, and its decays: what an untrained network steps like.

    Rates fall with the Gaussian's age, see :meth:`fallen`. The values are those of ``adam-searched``, searched on
    synthetic scenes at 8 views a step.
    """

    means: float = SearchedAdamOptions.means_rate
    """Unit: scene extents per step. Source: searched."""

    log_scales: float = SearchedAdamOptions.scales_rate
    """Unit: per step. Source: searched."""

    quats: float = SearchedAdamOptions.quats_rate
    """Unit: per step. Source: searched."""

    logit_opacities: float = SearchedAdamOptions.opacities_rate
    """Unit: per step. Source: searched."""

    sh_dc: float = SearchedAdamOptions.sh_dc_rate
    """Unit: per step. Source: searched."""

    sh_rest: float = SearchedAdamOptions.sh_rest_rate
    """Unit: per step. Source: searched."""

    beta1: float = SearchedAdamOptions.beta1
    """Decay of the mean of gradients. Unit: fraction. Source: searched."""

    beta2: float = SearchedAdamOptions.beta2
    """Decay of the mean of squared gradients. Unit: fraction. Source: searched."""

    beta_slow: float = 0.98
    """Decay of the second, slower mean of gradients, an input alone. Unit: fraction. Source: fifty steps, five of
    the ten or so that β₁ remembers."""

    patience: float = 100.0
    """Times that a Gaussian was seen after which its rates have fallen to 2^-fall, as (1 + age/patience)^-fall. That
    knows no horizon, and a Gaussian that is added later begins anew. Unit: steps. Source: swept on synthetic scenes."""

    fall: float = 1.0
    """Power of that fall. Unit: none. Source: swept on synthetic scenes."""

    handover: float = 8.0
    """Times that a Gaussian was seen after which half of what the network adds is left, as 1/(1 + age/handover): late,
    the step is Adam's, which comes to rest; after a hundred times as many the network is not asked any more. Unit:
    steps. Source: 8 and 14 compared on synthetic scenes, docs/results/learned.md."""

    average_power: float = 20.0
    """k of the running average of iterates, which is what the learned step leaves: about the last 1/(k+1) of the
    steps count; 0 for the last iterate alone. Unit: none. Source: 0 to 20 tried on synthetic scenes,
    docs/results/learned.md."""

    epsilon: float = SearchedAdamOptions.epsilon
    """Added to the root of the mean square. Unit: of the gradient. Source: 3DGS."""

    def __post_init__(self) -> None:
        """Refuse what cannot descend."""
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "average_power":
                if not 0 <= value < math.inf:
                    raise InputError(f"average_power must be 0 or a positive number, got {value}")
                continue
            check = check_fraction if item.name.startswith("beta") else check_positive
            check(item.name, value)

    def of(self, group: str, length_scale: float) -> float:
        """Return the rate of ``group`` at a Gaussian's first step, in a scene of extent ``length_scale``."""
        rate: float = getattr(self, group)
        return rate * length_scale if group == "means" else rate

    def fallen(self, age: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return what is left of the rates for Gaussians that were seen ``age`` times, this one included, float64."""
        return (age.double() - 1).clamp_(min=0).div_(self.patience).add_(1).pow_(-self.fall)

    def learned_share(self, age: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the network's share in the steps of Gaussians that were seen ``age`` times, in the type of ``age``.

        A share below a hundredth is none: such a Gaussian takes Adam's step, and has nothing to say to others.
        """
        share = (age - 1).clamp_(min=0).div_(self.handover).add_(1).reciprocal_()
        return share.mul_(share >= MIN_SHARE)


@dataclass
class InnerState(StatePart):
    """What a learned run keeps.

    Attributes:
        exp_avg: m, the mean of gradients, in each parameter's shape.
        exp_avg_sq: v, the mean of squared gradients.
        slow: The slower mean of gradients, of ``SLOW_GROUPS``.
        latent: What the network remembers of each Gaussian, (N, C).
        age: Evaluations that have seen each Gaussian, (N,).
        losses: Running means of the loss with ``LOSS_DECAYS``, not corrected for their start.
        steps: Steps taken.
    """

    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    slow: dict[str, Tensor]
    latent: Tensor
    age: Tensor
    losses: list[float] = field(default_factory=lambda: [0.0] * len(LOSS_DECAYS))
    steps: int = 0

    @classmethod
    def begin(cls, parameters: Tensors, latent_width: int) -> InnerState:
        """Return the state before the first step.

        Raises:
            InputError: The parameters are not those of Gaussians.
        """
        if set(parameters) != set(GAUSSIAN_TENSORS):
            raise InputError(
                f"the learned step is for Gaussians with {', '.join(GAUSSIAN_TENSORS)}, got {', '.join(parameters)}; "
                "take adam or another optimizer"
            )
        means = parameters["means"]
        return cls(
            exp_avg={name: torch.zeros_like(parameters[name]) for name in GAUSSIAN_TENSORS},
            exp_avg_sq={name: torch.zeros_like(parameters[name]) for name in GAUSSIAN_TENSORS},
            slow={name: torch.zeros_like(parameters[name]) for name in SLOW_GROUPS},
            latent=means.new_zeros(len(means), latent_width),
            age=means.new_zeros(len(means)),
        )

    def observe(self, gradient: Tensors, loss: float, seen: Bool[Tensor, " n"] | None, rates: InnerRates) -> None:
        """Take in one evaluation: means of gradients of the rows that it saw, and of the loss."""
        seen = None if seen is None or bool(seen.all()) else seen
        for name in GAUSSIAN_TENSORS:
            g, mean, mean_square = gradient[name], self.exp_avg[name], self.exp_avg_sq[name]
            _keep(mean, torch.lerp(mean, g, 1 - rates.beta1), seen)
            _keep(mean_square, (mean_square * rates.beta2).addcmul_(g, g, value=1 - rates.beta2), seen)
        for name, mean in self.slow.items():
            _keep(mean, torch.lerp(mean, gradient[name], 1 - rates.beta_slow), seen)
        self.age += 1 if seen is None else seen
        self.count(loss)

    def count(self, loss: float) -> None:
        """Take in the loss of one evaluation, and that there was one."""
        for place, decay in enumerate(LOSS_DECAYS):
            self.losses[place] += (1 - decay) * (loss - self.losses[place])
        self.steps += 1

    def rescale_losses(self, loss: float) -> None:
        """Multiply the running means of the loss, so that the fastest one is ``loss``; their ratios stay."""
        fast = self.running_losses()[0]
        if math.isfinite(loss) and fast > 0:
            self.losses = [mean * (loss / fast) for mean in self.losses]

    def running_losses(self) -> list[float]:
        """Return the running means of the loss, corrected for their start at zero."""
        steps = max(1, self.steps)
        return [mean / (1 - decay**steps) for mean, decay in zip(self.losses, LOSS_DECAYS, strict=True)]

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, as they are saved."""
        named = {f"exp_avg.{name}": value for name, value in self.exp_avg.items()}
        named |= {f"exp_avg_sq.{name}": value for name, value in self.exp_avg_sq.items()}
        named |= {f"slow.{name}": value for name, value in self.slow.items()}
        return named | {"latent": self.latent, "age": self.age}

    def scalars(self) -> dict[str, float | int]:
        """Return all numbers by name, as they are saved."""
        return {"steps": self.steps} | {f"loss_{place}": value for place, value in enumerate(self.losses)}

    def load(self, state: OptimizerState) -> None:
        """Go on from what :meth:`tensors` and :meth:`scalars` gave.

        Raises:
            InputError: Something is missing or has another shape or type.
        """
        for name, like in self.tensors().items():
            value = state.tensors.get(name)
            if value is None or value.shape != like.shape or value.dtype != like.dtype:
                came = "nothing" if value is None else f"{tuple(value.shape)} {value.dtype}"
                raise InputError(
                    f"the optimizer's state {name} must be {tuple(like.shape)} {like.dtype} to fit its scene and its "
                    f"network, got {came}; resume the run that wrote it with its own weights, or start a new one"
                )
            like.copy_(value)
        missing = [name for name in self.scalars() if name not in state.scalars]
        if missing:
            raise InputError(f"this is not a state of learned: it holds no {missing[0]}; start a new run")
        self.steps = int(state.scalars["steps"])
        self.losses = [float(state.scalars[f"loss_{place}"]) for place in range(len(LOSS_DECAYS))]

    def clone(self) -> InnerState:
        """Return a copy that shares no memory and no graph."""
        return InnerState(
            exp_avg=_copied(self.exp_avg),
            exp_avg_sq=_copied(self.exp_avg_sq),
            slow=_copied(self.slow),
            latent=self.latent.detach().clone(),
            age=self.age.clone(),
            losses=list(self.losses),
            steps=self.steps,
        )

    def edit_rows(self, edit: SceneEdit, parameters: Tensors) -> None:
        """Gather what is kept by row; fresh rows start anew, at age zero."""
        for part, degree in ((self.exp_avg, 1), (self.exp_avg_sq, 2), (self.slow, 1)):
            for name, value in part.items():
                part[name] = edit.parameter_state(name, value, degree)
        self.latent, self.age = edit.gather_state(self.latent), edit.gather_state(self.age)


def _keep(kept: Tensor, new: Tensor, seen: Tensor | None) -> None:
    """Write ``new`` over ``kept``, in the rows that were seen where not all were."""
    kept.copy_(new if seen is None else torch.where(seen.reshape(-1, *[1] * (new.dim() - 1)), new, kept))


def _copied(part: Tensors) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in part.items()}


def corrections(state: InnerState, rates: InnerRates) -> tuple[Tensor, Tensor]:
    """Return 1-β₁ᵗ and √(1-β₂ᵗ), (N,) float64, t counted for each row since it was first seen; 1 step at least."""
    age = state.age.double().clamp(min=1)
    return 1 - rates.beta1**age, (1 - rates.beta2**age).sqrt()


def roots(state: InnerState, rates: InnerRates, group: str, correction: Tensor) -> Tensor:
    """Return √v̂ + ε of ``group``."""
    square = state.exp_avg_sq[group]
    return square.sqrt().div_(by_row(correction, square)).add_(rates.epsilon)


def adam_step(mean: Tensor, root: Tensor, rate: Tensor, correction: Tensor) -> Tensor:
    """Return Adam's step -rate · m̂ / (√v̂ + ε), with the roundings of ``optim.parts.adam.adam_update``.

    Args:
        mean: m.
        root: √v̂ + ε.
        rate: Of each row, (N,) float64.
        correction: 1-β₁ᵗ of each row, (N,) float64.
    """
    return by_row(-rate / correction, mean) * mean / root


def by_row(values: Tensor, like: Tensor) -> Tensor:
    """Return ``values`` (N,), one per row, in the type of ``like`` and in a shape that goes with it."""
    return values.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))
