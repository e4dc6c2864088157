"""What a step costs: a sum over pixels and Gaussians, fitted to the steps that were taken.

    t = c₀ + c₁ · pixels + c₂ · Gaussians,   c ≥ 0

Each stretch of steps gives an equation, weighed by how long ago it was; what one machine is known to take stands beside
them with a small weight, so that a run that has seen one size alone still knows what others would cost. In the end all
is scaled to the last stretches, since machines change their pace.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_USUAL = np.array([2e-3, 8e-8, 1e-6])
"""Seconds a step, a pixel and a Gaussian of Adam, one thread of a laptop: their scale is measured, what counts is how
they compare."""

_USUAL_WEIGHT = 0.05
_FORGOTTEN, _PAST = 0.7, 0.5
"""Weight of a stretch beside the one after it: in what steps cost, and in the pace."""

_FACTORS = {"learned": (1.0, 1.0, 2.5), "block-gn": (1.0, 1.6, 1.3), "tr2": (1.0, 1.5, 1.3)}
"""Of the three costs over Adam's, where they were not measured yet."""


@dataclass(frozen=True)
class Stretch:
    """Steps that were measured together.

    Attributes:
        steps: How many.
        seconds: Mean of a step.
        pixels: Mean of a step, over its views.
        gaussians: Mean of a step.
    """

    steps: int
    seconds: float
    pixels: float
    gaussians: float

    @property
    def terms(self) -> np.ndarray:
        """What the costs are multiplied by."""
        return np.array([1.0, self.pixels, self.gaussians])


class StepCosts:
    """Seconds of a step of one optimizer, after what was measured."""

    def __init__(self, optimizer: str, scale: float = 1.0) -> None:
        """Begin with a usual machine's costs.

        Args:
            optimizer: Its name.
            scale: This machine's pace over the usual one's.
        """
        self._own = _USUAL * np.array(_FACTORS.get(optimizer, (1.0, 1.0, 1.0)))
        self._usual = self._own * scale
        self._stretches: list[Stretch] = []
        self._costs = self._usual

    def predict(self, pixels: float, gaussians: float) -> float:
        """Return the seconds of a step."""
        return float(self._costs @ np.array([1.0, pixels, gaussians]))

    @property
    def pace(self) -> float:
        """This machine's pace over the usual one's, by the last stretches."""
        if not self._stretches:
            return float(self._usual[0] / self._own[0])
        return self._pace(self._own)

    def note(self, stretch: Stretch) -> None:
        """Take a stretch into account."""
        from scipy.optimize import nnls

        self._stretches.append(stretch)
        usual = self._usual * self._pace(self._usual)
        rows = [_USUAL_WEIGHT * np.diag(1 / usual)]
        wanted = [np.full(3, _USUAL_WEIGHT)]
        for age, one in enumerate(reversed(self._stretches)):
            weight = _FORGOTTEN**age
            rows.append(weight * one.terms[None] / one.seconds)
            wanted.append(np.array([weight]))
        # In units of the usual costs, which differ by orders of magnitude.
        found, _ = nnls(np.concatenate(rows) * usual, np.concatenate(wanted))
        self._costs = found * usual
        self._costs = self._costs * self._pace(self._costs)

    def _pace(self, costs: np.ndarray) -> float:
        """What the last stretches took, over what they would by ``costs``."""
        taken = predicted = 0.0
        for age, one in enumerate(reversed(self._stretches)):
            weight = one.steps * _PAST**age
            taken += weight * one.seconds
            predicted += weight * float(costs @ one.terms)
        return taken / predicted if predicted > 0 else 1.0
