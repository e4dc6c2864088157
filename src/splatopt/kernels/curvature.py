"""From a splat's curvature sums to the Gauss-Newton diagonal and the 14x14 block of its Gaussian.

A program takes ``BLOCK`` Gaussians by 16 columns: the eleven geometric parameters and the three base colours, the last
two empty. One Jacobian product through the projection along the unit directions gives a (six numbers) and b (three) of
all columns at once, and

    (JᵀJ)_ij = aᵢᵀ Φ aⱼ + Σ_c (b_ci X_c·aⱼ + b_cj X_c·aᵢ + b_ci b_cj Y_c).
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from splatopt.core.schema import BLOCK_SIZE, PACKED_BLOCK
from splatopt.kernels.geometry import load_four, load_three, project_footprint, project_point, unit_direction, whitening
from splatopt.kernels.jit import jit
from splatopt.kernels.projection import SPLAT, CloudPointers, SplatBuffers
from splatopt.kernels.projection_backward import add_or_write, passes_of
from splatopt.kernels.spherical_harmonics import C0, sh_basis
from splatopt.kernels.tangent import color_by_mean, geometry_jvp

SIZE = tl.constexpr(BLOCK_SIZE)
PACKED = tl.constexpr(PACKED_BLOCK)
"""Rows of a block, and numbers of its lower triangle."""

COLUMNS = tl.constexpr(16)
"""14 parameters, and two that are empty."""

DIAGONAL_ROWS = 16
"""Gaussians a program of the diagonal: two columns a thread of four warps."""

BLOCK_ROWS = 2
"""Gaussians a program of the blocks: a block has 256 entries with its empty ones, so four a thread; at 8 rows the
compiler spills 3 kB a thread for sm_90, at 4 rows 0.3 kB for sm_75."""


@jit
def one_hot(column, at: tl.constexpr):
    """Return 1.0 where the column is ``at``, (1, 16)."""
    return tl.where(column == at, 1.0, 0.0)


@jit
def columns_of(
    view,
    means,
    log_scales,
    quats,
    logits,
    rest,
    splats,
    row,
    drawn,
    column,
    K: tl.constexpr,
    BANDS: tl.constexpr,
    ANTIALIASED: tl.constexpr,
):
    """Return a (6) and b (3) of all parameters, (B, 16) each, and directions of sight; rows and masks are (B, 1)."""
    point = project_point(view, load_three(means, row, drawn))
    footprint = project_footprint(view, point, load_three(log_scales, row, drawn), load_four(quats, row, drawn))
    transparency = 1.0 / (1.0 + tl.exp(tl.load(logits + row, drawn, 0.0)))
    d_mean = (one_hot(column, 0), one_hot(column, 1), one_hot(column, 2))
    d_log_scale = (one_hot(column, 3), one_hot(column, 4), one_hot(column, 5))
    d_quat = (one_hot(column, 6), one_hot(column, 7), one_hot(column, 8), one_hot(column, 9))
    jvp_value = geometry_jvp(
        view,
        point,
        footprint,
        whitening(footprint),
        transparency,
        d_mean,
        d_log_scale,
        d_quat,
        one_hot(column, 10),
        ANTIALIASED,
    )
    a = (jvp_value.constant, jvp_value.t_u, jvp_value.t_v, jvp_value.n_uu, 2 * jvp_value.n_uv, jvp_value.n_vv)
    direction, inverse = unit_direction(point.offset)
    splat = splats + row.to(tl.int64) * SPLAT
    red = color_by_mean(rest, row, drawn, direction, inverse, 0, K, BANDS)
    green = color_by_mean(rest, row, drawn, direction, inverse, 1, K, BANDS)
    blue = color_by_mean(rest, row, drawn, direction, inverse, 2, K, BANDS)
    b = (
        color_column(red, d_mean, one_hot(column, 11), passes_of(splat, drawn, 0)),
        color_column(green, d_mean, one_hot(column, 12), passes_of(splat, drawn, 1)),
        color_column(blue, d_mean, one_hot(column, 13), passes_of(splat, drawn, 2)),
    )
    return a, b, direction


@jit
def color_column(by_mean, d_mean, d_dc, passes):
    """Return how one channel of the colour changes along every parameter."""
    return (by_mean[0] * d_mean[0] + by_mean[1] * d_mean[1] + by_mean[2] * d_mean[2] + d_dc * C0) * passes


@jit
def moment_row(
    m, a, i0: tl.constexpr, i1: tl.constexpr, i2: tl.constexpr, i3: tl.constexpr, i4: tl.constexpr, i5: tl.constexpr
):
    """Return one row of Φ times a."""
    return m[i0] * a[0] + m[i1] * a[1] + m[i2] * a[2] + m[i3] * a[3] + m[i4] * a[4] + m[i5] * a[5]


@jit
def apply_moments(sums, row, drawn, a, weight, CROSS: tl.constexpr):
    """Return Φ a (six numbers), X·a (three) and Y (three)."""
    FIELDS: tl.constexpr = 36 if CROSS else 18
    at = sums + row.to(tl.int64) * FIELDS
    m = load_moments(at, drawn, weight)
    phi_a = (
        moment_row(m, a, 0, 1, 2, 3, 4, 5),
        moment_row(m, a, 1, 3, 4, 6, 7, 8),
        moment_row(m, a, 2, 4, 5, 7, 8, 9),
        moment_row(m, a, 3, 6, 7, 10, 11, 12),
        moment_row(m, a, 4, 7, 8, 11, 12, 13),
        moment_row(m, a, 5, 8, 9, 12, 13, 14),
    )
    y = (
        tl.load(at + 15, drawn, 0.0) * weight,
        tl.load(at + 16, drawn, 0.0) * weight,
        tl.load(at + 17, drawn, 0.0) * weight,
    )
    zero = a[0] * 0
    x_a = (zero, zero, zero)
    if CROSS:
        x_a = (
            cross_of(at + 18, drawn, a, weight),
            cross_of(at + 24, drawn, a, weight),
            cross_of(at + 30, drawn, a, weight),
        )
    return phi_a, x_a, y


@jit
def load_moments(at, drawn, weight):
    """Return the fifteen moments."""
    return (
        tl.load(at, drawn, 0.0) * weight,
        tl.load(at + 1, drawn, 0.0) * weight,
        tl.load(at + 2, drawn, 0.0) * weight,
        tl.load(at + 3, drawn, 0.0) * weight,
        tl.load(at + 4, drawn, 0.0) * weight,
        tl.load(at + 5, drawn, 0.0) * weight,
        tl.load(at + 6, drawn, 0.0) * weight,
        tl.load(at + 7, drawn, 0.0) * weight,
        tl.load(at + 8, drawn, 0.0) * weight,
        tl.load(at + 9, drawn, 0.0) * weight,
        tl.load(at + 10, drawn, 0.0) * weight,
        tl.load(at + 11, drawn, 0.0) * weight,
        tl.load(at + 12, drawn, 0.0) * weight,
        tl.load(at + 13, drawn, 0.0) * weight,
        tl.load(at + 14, drawn, 0.0) * weight,
    )


@jit
def cross_of(at, drawn, a, weight):
    """Return X_c·a of one channel."""
    total = a[0] * 0
    for field in tl.static_range(6):
        total += tl.load(at + field, drawn, 0.0) * weight * a[field]
    return total


@jit
def write_rest(
    rest_out, row, inside, drawn, direction, splat, y, K: tl.constexpr, BANDS: tl.constexpr, OVERWRITE: tl.constexpr
):
    """Add or write the diagonal of the higher harmonics: Y_band² · Y_c."""
    basis = sh_basis(direction[0], direction[1], direction[2])
    wide = row.to(tl.int64)
    for channel in tl.static_range(3):
        passed = y[channel] * passes_of(splat, drawn, channel)
        for band in tl.static_range(BANDS):
            at = rest_out + (wide * K + band) * 3 + channel
            add_or_write(at, basis[band] * basis[band] * passed, inside, drawn, OVERWRITE)
        if OVERWRITE:
            for band in tl.static_range(BANDS, K):
                tl.store(rest_out + (wide * K + band) * 3 + channel, passed * 0, inside)


@jit
def diagonal_kernel(
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
    o_means,
    o_log_scales,
    o_quats,
    o_logits,
    o_dc,
    o_rest,
    weight,
    N,
    CROSS: tl.constexpr,
    K: tl.constexpr,
    BANDS: tl.constexpr,
    ANTIALIASED: tl.constexpr,
    OVERWRITE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add or write the diagonals of ``BLOCK`` Gaussians."""
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = row < N
    drawn = tl.load(row_count + row, inside, 0) > 0
    w = tl.load(weight).to(tl.float32)
    a, b, direction = columns_of(
        view, means, log_scales, quats, logits, rest, splats, row, drawn, column, K, BANDS, ANTIALIASED
    )
    phi_a, x_a, y = apply_moments(sums, row, drawn, a, w, CROSS)
    value = a[0] * phi_a[0] + a[1] * phi_a[1] + a[2] * phi_a[2] + a[3] * phi_a[3] + a[4] * phi_a[4] + a[5] * phi_a[5]
    for channel in tl.static_range(3):
        value += b[channel] * (2 * x_a[channel] + b[channel] * y[channel])
    value = tl.maximum(value, 0.0)
    wide = row.to(tl.int64)
    to = o_means + wide * 3 + column
    add_or_write(to, value, inside & (column < 3), drawn & (column < 3), OVERWRITE)
    here = (column >= 3) & (column < 6)
    add_or_write(o_log_scales + wide * 3 + (column - 3), value, inside & here, drawn & here, OVERWRITE)
    here = (column >= 6) & (column < 10)
    add_or_write(o_quats + wide * 4 + (column - 6), value, inside & here, drawn & here, OVERWRITE)
    here = column == 10
    add_or_write(o_logits + wide + (column - 10), value, inside & here, drawn & here, OVERWRITE)
    here = (column >= 11) & (column < 14)
    add_or_write(o_dc + wide * 3 + (column - 11), value, inside & here, drawn & here, OVERWRITE)
    write_rest(o_rest, row, inside, drawn, direction, splats + wide * SPLAT, y, K, BANDS, OVERWRITE)


@jit
def blocks_kernel(
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
    blocks,
    o_rest,
    weight,
    N,
    K: tl.constexpr,
    BANDS: tl.constexpr,
    ANTIALIASED: tl.constexpr,
    OVERWRITE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add or write the blocks of ``BLOCK`` Gaussians, lower triangles by row."""
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = row < N
    drawn = tl.load(row_count + row, inside, 0) > 0
    w = tl.load(weight).to(tl.float32)
    a, b, direction = columns_of(
        view, means, log_scales, quats, logits, rest, splats, row, drawn, column, K, BANDS, ANTIALIASED
    )
    phi_a, x_a, y = apply_moments(sums, row, drawn, a, w, True)
    value = tl.zeros([BLOCK, COLUMNS, COLUMNS], tl.float32)
    for field in tl.static_range(6):
        value += a[field][:, :, None] * phi_a[field][:, None, :]
    for channel in tl.static_range(3):
        value += b[channel][:, :, None] * x_a[channel][:, None, :] + x_a[channel][:, :, None] * b[channel][:, None, :]
        value += b[channel][:, :, None] * (b[channel] * y[channel])[:, None, :]
    i, j = tl.arange(0, COLUMNS)[None, :, None], tl.arange(0, COLUMNS)[None, None, :]
    lower = (j <= i) & (i < SIZE)
    at = blocks + row.to(tl.int64)[:, :, None] * PACKED + (i * (i + 1) // 2 + j)
    add_or_write(at, value, inside[:, :, None] & lower, drawn[:, :, None] & lower, OVERWRITE)
    splat = splats + row.to(tl.int64) * SPLAT
    write_rest(o_rest, row, inside, drawn, direction, splat, y, K, BANDS, OVERWRITE)


def project_diagonal(
    view: Tensor,
    cloud: CloudPointers,
    projected: SplatBuffers,
    sums: Tensor,
    diagonal: Sequence[Tensor],
    weight: Tensor,
    *,
    antialiased: bool,
    overwrite: bool,
) -> None:
    """Turn curvature sums into the diagonal of JᵀJ; exactly 0 for what is not drawn.

    Args:
        view: Of :func:`~splatopt.kernels.view.pack_view`.
        cloud: N Gaussians.
        projected: Their splats.
        sums: (N, 18) or (N, 36), of :func:`~splatopt.kernels.blend_moments.blend_moments`; 36 above degree 0.
        diagonal: Six tensors in the cloud's shapes, added to.
        weight: Factor, one number on the device.
        antialiased: As projected.
        overwrite: Take ``diagonal`` as empty, whatever it holds.
    """
    if cloud.count:
        diagonal_kernel[(triton.cdiv(cloud.count, DIAGONAL_ROWS),)](
            view,
            *cloud.tensors,
            projected.splats,
            projected.row_count,
            sums,
            *diagonal,
            weight,
            cloud.count,
            CROSS=sums.shape[1] == 36,
            K=cloud.coefficients,
            BANDS=cloud.bands,
            ANTIALIASED=antialiased,
            OVERWRITE=overwrite,
            BLOCK=DIAGONAL_ROWS,
        )


def project_blocks(
    view: Tensor,
    cloud: CloudPointers,
    projected: SplatBuffers,
    sums: Tensor,
    into: tuple[Tensor, Tensor],
    weight: Tensor,
    *,
    antialiased: bool,
    overwrite: bool,
) -> None:
    """Turn curvature sums into the block of JᵀJ of each Gaussian; exactly 0 for what is not drawn.

    Args:
        view: Of :func:`~splatopt.kernels.view.pack_view`.
        cloud: N Gaussians.
        projected: Their splats.
        sums: (N, 36), of :func:`~splatopt.kernels.blend_moments.blend_moments`.
        into: Lower triangles by row, (N, 105), and the diagonal for ``sh_rest``, (N, K, 3); added to.
        weight: Factor, one number on the device.
        antialiased: As projected.
        overwrite: Take both as empty, whatever they hold.
    """
    if cloud.count:
        blocks_kernel[(triton.cdiv(cloud.count, BLOCK_ROWS),)](
            view,
            *cloud.tensors,
            projected.splats,
            projected.row_count,
            sums,
            *into,
            weight,
            cloud.count,
            K=cloud.coefficients,
            BANDS=cloud.bands,
            ANTIALIASED=antialiased,
            OVERWRITE=overwrite,
            BLOCK=BLOCK_ROWS,
        )
