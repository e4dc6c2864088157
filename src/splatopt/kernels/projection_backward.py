"""The gradient of projection and colour: from the nine sums of a splat to the six tensors.

Blending's sums Σ g, Σ g w, Σ g w wᵀ are what ∂L/∂log2 o, ∂L/∂mean = 2Aᵀ Σ g w and ∂L/∂Σ = Aᵀ (Σ g w wᵀ) A / ½log2 e
follow from; whitened, needles keep their digits.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from splatopt.kernels.geometry import (
    HALF_LOG2_E,
    LOG2_E,
    cross3,
    dot3,
    load_four,
    load_three,
    number,
    project_footprint,
    project_point,
    three,
    unit_direction,
    whitening,
)
from splatopt.kernels.jit import jit
from splatopt.kernels.projection import ROWS, SPLAT, CloudPointers, SplatBuffers
from splatopt.kernels.spherical_harmonics import C0, sh_basis, sh_basis_by_x, sh_basis_by_y, sh_basis_by_z
from splatopt.kernels.view import FX, FY, LOW_PASS, ROTATION


@jit
def add_or_write(at, value, inside, drawn, OVERWRITE: tl.constexpr):
    """Write ``value`` for all rows, or add it for those that were drawn."""
    if OVERWRITE:
        tl.store(at, tl.where(drawn, value, 0.0), inside)
    else:
        tl.store(at, tl.load(at, drawn, 0.0) + value, drawn)


@jit
def passes_of(splat, drawn, channel: tl.constexpr):
    """Return 1.0 where a channel of the colour passes its gradient, else 0.0."""
    bits = tl.load(splat + 9, drawn, 0.0).to(tl.int32)
    return ((bits >> channel) & 1).to(tl.float32)


@jit
def rows_gradient(view, footprint, s_xx, s_xy, s_yy, log2_opacity, ANTIALIASED: tl.constexpr):
    """Return ∂L/∂M₀ and ∂L/∂M₁ from ∂L/∂Σ (symmetric) and, antialiased, from ∂L/∂log2 o.

    log2 ρ = (ln D₀ - ln det)/(2 ln 2), D₀ = |M₀×M₁|², det = D₀ + low_pass (|M₀|² + |M₁|² + low_pass).
    """
    a, b = footprint.row_x, footprint.row_y
    of_cross, of_norm = s_xx * 0, s_xx * 0
    if ANTIALIASED:
        scale = log2_opacity * (0.5 * LOG2_E)
        of_cross = scale * (1.0 / tl.maximum(footprint.cross_squared, 1e-30) - 1.0 / footprint.determinant)
        of_norm = scale * number(view, LOW_PASS) / footprint.determinant
    by_a, by_b = cross3(b, footprint.cross), cross3(footprint.cross, a)
    xx, yy = s_xx - of_norm, s_yy - of_norm
    d_a = (
        2 * (xx * a[0] + s_xy * b[0] + of_cross * by_a[0]),
        2 * (xx * a[1] + s_xy * b[1] + of_cross * by_a[1]),
        2 * (xx * a[2] + s_xy * b[2] + of_cross * by_a[2]),
    )
    d_b = (
        2 * (s_xy * a[0] + yy * b[0] + of_cross * by_b[0]),
        2 * (s_xy * a[1] + yy * b[1] + of_cross * by_b[1]),
        2 * (s_xy * a[2] + yy * b[2] + of_cross * by_b[2]),
    )
    return d_a, d_b


@jit
def outer_sum(a, b, c, d):
    """Return the rows of a bᵀ + c dᵀ for triples."""
    return (
        (a[0] * b[0] + c[0] * d[0], a[0] * b[1] + c[0] * d[1], a[0] * b[2] + c[0] * d[2]),
        (a[1] * b[0] + c[1] * d[0], a[1] * b[1] + c[1] * d[1], a[1] * b[2] + c[1] * d[2]),
        (a[2] * b[0] + c[2] * d[0], a[2] * b[1] + c[2] * d[1], a[2] * b[2] + c[2] * d[2]),
    )


@jit
def quaternion_gradient(q, d, inverse_norm):
    """Return ∂L/∂q, unnormalised, from ∂L/∂R by rows."""
    w, x, y, z = q[0], q[1], q[2], q[3]
    g0 = 2 * (x * (d[2][1] - d[1][2]) + y * (d[0][2] - d[2][0]) + z * (d[1][0] - d[0][1]))
    g1 = y * (d[0][1] + d[1][0]) + z * (d[0][2] + d[2][0]) + w * (d[2][1] - d[1][2])
    g1 = 2 * (g1 - 2 * x * (d[1][1] + d[2][2]))
    g2 = x * (d[0][1] + d[1][0]) + z * (d[1][2] + d[2][1]) + w * (d[0][2] - d[2][0])
    g2 = 2 * (g2 - 2 * y * (d[0][0] + d[2][2]))
    g3 = x * (d[0][2] + d[2][0]) + y * (d[1][2] + d[2][1]) + w * (d[1][0] - d[0][1])
    g3 = 2 * (g3 - 2 * z * (d[0][0] + d[1][1]))
    along = g0 * w + g1 * x + g2 * y + g3 * z
    return (
        (g0 - w * along) * inverse_norm,
        (g1 - x * along) * inverse_norm,
        (g2 - y * along) * inverse_norm,
        (g3 - z * along) * inverse_norm,
    )


@jit
def point_gradient(view, point, footprint, d_mean_x, d_mean_y, d_image_x, d_image_y):
    """Return ∂L/∂mean (world) from the gradients of the image's mean and of the rows of J W."""
    fx, fy = number(view, FX), number(view, FY)
    w_x, w_y, w_z = three(view, ROTATION), three(view, ROTATION + 3), three(view, ROTATION + 6)
    j_x, j_y = fx * point.inverse_z, fy * point.inverse_z
    # J's rows are j_x·(1, 0, -slope_x) and j_y·(0, 1, -slope_y).
    d_02, d_12 = dot3(d_image_x, w_z), dot3(d_image_y, w_z)
    d_j_x = dot3(d_image_x, w_x) - d_02 * footprint.slope_x
    d_j_y = dot3(d_image_y, w_y) - d_12 * footprint.slope_y
    d_ratio_x = fx * d_mean_x - tl.where(footprint.inside_x, d_02 * j_x, 0.0)
    d_ratio_y = fy * d_mean_y - tl.where(footprint.inside_y, d_12 * j_y, 0.0)
    d_x, d_y = d_ratio_x * point.inverse_z, d_ratio_y * point.inverse_z
    d_inverse = fx * d_j_x + fy * d_j_y + d_ratio_x * point.camera[0] + d_ratio_y * point.camera[1]
    d_z = -(d_inverse * point.inverse_z * point.inverse_z)
    return (
        d_x * w_x[0] + d_y * w_y[0] + d_z * w_z[0],
        d_x * w_x[1] + d_y * w_y[1] + d_z * w_z[1],
        d_x * w_x[2] + d_y * w_y[2] + d_z * w_z[2],
    )


@jit
def color_gradient(
    splat,
    rest,
    d_dc,
    d_rest,
    row,
    inside,
    drawn,
    offset,
    g,
    K: tl.constexpr,
    BANDS: tl.constexpr,
    OVERWRITE: tl.constexpr,
):
    """Write the gradients of the harmonics, and return what a mean's colour adds to its gradient."""
    direction, inverse = unit_direction(offset)
    x, y, z = direction[0], direction[1], direction[2]
    basis = sh_basis(x, y, z)
    by_x, by_y, by_z = sh_basis_by_x(x, y, z), sh_basis_by_y(x, y, z), sh_basis_by_z(x, y, z)
    d_x, d_y, d_z = x * 0, x * 0, x * 0
    wide = row.to(tl.int64)
    for channel in tl.static_range(3):
        d = g[channel] * passes_of(splat, drawn, channel)
        add_or_write(d_dc + wide * 3 + channel, d * C0, inside, drawn, OVERWRITE)
        for band in tl.static_range(BANDS):
            at = (wide * K + band) * 3 + channel
            along = d * tl.load(rest + at, drawn, 0.0)
            d_x += along * by_x[band]
            d_y += along * by_y[band]
            d_z += along * by_z[band]
            add_or_write(d_rest + at, d * basis[band], inside, drawn, OVERWRITE)
    if OVERWRITE:
        for band in tl.static_range(BANDS, K):
            for channel in tl.static_range(3):
                tl.store(d_rest + (wide * K + band) * 3 + channel, x * 0, inside)
    radial = d_x * x + d_y * y + d_z * z
    return (d_x - x * radial) * inverse, (d_y - y * radial) * inverse, (d_z - z * radial) * inverse


@jit
def mean_gradient(a, g):
    """Return ∂L/∂mean, in the image, from A and a splat's sums."""
    return 2 * a[0] * g[1], 2 * (a[1] * g[1] + a[2] * g[2])


@jit
def covariance_gradient(a, g):
    """Return ∂L/∂Σ, xx, xy and yy of a symmetric matrix, from A and a splat's sums."""
    t = a[1] * g[3] + a[2] * g[4]
    unit = 1.0 / HALF_LOG2_E
    s_xx, s_xy = a[0] * a[0] * g[3] * unit, a[0] * t * unit
    return s_xx, s_xy, (a[1] * t + a[2] * (a[1] * g[4] + a[2] * g[5])) * unit


@jit
def geometry_gradient(view, point, footprint, a, g, ANTIALIASED: tl.constexpr):
    """Return ∂L/∂mean (world), ∂L/∂log_scales and ∂L/∂quats from a splat's first six sums."""
    d_mean_x, d_mean_y = mean_gradient(a, g)
    s_xx, s_xy, s_yy = covariance_gradient(a, g)
    d_a, d_b = rows_gradient(view, footprint, s_xx, s_xy, s_yy, g[0], ANTIALIASED)
    scale, rotation = footprint.scale, footprint.rotation
    d_log_scale = (
        d_a[0] * footprint.row_x[0] + d_b[0] * footprint.row_y[0],
        d_a[1] * footprint.row_x[1] + d_b[1] * footprint.row_y[1],
        d_a[2] * footprint.row_x[2] + d_b[2] * footprint.row_y[2],
    )
    turned_a = (d_a[0] * scale[0], d_a[1] * scale[1], d_a[2] * scale[2])
    turned_b = (d_b[0] * scale[0], d_b[1] * scale[1], d_b[2] * scale[2])
    d_image_x = (dot3(turned_a, rotation[0]), dot3(turned_a, rotation[1]), dot3(turned_a, rotation[2]))
    d_image_y = (dot3(turned_b, rotation[0]), dot3(turned_b, rotation[1]), dot3(turned_b, rotation[2]))
    d_rotation = outer_sum(footprint.image_x, turned_a, footprint.image_y, turned_b)
    d_quat = quaternion_gradient(footprint.quat, d_rotation, footprint.inverse_norm)
    d_mean = point_gradient(view, point, footprint, d_mean_x, d_mean_y, d_image_x, d_image_y)
    return d_mean, d_log_scale, d_quat


@jit
def project_backward_kernel(
    view,
    means,
    log_scales,
    quats,
    logits,
    dc,
    rest,
    splats,
    row_count,
    sums,
    d_means,
    d_log_scales,
    d_quats,
    d_logits,
    d_dc,
    d_rest,
    weight,
    N,
    K: tl.constexpr,
    BANDS: tl.constexpr,
    SUMS: tl.constexpr,
    ANTIALIASED: tl.constexpr,
    OVERWRITE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add or write the gradients of ``BLOCK`` Gaussians."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < N
    drawn = tl.load(row_count + row, inside, 0) > 0
    point = project_point(view, load_three(means, row, drawn))
    footprint = project_footprint(view, point, load_three(log_scales, row, drawn), load_four(quats, row, drawn))
    at = sums + row.to(tl.int64) * SUMS
    w = tl.load(weight).to(tl.float32)
    g = (
        tl.load(at, drawn, 0.0) * w,
        tl.load(at + 1, drawn, 0.0) * w,
        tl.load(at + 2, drawn, 0.0) * w,
        tl.load(at + 3, drawn, 0.0) * w,
        tl.load(at + 4, drawn, 0.0) * w,
        tl.load(at + 5, drawn, 0.0) * w,
    )
    by_color = (tl.load(at + 6, drawn, 0.0) * w, tl.load(at + 7, drawn, 0.0) * w, tl.load(at + 8, drawn, 0.0) * w)
    d_mean, d_log_scale, d_quat = geometry_gradient(view, point, footprint, whitening(footprint), g, ANTIALIASED)
    splat = splats + row.to(tl.int64) * SPLAT
    by_direction = color_gradient(
        splat, rest, d_dc, d_rest, row, inside, drawn, point.offset, by_color, K, BANDS, OVERWRITE
    )
    wide = row.to(tl.int64)
    for c in tl.static_range(3):
        add_or_write(d_means + wide * 3 + c, d_mean[c] + by_direction[c], inside, drawn, OVERWRITE)
        add_or_write(d_log_scales + wide * 3 + c, d_log_scale[c], inside, drawn, OVERWRITE)
    for c in tl.static_range(4):
        add_or_write(d_quats + wide * 4 + c, d_quat[c], inside, drawn, OVERWRITE)
    # log2 σ(x) has the derivative (1 - σ)/ln 2, and 1 - σ(x) = 1/(1 + eˣ) keeps its digits near 0.
    transparency = 1.0 / (1.0 + tl.exp(tl.load(logits + row, drawn, 0.0)))
    add_or_write(d_logits + row, g[0] * transparency * LOG2_E, inside, drawn, OVERWRITE)


def project_backward(
    view: Tensor,
    cloud: CloudPointers,
    projected: SplatBuffers,
    sums: Tensor,
    gradient: Sequence[Tensor],
    weight: Tensor,
    *,
    antialiased: bool,
    overwrite: bool,
) -> None:
    """Take the splats' gradients back to the cloud's tensors.

    Args:
        view: Of :func:`~splatopt.kernels.view.pack_view`.
        cloud: N Gaussians.
        projected: Their splats.
        sums: (N, 9) or more, of :func:`~splatopt.kernels.blend_backward.blend_backward`.
        gradient: Six tensors in the cloud's shapes, added to.
        weight: Factor, one number on the device.
        antialiased: As projected.
        overwrite: Take ``gradient`` as empty, whatever it holds.
    """
    if cloud.count:
        project_backward_kernel[(triton.cdiv(cloud.count, ROWS),)](
            view,
            *cloud.tensors,
            projected.splats,
            projected.row_count,
            sums,
            *gradient,
            weight,
            cloud.count,
            K=cloud.coefficients,
            BANDS=cloud.bands,
            SUMS=sums.shape[1],
            ANTIALIASED=antialiased,
            OVERWRITE=overwrite,
            BLOCK=ROWS,
        )
