"""Radii that follow the gain ratio, see ``splatopt.optim.radius_factors``."""

from __future__ import annotations

from collections.abc import Mapping

from splatopt.core.objective import Objective
from splatopt.optim.parts.acceptance import Acceptance, Trial
from splatopt.optim.parts.block_solve import BlockSolve
from splatopt.optim.radius_factors import RadiusFactors


class AdaptiveRadius(Acceptance):
    """Takes every step whole; where curvature was measured, the radii follow what a part of it was worth.

    That part is tried on a batch that the step does not know of: its gradient is heard only afterwards.
    """

    def __init__(self, objective: Objective, direction: BlockSolve, radius_factors: RadiusFactors) -> None:
        """Keep what is moved, what predicts, and the factors on the radii."""
        self._objective, self._direction, self._radius_factors = objective, direction, radius_factors

    @property
    def metrics(self) -> Mapping[str, float]:
        """The factors, where they may move."""
        return self._radius_factors.metrics

    def judges(self, step: int) -> bool:
        """Whether radii may adapt, and there is a step that could be tried."""
        return self._radius_factors.adapts and step > 1

    def take(self, trial: Trial) -> None:
        """Take the part that is judged, look at what it was worth, and take the rest."""
        parameters, step = self._objective.parameters, dict(trial.step)
        if not trial.updates:
            measured = self._radius_factors.measured
            predicted = self._direction.predicted(step, measured)
            self._direction.update_momentum(trial.evaluation.gradient)
            for name in measured:
                parameters[name].add_(step.pop(name))
            self._radius_factors.update(trial.evaluation.loss, self._objective.value(trial.batch), predicted)
        for name, change in step.items():
            parameters[name].add_(change)
