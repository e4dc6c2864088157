"""Mean gradient over mean curvature, each row with a count of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from splatopt.core.objective import Batch, Evaluation
from splatopt.core.optimizer import Optimizer, Progress
from splatopt.core.state import OptimizerState, PerParameter, PerRow, StatePart
from splatopt.optim.parts.direction import Change, Direction, Point, Share
from splatopt.optim.parts.hessian_measures import CurvatureMeasure, Units

Ratio = Callable[[Tensor, Tensor], Tensor]
"""Makes the step of x of the mean gradient and the mean curvature, both corrected; any value where there is none."""


class GradientOverCurvature(Direction):
    """-ratio(m̂, D̂), m a running mean of the gradient and D one of measured curvature, in shares of a rate.

    A row that the batch did not see keeps its parameters and its states as they are, so each row has its own count of
    gradients and of measurements that the means are corrected by. What has no curvature, or has not been measured yet,
    does not move.
    """

    def __init__(
        self,
        host: Optimizer,
        measure: CurvatureMeasure,
        ratio: Ratio,
        *,
        units: Callable[[], Units],
        is_due: Callable[[int], bool],
        beta1: float,
        beta2: float,
    ) -> None:
        """Start with empty means; raises MissingOracleError where the measure needs more than the objective gives.

        Args:
            host: The optimizer.
            measure: The curvature.
            ratio: Gradient to curvature.
            units: u of every parameter.
            is_due: Whether curvature is measured at a step, the first being 0.
            beta1: Decay of the mean of gradients.
            beta2: Decay of the mean of curvatures, per measurement.
        """
        host.objective.require(host.needs | measure.needs, type(host).__name__)
        super().__init__(host)
        self._measure, self._ratio, self._units, self._is_due = measure, ratio, units, is_due
        self.beta1, self.beta2 = beta1, beta2
        parameters = self.objective.parameters
        self.momentum = host.remember(PerParameter("momentum", parameters, degree=1))
        self.curvature = host.remember(PerParameter("curvature", parameters, degree=measure.degree, resettable=False))
        self._age = host.remember(PerRow("age", parameters))
        self._measured = host.remember(PerRow("measured", parameters))
        host.remember(_MeasuredBefore(self.curvature, self._measured, beta2))
        self._fresh: dict[str, Tensor] = {}

    def evaluate(self, batch: Batch, progress: Progress) -> Evaluation:
        """Return loss and gradient, having measured the curvature where that is due."""
        # Before the gradient, whose buffers a difference of gradients would overwrite.
        self._fresh = self._measure.measure(batch, self._units()) if self._is_due(self.steps.value) else {}
        return super().evaluate(batch, progress)

    def release(self) -> None:
        """Forget this step's measurement."""
        self._fresh = {}

    def changes(self, at: Point) -> Iterator[tuple[str, Change]]:
        """Yield the ratios of what was seen and has curvature."""
        self._count(at.seen)
        units = self._units()
        for name, parameter in at.parameters.items():
            momentum, curvature = self.momentum[name], self.curvature[name]
            folded(momentum, at.gradient[name], self.beta1, at.seen)
            if self._fresh:
                folded(curvature, self._fresh[name], self.beta2, at.seen)
            if not curvature.any():  # nothing measured yet, or spherical harmonics above the rendered degree
                continue
            ratio = self._ratio(self._corrected_momentum(momentum, units[name]), self.corrected_curvature(curvature))
            known = curvature != 0
            if at.seen is not None:
                known &= by_row(at.seen, parameter) > 0
            yield name, Share(torch.where(known, ratio, 0))

    def _count(self, seen: Tensor | None) -> None:
        self._age.values += 1 if seen is None else seen
        if self._fresh:
            self._measured.values += 1 if seen is None else seen

    def _corrected_momentum(self, momentum: Tensor, unit: float) -> Tensor:
        return _corrected(momentum, self._age, self.beta1, unit)

    def corrected_curvature(self, curvature: Tensor) -> Tensor:
        """Return a running mean of curvature over the weight of all that went into it; 0 where nothing did."""
        return _corrected(curvature, self._measured, self.beta2)


class _MeasuredBefore(StatePart):
    """Has all that was measured at images of another size count as one measurement, as ``Measurements`` says."""

    def __init__(self, curvature: PerParameter, measured: PerRow, decay: float) -> None:
        self._curvature, self._measured, self._decay = curvature, measured, decay

    def load(self, state: OptimizerState) -> None:
        """Keep nothing."""

    def follow_level(self, ratio: float) -> None:
        """Give the mean, begun at 0, the weight of one measurement, without changing what it is once corrected."""
        count = self._measured.values
        share = torch.where(count > 1, (1 - self._decay) / (1 - self._decay ** count.double()), 1.0)
        for curvature in self._curvature.values.values():
            curvature.mul_(by_row(share, curvature))
        count.clamp_(max=1)


def _corrected(mean: Tensor, count: PerRow, decay: float, factor: float = 1.0) -> Tensor:
    """Return a running mean, times a factor, over the weight of all that went into it; 0 where nothing did."""
    count_by_row = by_row(count.values, mean)
    return mean * torch.where(count_by_row > 0, factor / (1 - decay**count_by_row), 0)


def folded(mean: Tensor, value: Tensor, decay: float, seen: Tensor | None) -> None:
    """Take mean ← β·mean + (1-β)·value in place, in the rows that were seen.

    Args:
        mean: Any shape.
        value: In the mean's shape.
        decay: β.
        seen: Rows that take part, (N,) bool; None for all.
    """
    if seen is None:
        mean.lerp_(value, 1 - decay)
    else:
        mean.lerp_(value, (1 - decay) * by_row(seen, mean))


def by_row(rows: Tensor, like: Tensor) -> Tensor:
    """Return one number per row in a shape that broadcasts to ``like``, and in its type."""
    return rows.to(like.dtype).view(-1, *[1] * (like.dim() - 1)) if like.dim() else rows.to(like.dtype).view(())
