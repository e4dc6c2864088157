"""Adaptive density control of 3DGS (Kerbl et al. 2023): clone, split, prune, and opacity resets.

After every so many steps a row whose centre is pulled hard by the views' losses, ḡ at least a threshold, is doubled: a
small one is cloned, a large one split in two that are drawn from it. Rows that have become transparent go, and large
ones too once opacities have been reset. ḡ is the mean, over the views that drew the row since the last edit, of the
length of ∂L/∂m in normalised device coordinates, of each view's own loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from splatopt.core.checks import InputError, check_max_count, check_positive
from splatopt.core.objective import Objective, Oracle
from splatopt.core.optimizer import Progress
from splatopt.core.row_statistics import GradientStatistics
from splatopt.core.scene_edit import SceneEdit, Written
from splatopt.density.schedule import EditSchedule
from splatopt.density.splitting import sampled_split, transmittance_power
from splatopt.density.strategy import DensityLimits, DensityStrategy, StepTaken, register_density

RESET_OPACITY = 0.01
"""Opacity after a reset, at most; 3DGS."""


@dataclass(frozen=True)
class AdcOptions(EditSchedule):
    """3DGS' settings."""

    min_gradient: float = 2e-4
    """ḡ from which a row is cloned or split. Unit: loss per half image side. Source: 3DGS."""

    min_absolute_gradient: float = 0.0
    """The same of the absolute gradient, which sums |∂L/∂m| over pixels; where it is not 0 it decides in place of
    min_gradient. Unit: loss per half image side. Source: AbsGS 4e-4, gsplat 8e-4."""

    clone_size: float = 0.01
    """Rows whose largest scale is up to this are cloned, and others split. Unit: scene extents. Source: 3DGS."""

    max_size: float = 0.1
    """Rows whose largest scale is above this go, once opacities were reset; 0 keeps them. Unit: scene extents.
    Source: 3DGS."""

    min_opacity: float = 0.005
    """Rows with less go at an edit. Unit: fraction. Source: 3DGS."""

    reset_every: int = 3000
    """Opacities are brought down to at most 0.01 every so many steps, as long as there are edits, and over a white
    background at the start of edits too; 0 for never. Unit: steps. Source: 3DGS."""

    revised_opacity: bool = False
    """Whether both children of a split take 1 - √(1-o), as opaque together as their parent, in place of its o.
    Source: Revising densification."""

    def __post_init__(self) -> None:
        """Refuse what decides nothing."""
        super().__post_init__()
        for name in ("min_gradient", "clone_size"):
            check_positive(name, getattr(self, name))
        for name in ("min_absolute_gradient", "max_size"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be 0 or a positive number, got {getattr(self, name)}")
        if not 0 < self.min_opacity < 1:
            raise InputError(f"min_opacity must lie between 0 and 1, got {self.min_opacity}")
        if self.reset_every < 0:
            raise InputError(f"reset_every must be at least 0, got {self.reset_every}")
        if self.reset_every and self.min_opacity >= RESET_OPACITY:
            raise InputError(
                f"min_opacity must be below {RESET_OPACITY}, which a reset brings all opacities to, got "
                f"{self.min_opacity}; or leave resets out with reset_every 0"
            )
        check_max_count("reset_every", self.reset_every)


_WHITE = (1.0, 1.0, 1.0)


class AdaptiveDensityControl(DensityStrategy[AdcOptions]):
    """Clones, splits and prunes as 3DGS does; see the module.

    Differences: the number of rows keeps to a bound, those with the highest ḡ first; the rule on screen size, which
    never takes effect in 3DGS' code, is left out.
    """

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT, Oracle.STATISTICS})

    def __init__(
        self, objective: Objective, options: AdcOptions, limits: DensityLimits, generator: torch.Generator
    ) -> None:
        """Begin with empty statistics; see :class:`DensityStrategy`."""
        super().__init__(objective, options, limits, generator)
        self.gradient_statistics: GradientStatistics = self.remember(
            GradientStatistics(objective.parameters, absolute=options.min_absolute_gradient > 0)
        )

    def observes(self, progress: Progress) -> bool:
        """Whether an edit is still to come."""
        return progress.step < self.options.of_run(progress.horizon).until

    @torch.no_grad()
    def edit(self, step: StepTaken) -> SceneEdit | None:
        """Return clones, splits and prunes where they are due, and a reset of opacities after them."""
        schedule, at = self.options.of_run(step.progress.horizon), step.progress.step
        edit = self._grow_and_prune(at) if schedule.is_due(at) else None
        if not self._is_reset_due(schedule, at):
            return edit
        logits = self.objective.parameters["logit_opacities"]
        if edit is None:
            return _reset(logits)
        return edit.then(_reset(edit.parameter("logit_opacities", logits)))

    def _is_reset_due(self, schedule: EditSchedule, at: int) -> bool:
        every = self.options.reset_every
        if every == 0 or at >= schedule.until:
            return False
        return at % every == 0 or (at == schedule.start and self.limits.background == _WHITE)

    def _grow_and_prune(self, at: int) -> SceneEdit:
        grown = self._grow()
        parameters, options = self.objective.parameters, self.options
        transparent = grown.parameter("logit_opacities", parameters["logit_opacities"]) < _logit(options.min_opacity)
        if options.max_size and options.reset_every and at > options.reset_every:
            sizes = grown.parameter("log_scales", parameters["log_scales"]).amax(dim=1)
            transparent |= sizes > math.log(options.max_size) + math.log(self.objective.length_scale)
        self.gradient_statistics.clear()
        return grown.then(SceneEdit.keep(~transparent)) if bool(transparent.any()) else grown

    def _grow(self) -> SceneEdit:
        """Return the edit that clones and splits: kept rows, clones, first children, second children."""
        parameters, options = self.objective.parameters, self.options
        chosen = self._chosen()
        largest = math.log(options.clone_size) + math.log(self.objective.length_scale)
        small = parameters["log_scales"].amax(dim=1) <= largest
        clones, split = (chosen & small).nonzero().squeeze(1), (chosen & ~small).nonzero().squeeze(1)
        kept = (~(chosen & ~small)).nonzero().squeeze(1)
        source = torch.cat([kept, clones, split, split])
        place = torch.arange(len(source), device=source.device)
        children = place[len(kept) + len(clones) :]
        values: dict[str, Written] = {}
        if len(split):
            found = sampled_split(parameters, split, self.generator)
            if options.revised_opacity:
                found["logit_opacities"] = transmittance_power(parameters["logit_opacities"][split], 0.5).repeat(2)
            values = {name: Written(children, value) for name, value in found.items()}
        return SceneEdit(source, place >= len(kept), values)

    def _chosen(self) -> Tensor:
        """Return which rows are doubled, (N,) bool: those with the highest gradients where not all may be."""
        statistics, threshold = self.gradient_statistics, self.options.min_gradient
        gradient = statistics.mean_gradient
        if statistics.absolute is not None:
            gradient = statistics.absolute / statistics.views.clamp(min=1)
            threshold = self.options.min_absolute_gradient
        chosen = gradient >= threshold
        room = max(0, self.limits.max_gaussians - len(chosen))
        if int(chosen.count_nonzero()) <= room:
            return chosen
        ranked = torch.where(chosen, gradient, -1.0).argsort(descending=True, stable=True)
        highest = torch.zeros_like(chosen)
        highest[ranked[:room]] = True
        return highest


def _reset(logits: Tensor) -> SceneEdit:
    """Return the edit that brings opacities down, and has their momentum begin anew."""
    everywhere = torch.ones_like(logits, dtype=torch.bool)
    above = (logits > _logit(RESET_OPACITY)).nonzero().squeeze(1)
    lowered = Written(above, torch.full_like(logits[above], _logit(RESET_OPACITY)))
    return SceneEdit.in_place(
        len(logits), logits.device, {"logit_opacities": lowered}, resets={"logit_opacities": everywhere}
    )


def _logit(opacity: float) -> float:
    return math.log(opacity / (1 - opacity))


register_density(
    "adc", AdaptiveDensityControl, AdcOptions, help="clone, split and prune by the centres' gradients, as 3DGS"
)
