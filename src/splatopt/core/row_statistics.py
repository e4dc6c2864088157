"""What rows (Gaussians) do in views: what density strategies and pruning decide by.

Notation, of a row in one view: α its opacity at a pixel, T the transmittance in front of it there, w = αT its blending
weight, m its centre in the image in pixels, Q = Σ₂D⁻¹, d = pixel - m, C the image's colour, L the view's loss. Sums are
over the pixels where α ≥ 1/255 and whose ray has not ended before the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from splatopt.core.scene_edit import SceneEdit
from splatopt.core.state import OptimizerState, StatePart, Tensors, load_one

ErrorMap: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Makes an image of errors e (H, W) of a rendered image and its photograph, both (H, W, 3), the latter in [0, 1]."""


@dataclass(frozen=True)
class RowStatistics:
    """Means over the views of a batch, a view that does not draw the row counting as zeros; (N,) unless said.

    Attributes:
        weight: Σ_p w.
        max_weight: The greatest w of all pixels and views.
        pixels: How many pixels there are.
        error: Σ_p e_p.
        weighted_error: Σ_p w e_p.
        weighted_squared_error: Σ_p w e_p².
        color_cross: Cross term of position and colour, X = Pᵀ Σ_p w Qd (∂L/∂C_p)ᵀ with P = ∂m/∂μ (2, 3),
            (N, 3, 3), entry (i, c) of axis i of the world and channel c: children (μ + δ, c + γ) and (μ - δ, c - γ) of
            half the opacity each change the loss by δᵀXγ. 1 / world unit; γ is of colours. None where it is not asked
            for.
    """

    weight: Tensor
    max_weight: Tensor
    pixels: Tensor
    error: Tensor
    weighted_error: Tensor
    weighted_squared_error: Tensor
    color_cross: Tensor | None


class GradientStatistics(StatePart):
    """Sums over views of what a gradient pass has of each row, one more summand with every view.

    They are of each view's own loss, whatever share it has in a batch.

    Attributes:
        views: In how many views the row was drawn, (N,).
        gradient: Σ ‖(W/2, H/2) ⊙ ∂L/∂m‖, 3DGS' gradient in normalised device coordinates, (N,).
        max_radius: The greatest of 3σ of the footprint's long axis as a share of the image's longer side, (N,).
        absolute: Σ ‖(W/2, H/2) ⊙ Σ_p |∂L_p/∂m|‖ (AbsGS), (N,); None where it is not asked for.
        splitting: Σ Pᵀ S₂D P, S₂D = 2 ∂L/∂Σ₂D - (o ∂L/∂o) Q, with P = ∂m/∂μ: the matrix of SteepGS, entries
            xx, xy, xz, yy, yz, zz, (N, 6), 1 / world unit²; None where it is not asked for.
    """

    def __init__(self, parameters: Tensors, *, absolute: bool = False, splitting: bool = False) -> None:
        """Begin with zeros for each row of ``parameters``."""
        like = parameters["means"]
        rows = len(like)
        self.views, self.gradient, self.max_radius = (like.new_zeros(rows) for _ in range(3))
        self.absolute = like.new_zeros(rows) if absolute else None
        self.splitting = like.new_zeros(rows, 6) if splitting else None

    def clear(self) -> None:
        """Begin again with zeros."""
        for value in self.tensors().values():
            value.zero_()

    def like(self) -> GradientStatistics:
        """Return zeros for the same rows and sums."""
        wanted = {"absolute": self.absolute is not None, "splitting": self.splitting is not None}
        return GradientStatistics({"means": self.views}, **wanted)

    def add_counted(self, view: GradientStatistics) -> None:
        """Add those of one view, of the rows that have a gradient there: others were drawn in masked pixels alone."""
        counted = view.gradient > 0 if view.absolute is None else view.absolute > 0
        self.views += view.views * counted
        self.gradient += view.gradient
        torch.maximum(self.max_radius, view.max_radius * counted, out=self.max_radius)
        for sums, more in ((self.absolute, view.absolute), (self.splitting, view.splitting)):
            if sums is not None and more is not None:
                sums.add_(more)

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Take back what was added where an exception ends the block: whoever asks again counts all of it again."""
        before = {name: sums.clone() for name, sums in self.tensors().items()}
        try:
            yield
        except Exception:
            for name, sums in self.tensors().items():
                sums.copy_(before[name])
            raise

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums by name."""
        found = {
            "views": self.views,
            "gradient": self.gradient,
            "max_radius": self.max_radius,
            "absolute": self.absolute,
            "splitting": self.splitting,
        }
        return {f"gradient_statistics.{name}": value for name, value in found.items() if value is not None}

    def load(self, state: OptimizerState) -> None:
        """Go on from copies of what was saved; raises InputError where it does not fit."""
        for name, value in self.tensors().items():
            setattr(self, name.partition(".")[2], load_one(value, state.tensors, name))

    def edit_rows(self, edit: SceneEdit, parameters: Tensors) -> None:
        """Gather, with zeros where fresh."""
        for name, value in self.tensors().items():
            setattr(self, name.partition(".")[2], edit.gather_state(value))

    def follow_level(self, ratio: float) -> None:
        """Begin again: what blurred photographs ask for says little of what sharper ones do."""
        self.clear()

    @property
    def mean_gradient(self) -> Tensor:
        """The gradient's mean over the views that drew the row, (N,); 0 where none did."""
        return self.gradient / self.views.clamp(min=1)


def absolute_error(image: Tensor, target: Tensor) -> Tensor:
    """Return the mean over the channels of |image - target|, (H, W)."""
    return torch.mean((image - target).abs(), dim=-1)
