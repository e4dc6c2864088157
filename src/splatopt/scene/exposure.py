"""Exposure: one affine colour map for each photograph, solved in closed form.

A photograph p of a scene of colours c is p ≈ M c + b in every pixel, M (3, 3) and b (3,) being the photograph's own:
what a shutter time, a white balance or a grading make of the scene's colours. They are

    argmin Σ w ‖M c + b - p‖² + Σ w (λ ‖diag M - 1‖² + μ (‖off-diagonal M‖² + ‖b‖²))

over coarse cells of the view: for each channel of p a system of 4 equations. The maps of all photographs are solved
against one and the same scene, and then composed with the inverse of their mean, so that the mean map is the identity
and the scene has nowhere to drift to. What the scene is compared with is the photograph taken back, p' = M⁻¹ (p - b),
in 8 bits as the photograph itself: every renderer, loss and derivative takes it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from splatopt.core.checks import InputError

GAIN_WEIGHT = 1e-4
"""λ: how much 1 counts for the gain of a channel, beside squares of colours in [0, 1]. Source: synthetic captures."""

MIXING_WEIGHT = 1e-1
"""μ: how much 0 counts for the mixing of channels and for b, likewise. Source: synthetic captures."""

_COARSE_SIDE = 80
"""Means over cells are compared, so many at most along the longer side: a map is of colours, not of edges."""

_MIN_GAIN = 1 / 16
"""A map that takes some direction of colours down to less than this part is none."""

_KEPT_BYTES = 64 << 20
"""Photographs taken back that are kept, bytes."""


class Exposure(Enum):
    """What the colours of photographs may differ by: nothing, or an affine map of each."""

    NONE = "none"
    AFFINE = "affine"


Pixels = UInt8[Tensor, "height width 3"]
Colors = Float[Tensor, "height width 3"]
Weights = Float[Tensor, "height width"]

Maps = Float64[Tensor, "*views 3 4"]
"""[M | b] of photographs."""

Systems = Float64[Tensor, "*views 4 7"]
"""[Σ w x xᵀ | Σ w x pᵀ] of photographs, x = (c, 1), over Σ w that clipped pixels are in as well."""


def identity_maps(count: int) -> Float64[Tensor, "count 3 4"]:
    """Return [I | 0] of ``count`` photographs."""
    return torch.eye(3, 4, dtype=torch.float64).repeat(count, 1, 1)


def apply_map(color_map: Float64[Tensor, "3 4"], image: Colors) -> Colors:
    """Return M c + b of every pixel, not clamped; the same bits at any number of threads."""
    red, green, blue = image.unbind(dim=2)
    rows = [row[0] * red + row[1] * green + row[2] * blue + row[3] for row in color_map.tolist()]
    return torch.stack(rows, dim=2)


def inverse_maps(maps: Maps) -> Maps:
    """Return [M⁻¹ | -M⁻¹ b]."""
    inverse = torch.linalg.inv(maps[..., :3])
    return torch.cat([inverse, -inverse @ maps[..., 3:]], dim=-1)


def anchored_maps(maps: Float64[Tensor, "views 3 4"]) -> Float64[Tensor, "views 3 4"]:
    """Return the maps after the inverse of their mean: M M̄⁻¹ and b - M M̄⁻¹ b̄, whose mean is the identity."""
    mean = maps.mean(dim=0)
    matrices = maps[:, :, :3] @ torch.linalg.inv(mean[:, :3])
    return torch.cat([matrices, maps[:, :, 3:] - matrices @ mean[:, 3:]], dim=2)


def solve_maps(systems: Systems) -> Maps:
    """Return the maps that solve the equations with the prior, one system of 4 numbers for each channel of p."""
    weights = torch.full((3, 4), MIXING_WEIGHT, dtype=torch.float64)
    weights.fill_diagonal_(GAIN_WEIGHT)
    matrices = systems[..., None, :, :4] + torch.diag_embed(weights)
    right = systems[..., 4:].transpose(-1, -2) + GAIN_WEIGHT * torch.eye(3, 4, dtype=torch.float64)
    return torch.linalg.solve(matrices, right)


def view_system(
    colors: Colors, image: Pixels, weights: Weights | None, present: Float64[Tensor, "3 4"] | None = None
) -> Float64[Tensor, "4 7"]:
    """Return the equations of one photograph's map, summed in float64 and in a fixed order.

    Pixels do not count where a channel of the photograph is 0 or 255, which may stand for anything beyond.

    Args:
        colors: The scene as it is rendered, not clamped.
        image: The photograph.
        weights: How much each pixel counts; all alike when None.
        present: The map by which the photograph is taken back now; where that is beyond 1 the scene was told 1, and
            does not count either.

    Returns:
        Zeros where nothing has weight.
    """
    counted = torch.ones_like(colors[:, :, 0]) if weights is None else weights.to(colors)
    total = float(counted.sum(dtype=torch.float64))
    counted = torch.where(((image == 0) | (image == 255)).any(dim=2).to(colors.device), 0, counted)[:, :, None]
    scene = torch.where(counted > 0, colors.detach(), 0)  # as what has no weight may be no number
    parts = [counted * scene, counted * (image.to(colors) / 255), counted]
    sums = _cells(torch.cat(parts, dim=2)).cpu().numpy().astype(np.float64).reshape(-1, 7)
    sums = sums[sums[:, 6] > 0]
    weight, means = sums[:, 6], sums[:, :6].T / sums[:, 6]
    if present is not None:
        inverse = inverse_maps(present).numpy()
        inside = (inverse[:, :3] @ means[3:] + inverse[:, 3:] <= 1).all(axis=0)
        weight, means = weight[inside], means[:, inside]
    rows = [*means[:3], np.ones_like(weight), *means[3:]]
    found = [[float((weight * left * right).sum()) for right in rows] for left in rows[:4]]
    return torch.tensor(found, dtype=torch.float64) / (total or 1.0)


def _cells(values: Float[Tensor, "height width channels"]) -> Float[Tensor, "h w channels"]:
    """Return sums over squares of pixels; those at the right and lower border may be smaller."""
    factor = math.ceil(max(values.shape[:2]) / _COARSE_SIDE)
    below, beside = (-side % factor for side in values.shape[:2])
    padded = torch.nn.functional.pad(values, (0, 0, 0, beside, 0, below))
    return padded.unflatten(1, (-1, factor)).unflatten(0, (-1, factor)).sum(dim=(1, 3))


class ExposureMaps:
    """The colour maps of a capture's photographs, and the photographs taken back.

    Attributes:
        maps: [M | b] of every view, (V, 3, 4) float64; the identity where none was solved.
    """

    def __init__(self, maps: Float64[Tensor, "views 3 4"]) -> None:
        """Begin with ``maps``; :func:`identity_maps` makes those of no exposure."""
        self.maps = maps
        self._kept: dict[int, Tensor] = {}

    def check_count(self, views: int, where: str) -> None:
        """Raise InputError, naming ``where``, where there are not as many maps as ``views``."""
        if len(self.maps) != views:
            raise InputError(f"{where} holds the colour maps of {len(self.maps)} views, and the capture has {views}")

    def update(self, views: Sequence[int], systems: Float64[Tensor, "views 4 7"]) -> None:
        """Solve the maps of ``views``, all against one scene, and anchor their mean.

        Args:
            views: Those that are trained on; the maps of all others stay.
            systems: Of :func:`view_system`; where one is not finite, or its map takes colours to nothing or to their
                opposite, the identity takes the map's place.
        """
        found = solve_maps(torch.where(torch.isfinite(systems), systems, 0))
        spoilt = ~torch.isfinite(systems).all(dim=2).all(dim=1)
        matrices = found[:, :, :3]
        # With vᵀ M v > 0 for all of them the mean has an inverse as well.
        least = torch.linalg.eigvalsh(matrices + matrices.transpose(1, 2))[:, 0] / 2
        found[spoilt | (least < _MIN_GAIN)] = identity_maps(1)
        self.maps[list(views)] = anchored_maps(found)
        self._kept.clear()

    def forget(self) -> None:
        """Take photographs back anew, as they have another size now."""
        self._kept.clear()

    def taken_back(self, view: int, image: Pixels) -> Pixels:
        """Return p' = M⁻¹ (p - b), rounded and clamped to 8 bits.

        A pixel that is clipped in the photograph stays what M⁻¹ makes of 255, though the scene may be brighter there:
        to leave it out costs more, as fewer views are left that see the place.

        Args:
            view: Its number.
            image: The photograph.
        """
        if torch.equal(self.maps[view], identity_maps(1)[0]):
            return image
        if view not in self._kept:
            if sum(pixels.numel() for pixels in self._kept.values()) + image.numel() > _KEPT_BYTES:
                self._kept.clear()
            inverse = inverse_maps(self.maps[view])
            inverse[:, 3] *= 255
            self._kept[view] = apply_map(inverse, image.float()).round().clamp(0, 255).to(torch.uint8)
        return self._kept[view]
