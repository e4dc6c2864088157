"""Adaptive radii: factors on trust radii from the gain ratio on views that a step was not made from.

A step d made of some views' gradients always gains on those views; whether it gains on others is what counts. Of a
part d_T of it, that of some types of parameters, the predicted and the actual reduction are taken on a batch that the
momentum does not hold yet, with the gradient mean ĝ of those before it:

    predicted = -ĝᵀd_T,  actual = L(θ) - L(θ + d_T),  ρ = Σ actual / Σ predicted

the gain ratio, with sums that decay (Armijo's ratio, over many steps instead of one). Noise of views makes ρ lie a
little below 0 once a run has settled. Where it stays far below, steps of these types undo each other from view to view,
and their radii shrink; where it comes back, they grow again, up to what they would be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from splatopt.core.checks import InputError
from splatopt.core.schema import PARAMETER_TYPES
from splatopt.core.state import OptimizerState, StatePart

_BELOW, _ABOVE = -0.6, -0.3
"""ρ below which radii shrink, and above which they grow."""

_SHRINK, _GROW = 0.8, 1.1
"""By how much, each time a gain ratio of their types is taken."""

_RESOLUTION = 1e-6
"""Of predicted reductions that are a smaller share of the loss than this, rounding hides what comes."""

_MEMORY = 0.9
"""Decay of the sums of reductions."""


class RadiusFactors(StatePart):
    """A factor on the radii of each group of types, at most 1; one group after the other is measured."""

    def __init__(self, names: Sequence[str], min_factor: float) -> None:
        """Begin with factors of 1.

        Args:
            names: Parameters; those that are no Gaussian's are one group.
            min_factor: No factor falls below it; 1 for factors that stay 1.
        """
        known = [tuple(name for name in group if name in names) for group in PARAMETER_TYPES]
        others = tuple(name for name in names if not any(name in group for group in PARAMETER_TYPES))
        self.groups = tuple(group for group in (*known, others) if group)
        self.min_factor = min_factor
        self._position = 0
        self._factors = [1.0] * len(self.groups)
        self._actual = [0.0] * len(self.groups)
        self._predicted = [0.0] * len(self.groups)

    @property
    def adapts(self) -> bool:
        """Whether factors may be other than 1."""
        return self.min_factor < 1

    @property
    def factors(self) -> dict[str, float]:
        """The factor on each parameter's radii."""
        return {name: factor for group, factor in zip(self.groups, self._factors, strict=True) for name in group}

    @property
    def metrics(self) -> dict[str, float]:
        """The factors of the groups by their first parameters, for a run's metrics; nothing where they cannot move."""
        named = {f"radius_factor_{group[0]}": factor for group, factor in zip(self.groups, self._factors, strict=True)}
        return named if self.adapts else {}

    @property
    def measured(self) -> tuple[str, ...]:
        """The parameters that are measured next."""
        return self.groups[self._position % len(self.groups)]

    def update(self, before: float, after: float, predicted: float) -> None:
        """Take the actual and predicted reduction by :attr:`measured`'s part of a step, and go on to the next.

        Args:
            before: The loss without it.
            after: The loss with it.
            predicted: The predicted reduction, to first order.
        """
        group = self._position % len(self.groups)
        self._position += 1
        if not (math.isfinite(after) and _RESOLUTION * abs(before) < predicted < math.inf):
            return
        self._actual[group] = _MEMORY * self._actual[group] + before - after
        self._predicted[group] = _MEMORY * self._predicted[group] + predicted
        ratio = self._actual[group] / self._predicted[group]
        if ratio < _BELOW:
            self._factors[group] = max(self.min_factor, _SHRINK * self._factors[group])
        elif ratio > _ABOVE:
            self._factors[group] = min(1.0, _GROW * self._factors[group])

    def scalars(self) -> dict[str, float | int]:
        """Return what :meth:`load` takes."""
        kept: dict[str, float | int] = {"radius_factors.position": self._position}
        for group in range(len(self.groups)):
            kept[f"radius_factors.{group}.factor"] = self._factors[group]
            kept[f"radius_factors.{group}.actual"] = self._actual[group]
            kept[f"radius_factors.{group}.predicted"] = self._predicted[group]
        return kept

    def load(self, state: OptimizerState) -> None:
        """Go on from ``state``, from that of a version without these factors as at the beginning.

        Raises:
            InputError: They are of other parameters.
        """
        scalars = state.scalars
        if "radius_factors.position" not in scalars:
            return
        if not self.scalars().keys() <= scalars.keys():
            raise InputError("this is not a state of block-gn; start a new run")
        self._position = int(scalars["radius_factors.position"])
        for group in range(len(self.groups)):
            self._factors[group] = float(scalars[f"radius_factors.{group}.factor"])
            self._actual[group] = float(scalars[f"radius_factors.{group}.actual"])
            self._predicted[group] = float(scalars[f"radius_factors.{group}.predicted"])
