"""Statistics of rows on a GPU: what they do in a view, and what a gradient pass has of them.

Definitions are those of :mod:`splatopt.core.row_statistics`. With the whitened offset (u, v) = A (pixel - mean) and
r_c = ∂L/∂C_c, a pair of tile and Gaussian leaves Σw, how many pixels, Σe, Σwe, Σwe², where they are asked for Σ r_c w u
and Σ r_c w v where α is not clamped, and the greatest w, in its slot: 24 or 48 bytes a pair. Q d = Aᵀ(u, v) / ½log2 e
takes the cross sums to pixels, and P = ∂m/∂μ to the world.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from splatopt.core.row_statistics import GradientStatistics
from splatopt.kernels.blend import Blended, load_batch, pixels_inside, tile_pixels
from splatopt.kernels.blend_backward import ABSOLUTE, GRADIENT, clear_behind, load_ray_ends, sum_pairs, walk_back
from splatopt.kernels.blend_moments import store_sum
from splatopt.kernels.geometry import (
    HALF_LOG2_E,
    LOG2_E,
    load_four,
    load_three,
    number,
    project_footprint,
    project_point,
    three,
    whitening,
)
from splatopt.kernels.jit import jit
from splatopt.kernels.projection import ROWS, TILE, CloudPointers, SplatBuffers
from splatopt.kernels.projection_backward import covariance_gradient, mean_gradient
from splatopt.kernels.tiles import TileLists
from splatopt.kernels.view import FX, FY, HEIGHT, MAX_ALPHA, MIN_ALPHA, ROTATION, WIDTH

SUMS, CROSS_SUMS = 5, 6
"""Floats of a pair without the greatest weight, and those of the cross term."""

BATCH = 4
"""Gaussians at a time."""

WARPS = 4
"""Two pixels a thread."""

ROW_SUMS = ("weight", "pixels", "error", "weighted_error", "weighted_squared_error")
"""What the first of the sums are, by the name of their tensor."""


@jit
def blend_statistics_kernel(
    view,
    splats,
    gaussians,
    slots,
    tile_begin,
    transmittance,
    last,
    image_gradient,
    errors,
    pairs,
    greatest,
    tiles_x,
    CROSS: tl.constexpr,
    TILE_SIZE: tl.constexpr,
    BATCH_SIZE: tl.constexpr,
):
    """Write the sums and the greatest weight of each entry of one tile."""
    FIELDS: tl.constexpr = 11 if CROSS else 5
    tile = tl.program_id(0)
    x, y = tile_pixels(tile, tiles_x, TILE_SIZE)
    inside = pixels_inside(view, x, y)
    begin, end = tl.load(tile_begin + tile), tl.load(tile_begin + tile + 1)
    pixel, running, reached = load_ray_ends(view, transmittance, last, x, y, inside)
    red, green, blue = running, running, running
    if CROSS:
        red = tl.load(image_gradient + pixel * 3, inside, 0.0)
        green = tl.load(image_gradient + pixel * 3 + 1, inside, 0.0)
        blue = tl.load(image_gradient + pixel * 3 + 2, inside, 0.0)
    error = tl.load(errors + pixel, inside, 0.0)[None, :]
    max_alpha, min_alpha = number(view, MAX_ALPHA), number(view, MIN_ALPHA)
    start = (tl.max(reached) + BATCH_SIZE - 1) // BATCH_SIZE * BATCH_SIZE
    clear_behind(pairs, slots, begin + start, end, FIELDS)
    clear_behind(greatest, slots, begin + start, end, 1)
    while start > 0:
        start -= BATCH_SIZE
        position = start + tl.arange(0, BATCH_SIZE)
        live = begin + position < end
        splat = load_batch(splats, gaussians, begin + position, live)
        u, v, unclamped, alpha, before = walk_back(splat, live, position, x, y, running, reached, max_alpha, min_alpha)
        weight = alpha * before
        slot = tl.load(slots + begin + position, live, 0).to(tl.int64)
        to = pairs + slot * FIELDS
        store_sum(to, 0, weight, live)
        store_sum(to, 1, tl.where(alpha > 0, 1.0, 0.0), live)
        store_sum(to, 2, tl.where(alpha > 0, error, 0.0), live)
        store_sum(to, 3, weight * error, live)
        store_sum(to, 4, weight * error * error, live)
        if CROSS:
            passing = tl.where(unclamped <= max_alpha, weight, 0.0)
            across, down = passing * u, passing * v
            store_sum(to, 5, across * red[None, :], live)
            store_sum(to, 6, across * green[None, :], live)
            store_sum(to, 7, across * blue[None, :], live)
            store_sum(to, 8, down * red[None, :], live)
            store_sum(to, 9, down * green[None, :], live)
            store_sum(to, 10, down * blue[None, :], live)
        tl.store(greatest + slot, tl.max(weight, axis=1), live)
        running = tl.max(before, axis=0)


def blend_statistics(
    view: Tensor,
    projected: SplatBuffers,
    lists: TileLists,
    drawn: Blended,
    errors: Tensor,
    image_gradient: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the sums over pixels of the splats.

    Args:
        view: Of :func:`~splatopt.kernels.view.pack_view`.
        projected: Splats.
        lists: Who touches which tile.
        drawn: What the forward pass left; no entry reaches (``last`` is 0) where a pixel does not count.
        errors: e, (H, W), contiguous float32.
        image_gradient: ∂L/∂image, (H, W, 3), contiguous float32; None where the cross term is not asked for.

    Returns:
        (N, 11) sums, or (N, 5) without the cross term, and (N, 1) greatest weights; 0 where nothing is drawn.
    """
    cross = image_gradient is not None
    widths = (SUMS + CROSS_SUMS * cross, 1)
    pairs, greatest = (torch.empty(lists.slots.numel(), width, device=errors.device) for width in widths)
    if lists.slots.numel():
        blend_statistics_kernel[(lists.tiles_x * lists.tiles_y,)](
            view,
            projected.splats,
            lists.gaussians,
            lists.slots,
            lists.begin,
            drawn.transmittance,
            drawn.last,
            errors if image_gradient is None else image_gradient,
            errors,
            pairs,
            greatest,
            lists.tiles_x,
            CROSS=cross,
            TILE_SIZE=TILE,
            BATCH_SIZE=BATCH,
            num_warps=WARPS,
        )
    return sum_pairs(pairs, lists), sum_pairs(greatest, lists, greatest=True)


@jit
def center_jacobian(view, point):
    """Return the rows of P = ∂m/∂μ: unlike the covariance's, nothing in it is clamped."""
    w_x, w_y, w_z = three(view, ROTATION), three(view, ROTATION + 3), three(view, ROTATION + 6)
    j_x, j_y = number(view, FX) * point.inverse_z, number(view, FY) * point.inverse_z
    across = (
        j_x * (w_x[0] - point.ratio_x * w_z[0]),
        j_x * (w_x[1] - point.ratio_x * w_z[1]),
        j_x * (w_x[2] - point.ratio_x * w_z[2]),
    )
    down = (
        j_y * (w_y[0] - point.ratio_y * w_z[0]),
        j_y * (w_y[1] - point.ratio_y * w_z[1]),
        j_y * (w_y[2] - point.ratio_y * w_z[2]),
    )
    return across, down


@jit
def project_cross_kernel(
    view, means, log_scales, quats, row_count, sums, cross, weight, N, OVERWRITE: tl.constexpr, BLOCK: tl.constexpr
):
    """Add or write X of ``BLOCK`` Gaussians."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < N
    drawn = tl.load(row_count + row, inside, 0) > 0
    point = project_point(view, load_three(means, row, drawn))
    a = whitening(project_footprint(view, point, load_three(log_scales, row, drawn), load_four(quats, row, drawn)))
    across, down = center_jacobian(view, point)
    unit = tl.load(weight).to(tl.float32) / HALF_LOG2_E
    wide = row.to(tl.int64)
    for channel in tl.static_range(3):
        u = tl.load(sums + wide * 11 + 5 + channel, drawn, 0.0) * unit
        v = tl.load(sums + wide * 11 + 8 + channel, drawn, 0.0) * unit
        x, y = a[0] * u, a[1] * u + a[2] * v
        for axis in tl.static_range(3):
            at = cross + wide * 9 + 3 * axis + channel
            value = across[axis] * x + down[axis] * y
            if OVERWRITE:
                tl.store(at, tl.where(drawn, value, 0.0), inside)
            else:
                tl.store(at, tl.load(at, drawn, 0.0) + value, drawn)


def project_statistics(
    view: Tensor,
    cloud: CloudPointers,
    projected: SplatBuffers,
    found: tuple[Tensor, Tensor],
    into: Mapping[str, Tensor],
    weight: Tensor,
    *,
    overwrite: bool,
) -> None:
    """Add what was found of the splats to the statistics of rows.

    Args:
        view: Of :func:`~splatopt.kernels.view.pack_view`.
        cloud: N Gaussians.
        projected: Their splats.
        found: Of :func:`blend_statistics`.
        into: The fields of RowStatistics, added to; ``color_cross`` where its sums were found.
        weight: Factor of all but the greatest weights, one number on the device.
        overwrite: Take ``into`` as empty, whatever it holds.
    """
    sums, greatest = found
    if overwrite:
        for name, tensor in into.items():
            if name != "color_cross":
                tensor.zero_()
    for position, name in enumerate(ROW_SUMS):
        into[name].addcmul_(sums[:, position], weight)
    torch.maximum(into["max_weight"], greatest[:, 0], out=into["max_weight"])
    if cloud.count and "color_cross" in into:
        project_cross_kernel[(triton.cdiv(cloud.count, ROWS),)](
            view,
            cloud.tensors.means,
            cloud.tensors.log_scales,
            cloud.tensors.quats,
            projected.row_count,
            sums,
            into["color_cross"],
            weight,
            cloud.count,
            OVERWRITE=overwrite,
            BLOCK=ROWS,
        )


@jit
def image_length(view, x, y):
    """Return ‖(W/2, H/2) ⊙ (x, y)‖."""
    across, down = 0.5 * number(view, WIDTH) * x, 0.5 * number(view, HEIGHT) * y
    return tl.sqrt(across * across + down * down)


@jit
def add_splitting(view, point, a, g, splitting, row, drawn):
    """Add Pᵀ (2 ∂L/∂Σ - (o ∂L/∂o) Q) P to the splitting matrices."""
    s_xx, s_xy, s_yy = covariance_gradient(a, g)
    by_opacity = g[0] * (LOG2_E / HALF_LOG2_E)
    s_xx = 2 * s_xx - by_opacity * a[0] * a[0]
    s_xy = 2 * s_xy - by_opacity * a[0] * a[1]
    s_yy = 2 * s_yy - by_opacity * (a[1] * a[1] + a[2] * a[2])
    x, y = center_jacobian(view, point)
    at = splitting + row.to(tl.int64) * 6
    for i in tl.static_range(3):
        for j in tl.static_range(i, 3):
            # Entries xx, xy, xz, yy, yz, zz.
            to = at + (i * (5 - i) // 2 + j)
            value = x[i] * (s_xx * x[j] + s_xy * y[j]) + y[i] * (s_xy * x[j] + s_yy * y[j])
            tl.store(to, tl.load(to, drawn, 0.0) + value, drawn)


@jit
def observe_kernel(
    view,
    means,
    log_scales,
    quats,
    row_count,
    sums,
    views,
    gradient,
    max_radius,
    absolute,
    splitting,
    N,
    ABSOLUTE_TOO: tl.constexpr,
    SPLITTING_TOO: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add one view's statistics of ``BLOCK`` Gaussians."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    drawn = tl.load(row_count + row, row < N, 0) > 0
    point = project_point(view, load_three(means, row, drawn))
    footprint = project_footprint(view, point, load_three(log_scales, row, drawn), load_four(quats, row, drawn))
    a = whitening(footprint)
    FIELDS: tl.constexpr = 11 if ABSOLUTE_TOO else 9
    at = sums + row.to(tl.int64) * FIELDS
    g = (
        tl.load(at, drawn, 0.0),
        tl.load(at + 1, drawn, 0.0),
        tl.load(at + 2, drawn, 0.0),
        tl.load(at + 3, drawn, 0.0),
        tl.load(at + 4, drawn, 0.0),
        tl.load(at + 5, drawn, 0.0),
    )
    tl.store(views + row, tl.load(views + row, drawn, 0.0) + 1.0, drawn)
    d_x, d_y = mean_gradient(a, g)
    tl.store(gradient + row, tl.load(gradient + row, drawn, 0.0) + image_length(view, d_x, d_y), drawn)
    half = 0.5 * (footprint.xx - footprint.yy)
    spread = 0.5 * (footprint.xx + footprint.yy) + tl.sqrt(half * half + footprint.xy * footprint.xy)
    radius = 3.0 * tl.sqrt(spread) / tl.maximum(number(view, WIDTH), number(view, HEIGHT))
    tl.store(max_radius + row, tl.maximum(tl.load(max_radius + row, drawn, 0.0), radius), drawn)
    if ABSOLUTE_TOO:
        across, down = 2 * a[0] * tl.load(at + 9, drawn, 0.0), 2 * tl.load(at + 10, drawn, 0.0)
        tl.store(absolute + row, tl.load(absolute + row, drawn, 0.0) + image_length(view, across, down), drawn)
    if SPLITTING_TOO:
        add_splitting(view, point, a, g, splitting, row, drawn)


def observe(
    view: Tensor, cloud: CloudPointers, projected: SplatBuffers, sums: Tensor, observed: GradientStatistics
) -> None:
    """Add one view's statistics of the Gaussians that it drew.

    Args:
        view: Of :func:`~splatopt.kernels.view.pack_view`.
        cloud: N Gaussians.
        projected: Their splats.
        sums: Of :func:`~splatopt.kernels.blend_backward.blend_backward`, (N, 11) where the absolute gradient is asked
            for, else (N, 9).
        observed: Added to.

    Raises:
        ValueError: The sums are not those that are asked for.
    """
    absolute, splitting = observed.absolute, observed.splitting
    expected = GRADIENT + ABSOLUTE * (absolute is not None)
    if sums.shape[1] != expected:
        raise ValueError(f"what is observed needs {expected} sums of a Gaussian, got {sums.shape[1]}")
    if cloud.count:
        observe_kernel[(triton.cdiv(cloud.count, ROWS),)](
            view,
            cloud.tensors.means,
            cloud.tensors.log_scales,
            cloud.tensors.quats,
            projected.row_count,
            sums,
            observed.views,
            observed.gradient,
            observed.max_radius,
            observed.gradient if absolute is None else absolute,
            observed.gradient if splitting is None else splitting,
            cloud.count,
            ABSOLUTE_TOO=absolute is not None,
            SPLITTING_TOO=splitting is not None,
            BLOCK=ROWS,
        )
