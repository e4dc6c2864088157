"""A line search that is kept only where the loss falls as promised, and the damping that follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from splatopt.core.objective import Batch, Objective, Tensors
from splatopt.core.state import Number
from splatopt.optim.parts.acceptance import Acceptance, Trial
from splatopt.optim.parts.gauss_newton_solve import GaussNewtonSolve
from splatopt.optim.parts.projections import Projection


class GainRatio(Acceptance):
    """θ ← θ + γΔ where ρ, actual over predicted change of the loss, is above a least gain; else nothing moves.

    λ is halved where the step was kept, and doubled where it was taken back. Metrics: ``damping`` (λ that the step
    was solved with), ``step_length`` (γ, 0 where it was taken back) and ``gain_ratio`` (ρ, 0 where there was none to
    measure).
    """

    def __init__(
        self,
        objective: Objective,
        direction: GaussNewtonSolve,
        projection: Projection,
        damping: Number[float],
        *,
        damping_range: tuple[float, float],
        min_gain: float,
        halvings: int,
        search_share: float,
    ) -> None:
        """Keep what is moved, what predicts, what every move keeps to, and λ.

        Args:
            objective: Whose parameters move.
            direction: Predicts the change, and shares out views.
            projection: Around every move.
            damping: λ.
            damping_range: Least and most λ.
            min_gain: ρ above which a step is kept.
            halvings: Most halvings of γ.
            search_share: Share of the views that the search looks at.
        """
        self._objective, self._direction, self._projection = objective, direction, projection
        self._damping, self._range = damping, damping_range
        self._min_gain, self._halvings, self._search_share = min_gain, halvings, search_share
        self._metrics: dict[str, float] = {}

    @property
    def metrics(self) -> Mapping[str, float]:
        """What became of the last step."""
        return self._metrics

    def take(self, trial: Trial) -> None:
        """Search along the trial, keep what the loss has fallen by, and adapt λ."""
        length, gain = self._walk(trial.batch, trial.evaluation.loss, trial.step)
        self._metrics = {"damping": self._damping.value, "step_length": length, "gain_ratio": gain}
        minimum, maximum = self._range
        self._damping.value = min(max(self._damping.value * (0.5 if length > 0 else 2), minimum), maximum)

    def _walk(self, batch: Batch, before: float, tangent: Tensors) -> tuple[float, float]:
        """Move by γΔ, or not at all where the loss does not fall; returns γ, 0 for the latter, and ρ."""
        parameters = self._objective.parameters
        kept = {name: value.clone() for name, value in parameters.items()}

        def move(length: float) -> None:
            for name, value in kept.items():
                parameters[name].copy_(value)
            with self._projection.around(parameters):
                for name, value in tangent.items():
                    parameters[name].add_(value, alpha=length)

        length, after = self._search(batch, move)
        change = self._direction.model.change(length)
        gain = (after - before) / change if change < 0 and math.isfinite(after) else 0.0
        if gain > self._min_gain:
            return length, gain
        for name, value in kept.items():
            parameters[name].copy_(value)
        return 0.0, gain

    def _search(self, batch: Batch, move: Callable[[float], None]) -> tuple[float, float]:
        """Halve γ = 1 for as long as the loss of a share of the views falls; returns γ and the loss of all there."""
        share = self._direction.some(batch, self._search_share)
        best, best_value = 1.0, math.inf
        for halving in range(self._halvings + 1):
            move(0.5**halving)
            value = self._objective.value(share)
            if not value < best_value:
                move(best)
                break
            best, best_value = 0.5**halving, value
        return best, self._objective.value(batch)
