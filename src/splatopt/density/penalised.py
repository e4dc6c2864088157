"""The objective with a density strategy's penalty in its loss, for any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from splatopt.core.objective import Batch, Evaluation, Objective, Tensors
from splatopt.core.wrapped import WrappedObjective


class Penalised(WrappedObjective):
    """The inner objective, whose loss and gradient hold a penalty on the parameters; all else is the inner one's.

    Attributes:
        penalty: Returns it and its gradient, as :meth:`~splatopt.density.strategy.DensityStrategy.penalty` does; none
            while None.
    """

    def __init__(self, inner: Objective, penalty: Callable[[], tuple[float, Tensors] | None] | None = None) -> None:
        """Add ``penalty`` to what ``inner`` answers."""
        super().__init__(inner)
        self.penalty = penalty

    @torch.no_grad()
    def answer(self, name: str, batch: Batch, *arguments: object) -> object:
        """Return the inner one's; of loss and gradient with the penalty's added, in the gradient's own memory."""
        found = getattr(self.inner, name)(batch, *arguments)
        if name not in ("gradient", "value") or self.penalty is None:
            return found
        penalty = self.penalty()
        if penalty is None:
            return found
        loss, gradient = penalty
        if not isinstance(found, Evaluation):
            return found + loss
        for parameter, part in gradient.items():
            found.gradient[parameter].add_(part)
        return replace(found, loss=found.loss + loss)
