"""Whether the loss of a learned run stays high, so that the network is given up."""

from __future__ import annotations

import math

from splatopt.core.state import OptimizerState, StatePart
from splatopt.meta.inner import LOSS_DECAYS, InnerState

_WATCHED = 1
"""Which of the running means of the loss is watched: the one over some fifty steps."""

_SETTLED_AFTER = round(1 / (1 - LOSS_DECAYS[_WATCHED]))
"""Losses that the mean must be of before it counts again: a few views may have a far lower loss than the others."""

_MAX_NUMBER = 1e300
"""Written for a lowest loss that there is not yet: JSON knows no infinity."""


class LossWatch(StatePart):
    """The lowest running mean of the loss, and for how many steps in a row the mean has been high beside it.

    The mean of the k losses since :meth:`restart` is (m - βᵏ m₀) / (1 - βᵏ), m the running mean with decay β that the
    run keeps, and m₀ what it was then.
    """

    def __init__(self) -> None:
        """Begin with the run's first loss."""
        self._lowest, self._above = math.inf, 0
        self._before, self._begun_at = 0.0, 0

    def restart(self, state: InnerState) -> None:
        """Forget all losses that ``state`` has counted: those to come are of another scene, or of other photographs."""
        self._lowest, self._above = math.inf, 0
        self._before, self._begun_at = state.losses[_WATCHED], state.steps

    def is_high_for(self, window: int, rise: float, state: InnerState) -> bool:
        """Look at the loss that ``state`` has just counted.

        Args:
            window: Steps in a row.
            rise: Part of the lowest mean by which one that is high lies above it.
            state: Counts the losses.

        Returns:
            Whether the mean has been high for ``window`` steps.
        """
        steps = state.steps - self._begun_at
        if self._begun_at and steps < _SETTLED_AFTER:
            return False
        forgotten = LOSS_DECAYS[_WATCHED] ** steps
        mean = (state.losses[_WATCHED] - forgotten * self._before) / (1 - forgotten)
        self._lowest = min(self._lowest, mean)
        high = not mean <= (1 + rise) * self._lowest
        self._above = self._above + 1 if high else 0
        return self._above >= window

    def scalars(self) -> dict[str, float | int]:
        """Return all numbers by name, as they are saved."""
        return {
            "lowest": min(self._lowest, _MAX_NUMBER),
            "above": self._above,
            "loss_before": self._before,
            "watched_from": self._begun_at,
        }

    def load(self, state: OptimizerState) -> None:
        """Go on from what :meth:`scalars` gave; older versions never began anew."""
        self._lowest, self._above = float(state.scalars["lowest"]), int(state.scalars["above"])
        self._before = float(state.scalars.get("loss_before", 0.0))
        self._begun_at = int(state.scalars.get("watched_from", 0))
