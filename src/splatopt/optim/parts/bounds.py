"""Step bounds: how far a step may go."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from splatopt.core.objective import Tensors
from splatopt.core.optimizer import Progress
from splatopt.optim.fused import BoundsT, CloudT, FusedPasses
from splatopt.optim.hellinger import HellingerRadii, TrustRegionOptions
from splatopt.optim.parts.direction import Change, Quotient, Share, Solved, Whole
from splatopt.optim.radius_factors import RadiusFactors


class StepBound(ABC):
    """Applies changes within what is allowed."""

    def begin(self, progress: Progress) -> None:  # noqa: B027 - not all change over a run
        """Take up what holds at one step of the run."""

    def measure(self, parameters: Tensors) -> None:  # noqa: B027 - not all depend on the point
        """Find the radii at the point that a move starts from."""

    def release(self) -> None:  # noqa: B027 - as above
        """Forget them."""

    def position_rate(self, progress: Progress) -> float | None:
        """Return the learning rate of Gaussians' centres that it is made of; None for none."""
        return None

    @abstractmethod
    def apply(self, name: str, parameter: Tensor, change: Change) -> None:
        """Change the parameter ``name`` in place, within the bound.

        Raises:
            TypeError: The bound means nothing to such a change.
        """


class Unbounded(StepBound):
    """No bound: a change is taken whole."""

    def apply(self, name: str, parameter: Tensor, change: Change) -> None:
        """θ ← θ - factor · numerator/denominator, or θ + step."""
        if isinstance(change, Whole):
            parameter.add_(change.step)
            return
        if not isinstance(change, Quotient):
            raise TypeError(f"a {type(change).__name__} needs a radius, and nothing bounds this step")
        parameter.addcdiv_(change.numerator, change.denominator, value=-change.factor)


class HellingerBox(StepBound):
    """Each entry is clipped to its own Hellinger radius η, at a distance ε that shrinks over the run."""

    def __init__(self, options: TrustRegionOptions, length_scale: float) -> None:
        """Keep how ε shrinks, and the scene's length, world units."""
        self._options = options
        self._radii = HellingerRadii(options, length_scale)
        self._epsilon = math.nan
        self.radii: dict[str, Tensor] = {}

    def begin(self, progress: Progress) -> None:
        """Take up ε."""
        self._epsilon = self._options.distance(progress)

    def measure(self, parameters: Tensors) -> None:
        """Find η of every parameter."""
        self.radii = self._radii.radii(parameters, self._epsilon)

    def release(self) -> None:
        """Forget η."""
        self.radii = {}

    def apply(self, name: str, parameter: Tensor, change: Change) -> None:
        """θ ← θ - clip(step, -η, η)."""
        radius = self.radii[name]
        match change:
            case Share():
                parameter.sub_(change.values.clamp_(-1, 1).mul_(radius))
            case Quotient():
                step = torch.div(change.numerator, change.denominator, out=change.denominator).mul_(change.factor)
                parameter.sub_(step.clamp_(-radius, radius))
            case Solved() | Whole():
                raise TypeError("a box clips entries, and this step is of whole rows")

    def fused(self, passes: FusedPasses[BoundsT, CloudT]) -> BoundsT:
        """Return what fused passes make the same radii from."""
        return self._radii.fused_bounds(passes, self._epsilon)


class HellingerBall(StepBound):
    """A row's step d stays within Σ (d_k/η_k)² ≤ 1, which a direction that solves within it keeps to by itself.

    Parameters that are in no row's ball keep to |d_k| ≤ η_k, a ball of one dimension.
    """

    def __init__(self, options: TrustRegionOptions, length_scale: float, radius_factors: RadiusFactors) -> None:
        """Keep how ε shrinks, the scene's length, world units, and the factors on the radii."""
        self._options = options
        self._radii = HellingerRadii(options, length_scale)
        self._radius_factors = radius_factors
        self._epsilon = math.nan

    def begin(self, progress: Progress) -> None:
        """Take up ε."""
        self._epsilon = self._options.distance(progress)

    def radii(self, parameters: Tensors) -> dict[str, Tensor]:
        """Return η of every parameter, in its shape; the direction asks for the rows that it solves."""
        radii = self._radii.radii(parameters, self._epsilon, self._radius_factors.factors)
        return {name: eta.expand_as(parameters[name]) for name, eta in radii.items()}

    def apply(self, name: str, parameter: Tensor, change: Change) -> None:
        """θ ← θ + d in the rows that were solved."""
        if not isinstance(change, Solved):
            raise TypeError(f"a {type(change).__name__} was not solved within a ball")
        parameter[change.rows] += change.step

    def fused(self, passes: FusedPasses[BoundsT, CloudT]) -> BoundsT:
        """Return what fused passes make the same radii from."""
        return self._radii.fused_bounds(passes, self._epsilon, self._radius_factors.factors)


@runtime_checkable
class Rates(Protocol):
    """Learning rates by parameter, such as those of ``GaussianRates``."""

    def rates(self, length_scale: float, progress: Progress) -> dict[str, float]:
        """Return the rates of a cloud's parameters at one step."""
        ...

    def other_rate(self, progress: Progress) -> float:
        """Return the rate of every other parameter."""
        ...


class RateBox(StepBound):
    """Each entry is clipped to its learning rate ℓ, which is its radius."""

    def __init__(self, rates: Rates, length_scale: float) -> None:
        """Keep the rates and the scene's length, world units."""
        self._options, self._length_scale = rates, length_scale
        self._rates: dict[str, float] = {}
        self._other_rate = math.nan

    def begin(self, progress: Progress) -> None:
        """Take up the rates."""
        self._rates = self._options.rates(self._length_scale, progress)
        self._other_rate = self._options.other_rate(progress)

    def position_rate(self, progress: Progress) -> float | None:
        """Return ℓ of the means."""
        return self._options.rates(self._length_scale, progress).get("means")

    def apply(self, name: str, parameter: Tensor, change: Change) -> None:
        """θ ← θ - ℓ · clip(values, -1, 1)."""
        if not isinstance(change, Share):
            raise TypeError(f"a {type(change).__name__} is in no share of a rate")
        parameter.sub_(change.values.clamp_(-1, 1), alpha=self._rates.get(name, self._other_rate))
