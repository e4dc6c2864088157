"""The momentum's sign: a direction without any curvature."""

from __future__ import annotations

from collections.abc import Iterator

from splatopt.core.optimizer import Optimizer
from splatopt.core.state import PerParameter
from splatopt.optim.parts.direction import Change, Direction, Point, Share


class MomentumSign(Direction):
    """m ← θ₁m + (1-θ₁)g, and every entry moves by its whole radius, -sign(m)·η."""

    def __init__(self, host: Optimizer, *, decay: float) -> None:
        """Start without momentum.

        Args:
            host: The optimizer.
            decay: θ₁.
        """
        super().__init__(host)
        self.decay = decay
        self.momentum = host.remember(PerParameter("momentum", self.objective.parameters, degree=1))

    def changes(self, at: Point) -> Iterator[tuple[str, Change]]:
        """Yield sign(m) as a share of the radius."""
        for name in at.parameters:
            gradient = at.gradient[name]
            momentum = self.momentum[name].lerp_(gradient, 1 - self.decay)
            yield name, Share(momentum.sign())
