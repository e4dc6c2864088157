"""Radii that follow what steps are worth, see ``splatopt.optim.reach``."""

from __future__ import annotations

from collections.abc import Mapping

from splatopt.core.objective import Objective
from splatopt.optim.parts.acceptance import Acceptance, Trial
from splatopt.optim.parts.block_solve import BlockSolve
from splatopt.optim.reach import Reach


class AdaptiveRadius(Acceptance):
    """Takes every step whole; where curvature was measured, the radii follow what a part of it was worth.

    That part is tried on a batch that the step does not know of: its gradient is heard only afterwards.
    """

    def __init__(self, objective: Objective, direction: BlockSolve, reach: Reach) -> None:
        """Keep what is moved, what predicts, and the factors on the radii."""
        self._objective, self._direction, self._reach = objective, direction, reach

    @property
    def facts(self) -> Mapping[str, float]:
        """The factors, where they may move."""
        return self._reach.facts

    def judges(self, step: int) -> bool:
        """Whether radii may adapt, and there is a step that could be tried."""
        return self._reach.adapts and step > 1

    def take(self, trial: Trial) -> None:
        """Take the part that is judged, look at what it was worth, and take the rest."""
        parameters, step = self._objective.parameters, dict(trial.step)
        if not trial.heard:
            judged = self._reach.judged
            promised = self._direction.promised(step, judged)
            self._direction.listen(trial.evaluation.gradient)
            for name in judged:
                parameters[name].add_(step.pop(name))
            self._reach.judge(trial.evaluation.loss, self._objective.value(trial.batch), promised)
        for name, change in step.items():
            parameters[name].add_(change)
