"""The time that a run of known steps still takes: by what its steps took, and by what is still to come."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splatopt.train.levels import Level, factor_at
from splatopt.train.plan_costs import StepCosts, Stretch, files_seconds, gaussians_at
from splatopt.train.stages import Stage, stage_at

_LOOKS = 50
"""Stretches that a run's steps are measured in."""

_FORGOTTEN = 0.93
"""Weight of a stretch beside the one after it; they are short."""

_SAMPLES = 16


@dataclass(frozen=True)
class Course:
    """What a run of known steps will do.

    Attributes:
        stages: Its optimizers with their steps.
        pixels: Of a step, at full size.
        views: Of a step.
        levels: Steps at smaller sizes.
        growth: Shares of the run between which Gaussians are added.
        max_gaussians: How many there will be in the end; None where none are added, or nothing bounds them.
    """

    stages: tuple[Stage, ...]
    pixels: float
    views: int = 1
    levels: tuple[Level, ...] = ()
    growth: tuple[float, float] = (0.0, 0.0)
    max_gaussians: int | None = None

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.stages[-1].end


class Outlook:
    """Looks at how long steps take, and ahead."""

    def __init__(self, course: Course, scoring: float = 0.0) -> None:
        """Begin without a step.

        Args:
            course: What the run does.
            scoring: What scoring the views took that are scored in the end as well. Unit: seconds.
        """
        self.course = course
        self.scoring = scoring
        self._tried: Stretch | None = None
        self._costs: StepCosts | None = None
        self._begun: tuple[int, float] | None = None
        self._sums = np.zeros(2)
        self._end: float | None = None

    def go_back(self) -> None:
        """Measure from the next step on."""
        self._begun = self._end = None

    def try_out(self, gaussians: int, gradient: float) -> None:
        """Take in what the gradient of a view takes at full size, before the first step. Unit: seconds."""
        self._tried = Stretch(1, max(1e-9, gradient), self.course.pixels / self.course.views, gaussians)

    def note(self, step: int, gaussians: int, now: float) -> None:
        """Take in that so many steps are done, and of how many Gaussians the last one was."""
        course, before = self.course, self._costs
        optimizer = course.stages[stage_at(course.stages, max(0, step - 1))].optimizer
        if before is None or before.optimizer != optimizer:
            pace = before.pace if before is not None and before.stretches else 1.0
            tried = self._tried if before is None else None
            self._costs = StepCosts(optimizer, pace, tried=tried, forgotten=_FORGOTTEN)
            self._begun = None
        if self._begun is None:  # the first step warms up
            self._begun, self._sums = (step, now), np.zeros(2)
            return
        self._sums += (self._pixels(step - 1), gaussians)
        steps, seconds = step - self._begun[0], now - self._begun[1]
        if steps * _LOOKS >= course.steps and seconds > 0 and self._costs is not None:
            self._costs.note(Stretch(steps, seconds / steps, *(float(total) / steps for total in self._sums)))
            self._begun, self._sums = (step, now), np.zeros(2)
            self._end = now + self._ahead(self._costs, step, gaussians)

    def seconds_left(self, now: float) -> float | None:
        """Return the seconds until all is done, scoring and files included; None before steps were measured."""
        return None if self._end is None else max(0.0, self._end - now)

    def _ahead(self, costs: StepCosts, step: int, gaussians: int) -> float:
        """What is to come after ``step`` steps, of ``gaussians`` now. Unit: seconds."""
        course, seconds = self.course, 0.0
        for stage in course.stages:
            begin = max(step, stage.begin)
            if begin >= stage.end:
                continue
            own = costs if stage.optimizer == costs.optimizer else StepCosts(stage.optimizer, costs.pace)
            points = begin + (np.arange(_SAMPLES) + 0.5) / _SAMPLES * (stage.end - begin)
            each = [own.predict(self._pixels(int(one)), self._gaussians(one, step, gaussians)) for one in points]
            seconds += (stage.end - begin) * float(np.mean(each))
        last = self._gaussians(course.steps, step, gaussians)
        return seconds + self.scoring + files_seconds(last)

    def _pixels(self, step: int) -> float:
        """Of the step after ``step`` steps."""
        return self.course.pixels / factor_at(self.course.levels, step) ** 2

    def _gaussians(self, at: float, step: int, gaussians: int) -> float:
        """How many there will be after ``at`` steps, of ``gaussians`` after ``step``."""
        course = self.course
        return gaussians_at(at / course.steps, step / course.steps, gaussians, course.max_gaussians, course.growth)
