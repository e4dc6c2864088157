"""Projection and colours of Gaussians: what blending reads of them.

One program takes ``ROWS`` Gaussians, one a lane. The pass moves 236 bytes of parameters in and 52 bytes out per
drawn Gaussian and computes little, so it is bound by memory; its tuning is in ``docs/kernels.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from splatopt.core.schema import SH_REST_COUNTS, GaussianTensors
from splatopt.kernels.geometry import (
    HALF_LOG2_E,
    load_four,
    load_three,
    number,
    project_footprint,
    project_point,
    unit_direction,
    whitening,
)
from splatopt.kernels.jit import jit
from splatopt.kernels.spherical_harmonics import C0, sh_basis
from splatopt.kernels.view import HEIGHT, MIN_ALPHA, WIDTH

ROWS = 128
"""Gaussians a program, one a thread of four warps."""

TILE = 16
"""Side of a tile, pixels."""

SPLAT = tl.constexpr(10)
"""Floats of a splat: mean (2), a11, a12, a22, log2 opacity, colour (3), which colours pass a gradient (bits)."""


@dataclass(frozen=True)
class CloudPointers:
    """The six contiguous float32 tensors that kernels read, and the degree that is evaluated.

    Attributes:
        tensors: Of N Gaussians, in the order that kernels take them.
        degree: At most the stored one.
    """

    tensors: GaussianTensors
    degree: int

    @property
    def count(self) -> int:
        """N."""
        return self.tensors.means.shape[0]

    @property
    def coefficients(self) -> int:
        """K, the coefficients above degree 0 that are stored."""
        return self.tensors.sh_rest.shape[1]

    @property
    def bands(self) -> int:
        """Those of them that are evaluated."""
        return SH_REST_COUNTS[self.degree]


@dataclass(frozen=True)
class SplatBuffers:
    """Projected Gaussians in the cloud's order.

    Attributes:
        splats: (N, 10), undefined where not drawn.
        depths: Camera z, (N,), infinite where not drawn.
        row_first: First row of tiles that is touched, (N,) int32.
        row_count: How many, (N,) int32; 0 where not drawn.
    """

    splats: Tensor
    depths: Tensor
    row_first: Tensor
    row_count: Tensor


@jit
def store_splat(splats, row, mask, mean_x, mean_y, a, log2_opacity):
    """Write all of splats but their colours."""
    at = splats + row.to(tl.int64) * SPLAT
    tl.store(at, mean_x, mask)
    tl.store(at + 1, mean_y, mask)
    tl.store(at + 2, a[0], mask)
    tl.store(at + 3, a[1], mask)
    tl.store(at + 4, a[2], mask)
    tl.store(at + 5, log2_opacity, mask)


@jit
def color_of(dc, rest, row, mask, basis, channel: tl.constexpr, K: tl.constexpr, BANDS: tl.constexpr):
    """Return one channel of C₀ k + Σ Y k: the colour but for its ½ and its clamp at 0."""
    wide = row.to(tl.int64)
    color = tl.load(dc + wide * 3 + channel, mask, 0.0) * C0
    for band in tl.static_range(BANDS):
        color += basis[band] * tl.load(rest + (wide * K + band) * 3 + channel, mask, 0.0)
    return color


@jit
def store_colors(splats, dc, rest, row, mask, offset, K: tl.constexpr, BANDS: tl.constexpr):
    """Write the colours of splats and which of them pass their gradient.

    A black point's colour, stored as -0.5/C₀, may come out some rounding below 0: it still passes its gradient, or
    it would stay black for good.
    """
    direction, _ = unit_direction(offset)
    basis = sh_basis(direction[0], direction[1], direction[2])
    at = splats + row.to(tl.int64) * SPLAT
    passes = tl.zeros_like(direction[0])
    for channel in tl.static_range(3):
        color = color_of(dc, rest, row, mask, basis, channel, K, BANDS) + 0.5
        passes += tl.where(color >= -1e-6, 1.0 * (1 << channel), 0.0)
        tl.store(at + 6 + channel, tl.maximum(color, 0.0), mask)
    tl.store(at + 9, passes, mask)


@jit
def project_kernel(
    view,
    means,
    log_scales,
    quats,
    logits,
    dc,
    rest,
    splats,
    depths,
    row_first,
    row_count,
    N,
    K: tl.constexpr,
    BANDS: tl.constexpr,
    ANTIALIASED: tl.constexpr,
    TILE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write splats, depths and rows of tiles of ``BLOCK`` Gaussians."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < N
    point = project_point(view, load_three(means, row, inside))
    drawn = inside & point.front
    footprint = project_footprint(view, point, load_three(log_scales, row, drawn), load_four(quats, row, drawn))
    opacity = 1.0 / (1.0 + tl.exp(-tl.load(logits + row, drawn, 0.0)))
    if ANTIALIASED:
        opacity *= tl.sqrt(footprint.cross_squared / footprint.determinant)
    log2_opacity = tl.log2(tl.maximum(opacity, 1e-37))
    reach = log2_opacity - tl.log2(number(view, MIN_ALPHA))
    spread = tl.maximum(reach, 0.0) / HALF_LOG2_E
    half_x, half_y = tl.sqrt(spread * footprint.xx), tl.sqrt(spread * footprint.yy)
    width, height = number(view, WIDTH), number(view, HEIGHT)
    drawn &= (reach >= 0) & (point.mean_x + half_x >= 0.5) & (point.mean_x - half_x <= width - 0.5)
    drawn &= (point.mean_y + half_y >= 0.5) & (point.mean_y - half_y <= height - 0.5)
    # A covariance that overflowed is not drawn: its determinant is no number to divide by.
    drawn &= (footprint.determinant < 3e38) & (half_x < 3e38) & (half_y < 3e38)
    store_splat(splats, row, drawn, point.mean_x, point.mean_y, whitening(footprint), log2_opacity)
    store_colors(splats, dc, rest, row, drawn, point.offset, K, BANDS)
    tl.store(depths + row, tl.where(drawn, point.camera[2], float("inf")), inside)
    # Rows of tiles with a pixel centre within the extent, a hair more than exact.
    top = tl.maximum(point.mean_y - half_y - 1e-3, 0.0)
    bottom = tl.minimum(point.mean_y + half_y + 1e-3, height - 0.5)
    first = tl.maximum(tl.ceil((top - (TILE_SIZE - 0.5)) / TILE_SIZE), 0.0).to(tl.int32)
    last = tl.floor((bottom - 0.5) / TILE_SIZE).to(tl.int32)
    tl.store(row_first + row, tl.where(drawn, first, 0), inside)
    tl.store(row_count + row, tl.where(drawn, tl.maximum(last - first + 1, 0), 0), inside)


def project(view: Tensor, cloud: CloudPointers, antialiased: bool) -> SplatBuffers:
    """Project a cloud: EWA footprints, whitened, and colours max(0, ½ + Σ k Y(direction)).

    Args:
        view: Of :func:`~splatopt.kernels.view.pack_view`.
        cloud: N Gaussians.
        antialiased: Whether opacity is multiplied by √(det Σ before / det Σ after the low-pass).

    Returns:
        N splats in the cloud's order; those that no pixel's α can reach 1/255 of are not drawn.
    """
    count, device = cloud.count, cloud.tensors.means.device
    out = SplatBuffers(
        splats=torch.empty(count, SPLAT.value, device=device),
        depths=torch.empty(count, device=device),
        row_first=torch.empty(count, dtype=torch.int32, device=device),
        row_count=torch.empty(count, dtype=torch.int32, device=device),
    )
    if count:
        project_kernel[(triton.cdiv(count, ROWS),)](
            view,
            *cloud.tensors,
            out.splats,
            out.depths,
            out.row_first,
            out.row_count,
            count,
            K=cloud.coefficients,
            BANDS=cloud.bands,
            ANTIALIASED=antialiased,
            TILE_SIZE=TILE,
            BLOCK=ROWS,
        )
    return out
