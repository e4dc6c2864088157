"""How many rows: a budget that follows how training converges (Turbo-GS), filled by gain's splits.

    splatopt train CAPTURE --plugin examples/density/convergence_budget.py --density convergence-budget

From N rows at the start to M, with t from 1 at the beginning of growth to 100 at its end,

    B(t) = N + (t^α - 1) / (100^α - 1) · (M - N),    α = α₀ + ½ tanh(d),

d the recent slope of log loss over log step less the slope over the whole run so far. The loss falls, so slopes are
negative; where it falls slower than it did, d > 0, α grows, and rows come later.

Source: Turbo-GS (CVPR 2026) has B(t) and α. Ours: α₀ = 1; the loss is averaged from one edit to the next, since views
differ; the recent slope is ⅓ of what it was and ⅔ of the new one. An edit never removes rows, and doubles them at most.
"""

import math
from dataclasses import dataclass

import torch

from splatopt import SceneEdit, register_density
from splatopt.core.checks import InputError
from splatopt.core.objective import Objective
from splatopt.core.state import Number
from splatopt.density.gain import Gain, GainOptions
from splatopt.density.strategy import DensityLimits, StepTaken


@dataclass(frozen=True)
class ConvergenceOptions(GainOptions):
    """Gain's, and the budget's exponent."""

    exponent: float = 1.0
    """α₀, the exponent where training converges as it did before: 1 is growth by equal numbers. Unit: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.5 < self.exponent < 10:
            raise InputError(f"exponent must lie between 0.5 and 10, got {self.exponent}")


class ConvergenceBudget(Gain):
    """Splits gain's rows, as many as a budget allows that follows the loss."""

    def __init__(
        self, objective: Objective, options: ConvergenceOptions, limits: DensityLimits, generator: torch.Generator
    ) -> None:
        super().__init__(objective, options, limits, generator)
        # All that must be the same again in a run that is resumed.
        names = ("loss", "first_x", "first_y", "last_x", "last_y", "recent")
        self.sums = {name: self.remember(Number(name, 0.0)) for name in names}
        self.steps, self.points = (self.remember(Number(name, 0)) for name in ("steps", "points"))

    def edit(self, step: StepTaken) -> SceneEdit | None:
        self.sums["loss"].value += step.loss
        self.steps.value += 1
        if step.progress.step % self.options.every == 0:
            self.measure(step.progress.step)
        return super().edit(step)

    def budget(self, share: float) -> int:
        assert isinstance(self.options, ConvergenceOptions)
        exponent = self.options.exponent + 0.5 * math.tanh(self.deviation())
        start = self.start
        # t^α - 1 as a difference of exponentials keeps its digits.
        passed, whole = (math.expm1(exponent * math.log(t)) for t in (1 + 99 * min(1.0, max(0.0, share)), 100))
        return start + round(passed / whole * (self.limits.max_gaussians - start))

    def deviation(self) -> float:
        """Return the recent slope less that of the whole run; 0 until there are two slopes."""
        if self.points.value < 3:
            return 0.0
        at = {name: one.value for name, one in self.sums.items()}
        return at["recent"] - (at["last_y"] - at["first_y"]) / (at["last_x"] - at["first_x"])

    def measure(self, step: int) -> None:
        """Take the mean loss since the last edit for a point (log step, log loss), and the slope that it adds."""
        sums = self.sums
        x, y = math.log(step), math.log(max(sums["loss"].value / self.steps.value, 1e-12))
        if self.points.value == 0:
            sums["first_x"].value, sums["first_y"].value = x, y
        else:
            slope, recent = (y - sums["last_y"].value) / (x - sums["last_x"].value), sums["recent"].value
            sums["recent"].value = slope if self.points.value == 1 else (recent + 2 * slope) / 3
        sums["last_x"].value, sums["last_y"].value, sums["loss"].value = x, y, 0.0
        self.points.value += 1
        self.steps.value = 0


register_density("convergence-budget", ConvergenceBudget, ConvergenceOptions, help=ConvergenceBudget.__doc__)
