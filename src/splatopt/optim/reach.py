"""Radii that adapt: how far steps may reach follows from what they are worth on views that they do not know.

A step d made of some views' gradients always gains on those views; whether it gains on others is what counts. Of a
part d_T of it, that of some types of parameters, two numbers are taken on a batch that has not been heard yet, by the
gradient mean ĝ of the batches before it:

    promised = -ĝᵀd_T,  actual = L(θ) - L(θ + d_T),  ρ = Σ actual / Σ promised

with sums that forget (Armijo's ratio, over many steps instead of one). Noise of views makes ρ lie a little below 0 once
a run has settled. Where it stays far below, steps of these types undo each other from view to view, and their radii
shrink; where it comes back, they grow again, up to what they would be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from splatopt.core.checks import InputError
from splatopt.core.state import OptimizerState, StatePart

TYPES = (("means",), ("log_scales", "quats"), ("logit_opacities", "sh_dc", "sh_rest"))
"""Types of a Gaussian's parameters that are judged together: its place, its shape, its look."""

_BELOW, _ABOVE = -0.6, -0.3
"""ρ below which radii shrink, and above which they grow."""

_SHRINK, _GROW = 0.8, 1.1
"""By how much, each time their types are judged."""

_RESOLUTION = 1e-6
"""Of promises that are a smaller share of the loss than this, rounding hides what comes."""

_MEMORY = 0.9
"""What a sum keeps when its types are judged once more."""


class Reach(StatePart):
    """A factor on the radii of each group of types, at most 1; the groups are judged in turn."""

    def __init__(self, names: Sequence[str], least: float) -> None:
        """Begin with factors of 1.

        Args:
            names: Parameters; those that are no Gaussian's are one group.
            least: No factor falls below it; 1 for factors that stay 1.
        """
        known = [tuple(name for name in group if name in names) for group in TYPES]
        others = tuple(name for name in names if not any(name in group for group in TYPES))
        self.groups = tuple(group for group in (*known, others) if group)
        self.least = least
        self._turn = 0
        self._factors = [1.0] * len(self.groups)
        self._actual = [0.0] * len(self.groups)
        self._promised = [0.0] * len(self.groups)

    @property
    def adapts(self) -> bool:
        """Whether factors may be other than 1."""
        return self.least < 1

    @property
    def factors(self) -> dict[str, float]:
        """The factor on each parameter's radii."""
        return {name: factor for group, factor in zip(self.groups, self._factors, strict=True) for name in group}

    @property
    def facts(self) -> dict[str, float]:
        """The factors of the groups by their first parameters, for a run's metrics; nothing where they cannot move."""
        named = {f"reach_{group[0]}": factor for group, factor in zip(self.groups, self._factors, strict=True)}
        return named if self.adapts else {}

    @property
    def judged(self) -> tuple[str, ...]:
        """The parameters whose turn it is."""
        return self.groups[self._turn % len(self.groups)]

    def judge(self, before: float, after: float, promised: float) -> None:
        """Take what the part of a step that :attr:`judged` names was worth, and go on to the next.

        Args:
            before: The loss without it.
            after: The loss with it.
            promised: By how much it was to fall, to first order.
        """
        group = self._turn % len(self.groups)
        self._turn += 1
        if not (math.isfinite(after) and _RESOLUTION * abs(before) < promised < math.inf):
            return
        self._actual[group] = _MEMORY * self._actual[group] + before - after
        self._promised[group] = _MEMORY * self._promised[group] + promised
        ratio = self._actual[group] / self._promised[group]
        if ratio < _BELOW:
            self._factors[group] = max(self.least, _SHRINK * self._factors[group])
        elif ratio > _ABOVE:
            self._factors[group] = min(1.0, _GROW * self._factors[group])

    def scalars(self) -> dict[str, float | int]:
        """Return what :meth:`load` takes."""
        kept: dict[str, float | int] = {"reach.turn": float(self._turn)}
        for group in range(len(self.groups)):
            kept[f"reach.{group}.factor"] = self._factors[group]
            kept[f"reach.{group}.actual"] = self._actual[group]
            kept[f"reach.{group}.promised"] = self._promised[group]
        return kept

    def load(self, state: OptimizerState) -> None:
        """Go on from ``state``, from that of a version without reach as at the beginning.

        Raises:
            InputError: They are of other parameters.
        """
        scalars = state.scalars
        if "reach.turn" not in scalars:
            return
        if not self.scalars().keys() <= scalars.keys():
            raise InputError("this is not a state of block-gn; start a new run")
        self._turn = int(scalars["reach.turn"])
        for group in range(len(self.groups)):
            self._factors[group] = float(scalars[f"reach.{group}.factor"])
            self._actual[group] = float(scalars[f"reach.{group}.actual"])
            self._promised[group] = float(scalars[f"reach.{group}.promised"])
