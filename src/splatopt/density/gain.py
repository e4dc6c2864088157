"""Growth that every optimizer keeps its lead through: early, where the image still pulls, by splits that hide.

Every so many steps rows are split in two along their longest axis, so that the pair looks like the row that it was and
the image hardly changes. Which rows: drawn without replacement in proportion to the mean absolute gradient of their
centres (AbsGS), which is large where the pixels of one footprint pull in different directions, and which a gradient
pass has of every view. How many: the number of rows grows by the same share with every edit and reaches its bound at a
quarter of the run, when trust regions are still wide and most steps are still to come.

Children carry momentum and curvature. At about half the parent's mass their gradients are half of the parent's, so
momentum is multiplied by ½ and curvature by ¼. An optimizer that is told so goes on; one whose rows begin anew may end
two decibels lower (docs/results/density.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from splatopt.core.checks import InputError, check_max_count
from splatopt.core.objective import Objective, Oracle
from splatopt.core.optimizer import Progress
from splatopt.core.row_statistics import GradientStatistics
from splatopt.core.scene_edit import SceneEdit, Written
from splatopt.core.state import Number
from splatopt.density.budget import early
from splatopt.density.splitting import long_axis_split
from splatopt.density.strategy import DensityLimits, DensityStrategy, StepTaken, register_density

CHILD_GRADIENT = 0.5
"""A child's gradient as a share of its parent's: its mass is about half."""


@dataclass(frozen=True)
class GainOptions:
    """When rows are split."""

    every: int = 50
    """Steps from one edit to the next. Unit: steps. Source: docs/results/density.md."""

    begin: float = 0.03
    """Share of the run before the first edit. Unit: fraction. Source: docs/results/density.md."""

    until: float = 0.25
    """Share of the run after which all Gaussians are there. Unit: fraction. Source: docs/results/density.md."""

    def __post_init__(self) -> None:
        """Refuse a schedule that is none."""
        if self.every < 1:
            raise InputError(f"every must be at least 1, got {self.every}")
        check_max_count("every", self.every)
        if not 0 <= self.begin < self.until <= 1:
            raise InputError(f"begin and until must be 0 ≤ begin < until ≤ 1, got {self.begin} and {self.until}")


class Gain(DensityStrategy[GainOptions]):
    """Splits rows, early and in proportion to their absolute gradient; see the module."""

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT, Oracle.STATISTICS})
    splitting: ClassVar[bool] = False
    """Whether the splitting matrix is summed up, for others' scores."""

    def __init__(
        self, objective: Objective, options: GainOptions, limits: DensityLimits, generator: torch.Generator
    ) -> None:
        """Begin with empty statistics; see :class:`DensityStrategy`."""
        super().__init__(objective, options, limits, generator)
        self.gradient_statistics: GradientStatistics = self.remember(
            GradientStatistics(objective.parameters, absolute=True, splitting=self.splitting)
        )
        self._start = self.remember(Number("start", len(objective.parameters["means"])))

    def observes(self, progress: Progress) -> bool:
        """Whether rows are still to come."""
        return len(self.objective.parameters["means"]) < self.limits.max_gaussians

    @torch.no_grad()
    def edit(self, step: StepTaken) -> SceneEdit | None:
        """Return splits where they are due; None once all rows are there, and after the last step."""
        options, progress = self.options, step.progress
        count = len(self.objective.parameters["means"])
        if count >= self.limits.max_gaussians or progress.step % options.every:
            return None
        if not options.begin <= progress.fraction < 1:
            return None
        # The edit after which no other comes before `until` brings the number to its bound.
        following = progress.fraction_after(options.every)
        fraction = 1.0 if following > options.until or following >= 1 else progress.fraction
        share = (fraction - options.begin) / (options.until - options.begin)
        rows = self._draw(min(self.budget(share) - count, count))
        return self.split(rows) if len(rows) else None

    @property
    def start(self) -> int:
        """How many rows there were when the run began."""
        return self._start.value

    def budget(self, share: float) -> int:
        """Return how many rows there are to be once ``share`` of the time of growth has passed."""
        return early(self.start, self.limits.max_gaussians, share, 1.0)

    def scores(self) -> Tensor:
        """Return in what proportion rows are drawn, (N,), at least 0: the mean absolute gradient of their centres."""
        statistics = self.gradient_statistics
        assert statistics.absolute is not None
        return statistics.absolute / statistics.views.clamp(min=1)

    def split(self, rows: Tensor) -> SceneEdit:
        """Return the edit by which each row becomes its first child, and its second one is added at the end."""
        parameters = self.objective.parameters
        count = len(parameters["means"])
        places = torch.arange(count + len(rows), device=rows.device)
        children = torch.cat([rows, places[count:]])
        values = {name: Written(children, value) for name, value in long_axis_split(parameters, rows).items()}
        factor = torch.ones(len(places), device=rows.device)
        factor[children] = CHILD_GRADIENT
        source = torch.cat([places[:count], rows])
        self.gradient_statistics.clear()
        return SceneEdit(
            source, torch.zeros_like(source, dtype=torch.bool), values, factors=dict.fromkeys(parameters, factor)
        )

    def _draw(self, count: int) -> Tensor:
        """Return at most ``count`` different rows in proportion to their scores, by exponential races; in order."""
        found = self.scores()
        scores = found.cpu().double().nan_to_num(0, 0, 0)
        uniform = torch.rand(len(scores), generator=self.generator, dtype=torch.float64)
        finish = torch.where(scores > 0, -torch.log1p(-uniform) / scores.clamp_min(1e-300), torch.inf)
        first = finish.argsort(stable=True)[: max(0, count)]
        return first[torch.isfinite(finish[first])].sort().values.to(found.device)


register_density("gain", Gain, GainOptions, help="early splits that keep the image, their children's state carried")
