"""Gaussians and cameras as gsplat holds them, and rows as cameras see them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Harmonics:
    """Spherical harmonics of Gaussians' colours.

    Attributes:
        degree: The highest one that takes part.
        coefficients: (N, K, 3), or each camera's own, (C, N, K, 3).
    """

    degree: int
    coefficients: Float[Tensor, "*c n k 3"]


@dataclass(frozen=True)
class PlainGaussians:
    """N Gaussians as gsplat holds them, activated; either covariances or quaternions and scales.

    Attributes:
        means: Centres, (N, 3).
        quats: Rotations wxyz of any length, (N, 4), or None.
        scales: Standard deviations along the axes, (N, 3), or None.
        opacities: (N,); they decide what is drawn, and no gradient passes to them here.
        covariances: (N, 3, 3), or None.
        harmonics: What gives them colours, or None.
    """

    means: Float[Tensor, "n 3"]
    quats: Float[Tensor, "n 4"] | None
    scales: Float[Tensor, "n 3"] | None
    opacities: Float[Tensor, " n"]
    covariances: Float[Tensor, "n 3 3"] | None = None
    harmonics: Harmonics | None = None


@dataclass(frozen=True)
class PinholeCameras:
    """C cameras of one image size, and which Gaussians they leave out.

    Attributes:
        viewmats: World to camera, (C, 4, 4); the rotation's entries are taken as they are.
        intrinsics: (C, 3, 3), of which fx, fy, cx and cy are read.
        width: Pixels.
        height: Pixels.
        near_plane: What lies nearer along z is not drawn.
        far_plane: What lies further along z is not drawn.
        radius_clip: What reaches no further than so many pixels is not drawn.
        low_pass: Added to the diagonal of the projected covariances, pixels².
        antialiased: Whether opacities are compensated for the low-pass.
    """

    viewmats: Float[Tensor, "c 4 4"]
    intrinsics: Float[Tensor, "c 3 3"]
    width: int
    height: int
    near_plane: float = 0.01
    far_plane: float = 1e10
    radius_clip: float = 0.0
    low_pass: float = 0.3
    antialiased: bool = False

    @cached_property
    def poses(self) -> np.ndarray:
        """World to camera, (C, 4, 4) float64, without a graph."""
        return self.viewmats.detach().double().numpy()

    @cached_property
    def centers(self) -> np.ndarray:
        """Where the cameras are, (C, 3) float64, -R⁻¹ t."""
        return np.linalg.solve(self.poses[:, :3, :3], -self.poses[:, :3, 3:])[..., 0]


@dataclass(frozen=True)
class ProjectedRows:
    """Rows as cameras see them, zeros where a row is not drawn; (C, N, …), or (rows, …) where packed.

    Attributes:
        radii: Half sides of the box outside of which α is below 1/255, (…, 2) int32, whole pixels.
        means2d: Centres, (…, 2), pixels.
        factors: xx, xy and yy of the upper triangular U with UᵀU = Σ⁻¹, (…, 3), pixels⁻¹. Unlike the entries of Σ⁻¹
            they keep the digits of needles.
        conics: Entries xx, xy and yy of Σ⁻¹, (…, 3), pixels⁻².
        depths: Camera z, (…).
        compensations: √(det Σ before / after the low-pass), (…).
        tiles: How many tiles of the image a row's box meets, (…) int32.
        colors: What they show, (…, 3), or None where they have no harmonics.
    """

    radii: Int[Tensor, "*rows 2"]
    means2d: Float[Tensor, "*rows 2"]
    factors: Float[Tensor, "*rows 3"]
    conics: Float[Tensor, "*rows 3"]
    depths: Float[Tensor, "*rows"]
    compensations: Float[Tensor, "*rows"]
    tiles: Int[Tensor, "*rows"]
    colors: Float[Tensor, "*rows 3"] | None = None

    @cached_property
    def drawn(self) -> Tensor:
        """Which rows are drawn, (…) bool; either both radii are positive or none is."""
        return self.radii[..., 0] > 0

    def flattened(self) -> ProjectedRows:
        """Return the rows of all cameras one after the other, (rows, …)."""
        if self.depths.ndim == 1:
            return self
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: one.flatten(0, 1) for name, one in given.items() if one is not None})

    def take(self, rows: Tensor) -> ProjectedRows:
        """Return these of the flattened rows, each at most once."""
        flat = self.flattened()
        floats = flat.means2d, flat.factors, flat.conics, flat.depths, flat.compensations, flat.colors
        means2d, factors, conics, depths, compensations, colors = _TakeRows.apply(rows, *floats)
        return ProjectedRows(
            flat.radii.index_select(0, rows),
            means2d,
            factors,
            conics,
            depths,
            compensations,
            flat.tiles.index_select(0, rows),
            colors,
        )


def take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a tensor, each of which is asked for at most once; indexing's backward pass would sort them."""
    (taken,) = _TakeRows.apply(rows, tensor)
    return taken


class _TakeRows(torch.autograd.Function):
    """The same rows of several tensors, or of None."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(rows)
        ctx.shapes = [None if tensor is None else tensor.shape for tensor in tensors]
        ctx.set_materialize_grads(False)
        return tuple(None if tensor is None else tensor.index_select(0, rows) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        put = [
            None if one is None else one.new_zeros(shape).index_copy_(0, rows, one)
            for one, shape in zip(gradients, ctx.shapes, strict=True)
        ]
        return None, *put
