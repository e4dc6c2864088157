"""What a step costs: a sum over pixels and Gaussians, fitted to the steps that were taken.

    t = c₀ + c₁ · pixels + c₂ · Gaussians,   c ≥ 0

Each stretch of steps gives an equation, weighed by how long ago it was; what one machine is known to take stands beside
them with a small weight, so that a run that has seen one size alone still knows what others would cost. In the end all
is scaled to the last stretches, since machines change their pace.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splatopt.density.gain import GainOptions
from splatopt.density.schedule import EditSchedule

_OTHER_GROWTH = (0.02, 0.5)
"""Shares of the run between which a strategy adds Gaussians whose options do not say so: those of plug-ins."""

_FILES_SECONDS, _ROW_SECONDS = 0.3, 1e-5
"""What the last files take, and of it each Gaussian: provisional."""

_USUAL = np.array([2e-3, 8e-8, 1e-6])
"""Seconds a step, a pixel and a Gaussian of Adam, one thread of a laptop: their scale is measured, what counts is how
they compare."""

_USUAL_WEIGHT = 0.05
_FORGOTTEN, _PAST = 0.7, 0.5
"""Weight of a stretch beside the one after it: in what steps cost, and in the pace."""

_TRIED_WEIGHT = 1.0
"""Of what was tried at full size, which is not forgotten."""

_FACTORS = {"learned": (1.0, 1.0, 2.5), "block-gn": (1.0, 1.6, 1.3), "tr2": (1.0, 1.5, 1.3)}
"""Of the three costs over Adam's, where they were not measured yet."""


def growth_of(options: object) -> tuple[float, float]:
    """Return the shares of the run between which the strategy of these options adds Gaussians; None for no strategy."""
    if options is None:
        return 0.0, 0.0
    if isinstance(options, GainOptions):
        return options.begin, options.until
    return options.shares if isinstance(options, EditSchedule) else _OTHER_GROWTH


def gaussians_at(at: float, done: float, gaussians: int, cap: int | None, growth: tuple[float, float]) -> float:
    """Return how many Gaussians there will be at a share of the run, by as large a share of them each moment.

    Once growth has ended there are as many as there are: not every strategy reaches its cap.

    Args:
        at: The share.
        done: That which is done.
        gaussians: How many there are.
        cap: How many there will be in the end; None where none are added.
        growth: Shares between which they are.
    """
    begin, until = growth
    if cap is None or gaussians >= cap or at <= begin or done >= until:
        return gaussians
    begin = max(begin, done)
    share = min(1.0, (at - begin) / (until - begin))
    return float(gaussians * (cap / max(1, gaussians)) ** share)


def files_seconds(gaussians: float) -> float:
    """Return what writing a run's last files takes."""
    return _FILES_SECONDS + _ROW_SECONDS * gaussians


def load_solver() -> None:
    """Load what :meth:`StepCosts.note` fits with, before steps are timed rather than during the first of them."""
    importlib.import_module("scipy.optimize")


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

    def __init__(
        self,
        optimizer: str,
        scale: float = 1.0,
        stretches: Sequence[Stretch] = (),
        tried: Stretch | None = None,
        forgotten: float = _FORGOTTEN,
    ) -> None:
        """Begin with a usual machine's costs.

        Args:
            optimizer: Its name.
            scale: This machine's pace over the usual one's.
            stretches: What was measured before.
            tried: What a step was found to take at full size, while steps may be of smaller photographs.
            forgotten: Weight of a stretch beside the one after it.
        """
        self._tried, self._forgotten = tried, forgotten
        self.optimizer, self.scale = optimizer, scale
        self._own = _USUAL * np.array(_FACTORS.get(optimizer, (1.0, 1.0, 1.0)))
        self._usual = self._own * scale
        self._stretches: list[Stretch] = []
        self._costs = self._usual
        for one in stretches:
            self.note(one)

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """What was measured, the last one last."""
        return tuple(self._stretches)

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
            weight = self._forgotten**age
            rows.append(weight * one.terms[None] / one.seconds)
            wanted.append(np.array([weight]))
        if self._tried is not None:
            rows.append(_TRIED_WEIGHT * self._tried.terms[None] / self._tried.seconds)
            wanted.append(np.array([_TRIED_WEIGHT]))
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
