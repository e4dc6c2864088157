"""How many different views a run has visited, and what that leaves of the rate of the colour's higher bands.

A Gaussian's colour has up to 45 numbers for how it changes with the direction that it is seen from. Few views show few
directions: the bands then fit what a Gaussian's place and shape should explain, and say nothing right of any view
between. Their rate is

    rate · min(1, different views visited / full_color_views)

with every view that any step has shown counted once. A run with many views visits as many within some tens of steps.

Source: own choice, on synthetic scenes (docs/meta.md); 3DGS holds the same bands back by steps, one more every
    thousand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.state import OptimizerState, StatePart

_STATE = "visited_views"


def check_full_color_views(views: int) -> None:
    """Refuse a negative number of views; 0 leaves the rate alone."""
    if views < 0:
        raise InputError(f"full_color_views must be at least 1, or 0 for a rate that is always whole, got {views}")


class VisitedViews(StatePart):
    """The different views that a run has visited."""

    def __init__(self, full_color_views: int) -> None:
        """Begin with none."""
        self._full = full_color_views
        self._visited: set[int] = set()

    def visit(self, views: Sequence[int]) -> None:
        """Count the views of a step, each once however often it comes."""
        if self._full:
            self._visited.update(views)

    def color_share(self) -> float:
        """Return what is left of the higher bands' rate; all of it where batches show no views."""
        return min(1.0, len(self._visited) / self._full) if self._visited else 1.0

    def tensors(self) -> dict[str, Tensor]:
        """Return what belongs into the optimizer's state."""
        return {_STATE: torch.tensor(sorted(self._visited), dtype=torch.int64)} if self._full else {}

    def load(self, state: OptimizerState) -> None:
        """Go on with saved views; where a state has none, as those of older versions, none is visited yet.

        Raises:
            InputError: They are not whole numbers in a row.
        """
        self._visited = set()
        visited = state.tensors.get(_STATE)
        if visited is None or not self._full:
            return
        if visited.dtype != torch.int64 or visited.dim() != 1:
            raise InputError(
                f"the optimizer's state {_STATE} must be a row of int64, got {tuple(visited.shape)} {visited.dtype}; "
                "start a new run"
            )
        self._visited = set(visited.tolist())
