"""Forward mode: what a change of the parameters does to splats, and what that does to the image.

A splat's exponent is log2 α = l - |w|², w = A (pixel - mean). To first order it changes by l' + t·w + wᵀ N w with
t = 2 A mean' and N = A Σ' Aᵀ / ½log2 e: the sums that the backward pass takes over pixels, read the other way.
Along a ray, T'/T = -Σ α'/(1 - α) over what lies in front, and w' = T (α' + α T'/T).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from splatopt.kernels.blend import (
    Blended,
    load_batch,
    load_colors,
    pixels_inside,
    tile_pixels,
    unclamped_alpha,
    whitened_offsets,
)
from splatopt.kernels.blend_backward import load_ray_ends
from splatopt.kernels.geometry import (
    HALF_LOG2_E,
    LN_2,
    LOG2_E,
    cross3,
    dot3,
    load_four,
    load_three,
    number,
    project_footprint,
    project_point,
    rotated_row,
    three,
    times,
    unit_direction,
    whitening,
)
from splatopt.kernels.jit import jit
from splatopt.kernels.projection import ROWS, SPLAT, TILE, CloudPointers, SplatBuffers, color_of
from splatopt.kernels.projection_backward import passes_of
from splatopt.kernels.spherical_harmonics import sh_basis, sh_basis_by_x, sh_basis_by_y, sh_basis_by_z
from splatopt.kernels.tiles import TileLists
from splatopt.kernels.view import BACKGROUND, FX, FY, LOW_PASS, MAX_ALPHA, MIN_ALPHA, ROTATION

TANGENT = 9
"""Floats of a splat's tangent: l', t (2), N (uu, uv, vv), colour' (3)."""

BATCH = 4
"""Gaussians at a time: 115 registers a thread on sm_90, 168 with 8."""

WARPS = 4
"""Two pixels a thread."""


class Exponent(NamedTuple):
    """How log2 α changes: l' + t·w + wᵀ N w.

    Attributes:
        constant: l'.
        t_u: First entry of t.
        t_v: Second entry of t.
        n_uu: N_uu.
        n_uv: N_uv.
        n_vv: N_vv.
    """

    constant: tl.tensor
    t_u: tl.tensor
    t_v: tl.tensor
    n_uu: tl.tensor
    n_uv: tl.tensor
    n_vv: tl.tensor


@jit
def rotation_tangent(q, d):
    """Return the rows of R' for a unit quaternion's change."""
    w, x, y, z = q[0], q[1], q[2], q[3]
    dw, dx, dy, dz = d[0], d[1], d[2], d[3]
    xy, wz = x * dy + y * dx, w * dz + z * dw
    xz, wy = x * dz + z * dx, w * dy + y * dw
    yz, wx = y * dz + z * dy, w * dx + x * dw
    xx, yy, zz = 4 * x * dx, 4 * y * dy, 4 * z * dz
    return (
        (-(yy + zz), 2 * (xy - wz), 2 * (xz + wy)),
        (2 * (xy + wz), -(xx + zz), 2 * (yz - wx)),
        (2 * (xz - wy), 2 * (yz + wx), -(xx + yy)),
    )


@jit
def add3(a, b):
    """Return the sum of two triples."""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@jit
def jacobian_tangent(view, point, footprint, d_mean):
    """Return the changes of the image's mean and of the rows of J W along a change of the centre."""
    w_x, w_y, w_z = three(view, ROTATION), three(view, ROTATION + 3), three(view, ROTATION + 6)
    fx, fy = number(view, FX), number(view, FY)
    d_x, d_y, d_z = dot3(d_mean, w_x), dot3(d_mean, w_y), dot3(d_mean, w_z)
    d_ratio_x = (d_x - point.ratio_x * d_z) * point.inverse_z
    d_ratio_y = (d_y - point.ratio_y * d_z) * point.inverse_z
    d_inverse = -(point.inverse_z * point.inverse_z * d_z)
    d_j_x, d_j_y = fx * d_inverse, fy * d_inverse
    d_02 = -(d_j_x * footprint.slope_x + tl.where(footprint.inside_x, fx * point.inverse_z * d_ratio_x, 0.0))
    d_12 = -(d_j_y * footprint.slope_y + tl.where(footprint.inside_y, fy * point.inverse_z * d_ratio_y, 0.0))
    d_image_x = (d_j_x * w_x[0] + d_02 * w_z[0], d_j_x * w_x[1] + d_02 * w_z[1], d_j_x * w_x[2] + d_02 * w_z[2])
    d_image_y = (d_j_y * w_y[0] + d_12 * w_z[0], d_j_y * w_y[1] + d_12 * w_z[1], d_j_y * w_y[2] + d_12 * w_z[2])
    return fx * d_ratio_x, fy * d_ratio_y, d_image_x, d_image_y


@jit
def geometry_jvp(
    view, point, footprint, a, transparency, d_mean, d_log_scale, d_quat, d_logit, ANTIALIASED: tl.constexpr
):
    """Return how the exponent changes along a direction of the eleven geometric parameters."""
    d_mean_x, d_mean_y, d_image_x, d_image_y = jacobian_tangent(view, point, footprint, d_mean)
    q, inverse_norm = footprint.quat, footprint.inverse_norm
    along = q[0] * d_quat[0] + q[1] * d_quat[1] + q[2] * d_quat[2] + q[3] * d_quat[3]
    d_unit = (
        (d_quat[0] - q[0] * along) * inverse_norm,
        (d_quat[1] - q[1] * along) * inverse_norm,
        (d_quat[2] - q[2] * along) * inverse_norm,
        (d_quat[3] - q[3] * along) * inverse_norm,
    )
    d_rotation = rotation_tangent(q, d_unit)
    row_x, row_y = footprint.row_x, footprint.row_y
    rotated_x = add3(rotated_row(d_image_x, footprint.rotation), rotated_row(footprint.image_x, d_rotation))
    rotated_y = add3(rotated_row(d_image_y, footprint.rotation), rotated_row(footprint.image_y, d_rotation))
    d_row_x = add3(times(rotated_x, footprint.scale), times(row_x, d_log_scale))
    d_row_y = add3(times(rotated_y, footprint.scale), times(row_y, d_log_scale))
    s_xx, s_yy = 2 * dot3(row_x, d_row_x), 2 * dot3(row_y, d_row_y)
    s_xy = dot3(row_x, d_row_y) + dot3(row_y, d_row_x)
    constant = transparency * d_logit * LOG2_E
    if ANTIALIASED:
        d_cross = dot3(cross3(row_y, footprint.cross), d_row_x) + dot3(cross3(footprint.cross, row_x), d_row_y)
        d_cross = 2 * d_cross
        d_determinant = d_cross + number(view, LOW_PASS) * (s_xx + s_yy)
        relative = d_cross / tl.maximum(footprint.cross_squared, 1e-30) - d_determinant / footprint.determinant
        constant += relative * (0.5 * LOG2_E)
    unit = 1.0 / HALF_LOG2_E
    e_0, e_1 = a[0] * s_xx + a[1] * s_xy, a[0] * s_xy + a[1] * s_yy
    return Exponent(
        constant=constant,
        t_u=2 * (a[0] * d_mean_x + a[1] * d_mean_y),
        t_v=2 * a[2] * d_mean_y,
        n_uu=(a[0] * e_0 + a[1] * e_1) * unit,
        n_uv=a[2] * e_1 * unit,
        n_vv=a[2] * a[2] * s_yy * unit,
    )


@jit
def color_by_mean(rest, row, drawn, direction, inverse, channel: tl.constexpr, K: tl.constexpr, BANDS: tl.constexpr):
    """Return ∂(one channel before its clamp)/∂mean, through the direction of sight."""
    x, y, z = direction[0], direction[1], direction[2]
    by_x, by_y, by_z = sh_basis_by_x(x, y, z), sh_basis_by_y(x, y, z), sh_basis_by_z(x, y, z)
    g_x, g_y, g_z = x * 0, x * 0, x * 0
    for band in tl.static_range(BANDS):
        factor = tl.load(rest + (row.to(tl.int64) * K + band) * 3 + channel, drawn, 0.0)
        g_x += factor * by_x[band]
        g_y += factor * by_y[band]
        g_z += factor * by_z[band]
    radial = g_x * x + g_y * y + g_z * z
    return (g_x - x * radial) * inverse, (g_y - y * radial) * inverse, (g_z - z * radial) * inverse


@jit
def project_jvp_kernel(
    view,
    means,
    log_scales,
    quats,
    logits,
    dc,
    rest,
    splats,
    row_count,
    v_means,
    v_log_scales,
    v_quats,
    v_logits,
    v_dc,
    v_rest,
    out,
    N,
    K: tl.constexpr,
    BANDS: tl.constexpr,
    ANTIALIASED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the tangents of ``BLOCK`` splats."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    drawn = tl.load(row_count + row, row < N, 0) > 0
    point = project_point(view, load_three(means, row, drawn))
    footprint = project_footprint(view, point, load_three(log_scales, row, drawn), load_four(quats, row, drawn))
    transparency = 1.0 / (1.0 + tl.exp(tl.load(logits + row, drawn, 0.0)))
    d_mean, d_logit = load_three(v_means, row, drawn), tl.load(v_logits + row, drawn, 0.0)
    d_log_scale, d_quat = load_three(v_log_scales, row, drawn), load_four(v_quats, row, drawn)
    jvp_value = geometry_jvp(
        view, point, footprint, whitening(footprint), transparency, d_mean, d_log_scale, d_quat, d_logit, ANTIALIASED
    )
    at = out + row.to(tl.int64) * 9
    tl.store(at, jvp_value.constant, drawn)
    tl.store(at + 1, jvp_value.t_u, drawn)
    tl.store(at + 2, jvp_value.t_v, drawn)
    tl.store(at + 3, jvp_value.n_uu, drawn)
    tl.store(at + 4, jvp_value.n_uv, drawn)
    tl.store(at + 5, jvp_value.n_vv, drawn)
    direction, inverse = unit_direction(point.offset)
    basis = sh_basis(direction[0], direction[1], direction[2])
    splat = splats + row.to(tl.int64) * SPLAT
    for channel in tl.static_range(3):
        by_mean = color_by_mean(rest, row, drawn, direction, inverse, channel, K, BANDS)
        d_color = color_of(v_dc, v_rest, row, drawn, basis, channel, K, BANDS) + dot3(by_mean, d_mean)
        tl.store(at + 6 + channel, d_color * passes_of(splat, drawn, channel), drawn)


@jit
def blend_jvp_kernel(
    view,
    splats,
    tangents,
    gaussians,
    tile_begin,
    transmittance,
    last,
    out,
    tiles_x,
    TILE_SIZE: tl.constexpr,
    BATCH_SIZE: tl.constexpr,
):
    """Write the tangent of one tile's image."""
    tile = tl.program_id(0)
    x, y = tile_pixels(tile, tiles_x, TILE_SIZE)
    inside = pixels_inside(view, x, y)
    begin, end = tl.load(tile_begin + tile), tl.load(tile_begin + tile + 1)
    pixel, final, reached = load_ray_ends(view, transmittance, last, x, y, inside)
    max_alpha, min_alpha = number(view, MAX_ALPHA), number(view, MIN_ALPHA)
    running, fall = tl.where(inside, 1.0, 0.0), tl.zeros_like(final)
    red, green, blue = tl.zeros_like(final), tl.zeros_like(final), tl.zeros_like(final)
    furthest = tl.max(reached)
    start = furthest * 0
    while start < furthest:
        position = start + tl.arange(0, BATCH_SIZE)
        live = begin + position < end
        splat = load_batch(splats, gaussians, begin + position, live)
        d = tangents + tl.load(gaussians + begin + position, live, 0).to(tl.int64) * 9
        u, v = whitened_offsets(splat, live, x, y)
        unclamped = unclamped_alpha(splat, live, u, v)
        used = (unclamped >= min_alpha) & (position[:, None] < reached[None, :])
        alpha = tl.where(used, tl.minimum(unclamped, max_alpha), 0.0)
        before = running[None, :] * tl.cumprod(1 - alpha, axis=0) / (1 - alpha)
        by_u = tl.load(d + 1, live, 0.0)[:, None] + tl.load(d + 3, live, 0.0)[:, None] * u
        by_u += 2 * tl.load(d + 4, live, 0.0)[:, None] * v
        by_v = tl.load(d + 2, live, 0.0)[:, None] + tl.load(d + 5, live, 0.0)[:, None] * v
        exponent = tl.load(d, live, 0.0)[:, None] + by_u * u + by_v * v
        d_alpha = tl.where(unclamped <= max_alpha, alpha * exponent * LN_2, 0.0)
        share = d_alpha / (1 - alpha)
        fall_before = fall[None, :] + tl.cumsum(share, axis=0) - share
        weight, d_weight = alpha * before, (d_alpha - alpha * fall_before) * before
        color, d_color = load_colors(splat, live), load_colors(d, live)
        red += tl.sum(d_weight * color[0] + weight * d_color[0], axis=0)
        green += tl.sum(d_weight * color[1] + weight * d_color[1], axis=0)
        blue += tl.sum(d_weight * color[2] + weight * d_color[2], axis=0)
        fall += tl.sum(share, axis=0)
        running = tl.min(before * (1 - alpha), axis=0)
        start += BATCH_SIZE
    d_final = -final * fall
    tl.store(out + pixel * 3, red + d_final * number(view, BACKGROUND), inside)
    tl.store(out + pixel * 3 + 1, green + d_final * number(view, BACKGROUND + 1), inside)
    tl.store(out + pixel * 3 + 2, blue + d_final * number(view, BACKGROUND + 2), inside)


def project_jvp(
    view: Tensor, cloud: CloudPointers, projected: SplatBuffers, tangent: Sequence[Tensor], *, antialiased: bool
) -> Tensor:
    """Return the tangents of the splats, (N, 9): l', t (2), N (uu, uv, vv), colour' (3); undefined where not drawn.

    Args:
        view: Of :func:`~splatopt.kernels.view.pack_view`.
        cloud: N Gaussians.
        projected: Their splats.
        tangent: Six tensors in the cloud's shapes, contiguous float32.
        antialiased: As projected.
    """
    out = torch.empty(cloud.count, TANGENT, device=cloud.tensors.means.device)
    if cloud.count:
        project_jvp_kernel[(triton.cdiv(cloud.count, ROWS),)](
            view,
            *cloud.tensors,
            projected.splats,
            projected.row_count,
            *tangent,
            out,
            cloud.count,
            K=cloud.coefficients,
            BANDS=cloud.bands,
            ANTIALIASED=antialiased,
            BLOCK=ROWS,
        )
    return out


def blend_jvp(view: Tensor, projected: SplatBuffers, lists: TileLists, drawn: Blended, tangents: Tensor) -> Tensor:
    """Return the tangent of the image, (H, W, 3).

    Args:
        view: Of :func:`~splatopt.kernels.view.pack_view`.
        projected: Splats.
        lists: Who touches which tile.
        drawn: What the forward pass left.
        tangents: Of :func:`project_jvp`.
    """
    out = torch.empty_like(drawn.image)
    blend_jvp_kernel[(lists.tiles_x * lists.tiles_y,)](
        view,
        projected.splats,
        tangents,
        lists.gaussians,
        lists.begin,
        drawn.transmittance,
        drawn.last,
        out,
        lists.tiles_x,
        TILE_SIZE=TILE,
        BATCH_SIZE=BATCH,
        num_warps=WARPS,
    )
    return out
