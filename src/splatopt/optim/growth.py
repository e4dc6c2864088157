"""A bound on growth: no Gaussian becomes larger than a multiple of what it began as.

Where few views look, nothing holds a Gaussian of the sky or of the edge back: it grows into a sheet that is right in
the views that made it, and hides the scene from all others. Its log-scales s, three of them, keep to

    s ≤ max(s₀) + ln(max_growth)

with s₀ those of the row when the optimizer first saw it. A projection onto that box after each step costs next to
nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.objective import Tensors
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.state import OptimizerState, StatePart, load_one
from splatopt.optim.parts.projections import Projection

_SCALES = "log_scales"
_MAX_SCALES = "growth.largest"
"""How the bounds are called in an optimizer's state."""


def check_growth(max_growth: float) -> None:
    """Refuse a bound below 1, with which Gaussians would have to shrink at once; 0 is none."""
    if max_growth != 0 and not 1 <= max_growth < math.inf:
        raise InputError(f"max_growth must be at least 1, or 0 for no bound, got {max_growth}")


class GrowthBound(StatePart, Projection):
    """Keeps the log-scales of a cloud's rows within their bounds; parameters that have none are left alone."""

    def __init__(self, parameters: Tensors, max_growth: float) -> None:
        """Take the bounds from what the rows are now."""
        self._log_growth = math.log(max_growth) if max_growth else math.inf
        self._max_scales = self._bounds(parameters) if max_growth and _SCALES in parameters else None  # (N,)

    def _bounds(self, parameters: Tensors) -> Tensor:
        return parameters[_SCALES].amax(dim=1) + self._log_growth

    def hold(self, parameters: Tensors) -> None:
        """Bring back, in place, what has outgrown its bound; all else stays bit for bit."""
        if self._max_scales is not None:
            scales = parameters[_SCALES]
            torch.minimum(scales, self._max_scales[:, None], out=scales)

    def edit_rows(self, edit: SceneEdit, parameters: Tensors) -> None:
        """Follow an edit: rows that are fresh have the size that they are given as their beginning."""
        if self._max_scales is not None:
            fresh = edit.fresh.to(self._max_scales.device)
            self._max_scales = torch.where(fresh, self._bounds(parameters), edit.gather(self._max_scales))

    def tensors(self) -> dict[str, Tensor]:
        """Return what belongs into the optimizer's state."""
        return {} if self._max_scales is None else {_MAX_SCALES: self._max_scales}

    def load(self, state: OptimizerState) -> None:
        """Go on with saved bounds; where a state has none, what the rows are now is their beginning.

        Raises:
            InputError: They are of another number of rows.
        """
        if self._max_scales is not None and _MAX_SCALES in state.tensors:
            self._max_scales = load_one(self._max_scales, state.tensors, _MAX_SCALES)
