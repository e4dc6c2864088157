"""EWA projection of a vector of Gaussians, the part that all the kernels over Gaussians begin with.

With M = J W R(q) S (2x3; J the projection's Jacobian, W the camera's rotation, S the scales) the image covariance
is Σ = M Mᵀ + low_pass·I, its determinant |M₀×M₁|² + low_pass·(|M₀|²+|M₁|²) + low_pass², which subtracts nothing.
What blending reads is whitened: w = A (pixel - mean) with A = [[a11, a12], [0, a22]], and
α = 2^(log2 o - |w|²), so AᵀA = ½·log2(e)·Σ⁻¹. The functions take tensors of any one shape.
"""

from __future__ import annotations

from typing import NamedTuple

import triton.language as tl

from splatopt.kernels.jit import jit
from splatopt.kernels.view import (
    CENTER,
    CX,
    CY,
    FRUSTUM_MARGIN,
    FX,
    FY,
    HEIGHT,
    LOW_PASS,
    NEAR_PLANE,
    ROTATION,
    WIDTH,
)

HALF_LOG2_E = tl.constexpr(0.7213475204444817)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

Three = tuple[tl.tensor, tl.tensor, tl.tensor]
Four = tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]
Matrix = tuple[Three, Three, Three]


class Point(NamedTuple):
    """Gaussians' centres, before the camera and on the image.

    Attributes:
        offset: From the camera's centre, world axes.
        camera: In camera axes; z = 1 where it is behind the near plane.
        inverse_z: 1/z.
        ratio_x: x/z.
        ratio_y: y/z.
        mean_x: Pixels.
        mean_y: Pixels.
        front: Whether z is beyond the near plane.
    """

    offset: Three
    camera: Three
    inverse_z: tl.tensor
    ratio_x: tl.tensor
    ratio_y: tl.tensor
    mean_x: tl.tensor
    mean_y: tl.tensor
    front: tl.tensor


class Footprint(NamedTuple):
    """Gaussians' covariances on the image and all that they are made of.

    Attributes:
        inside_x: Where x/z is not clamped.
        inside_y: Where y/z is not clamped.
        slope_x: x/z, clamped.
        slope_y: y/z, clamped.
        image_x: First row of J W.
        image_y: Second row of J W.
        quat: Normalised quaternion.
        inverse_norm: 1/|q|.
        rotation: R(q), by rows.
        scale: exp(log_scales).
        row_x: First row of M.
        row_y: Second row of M.
        cross: M₀×M₁.
        cross_squared: Its squared length.
        xx: Σ_xx.
        xy: Σ_xy.
        yy: Σ_yy.
        determinant: Of Σ.
    """

    inside_x: tl.tensor
    inside_y: tl.tensor
    slope_x: tl.tensor
    slope_y: tl.tensor
    image_x: Three
    image_y: Three
    quat: Four
    inverse_norm: tl.tensor
    rotation: Matrix
    scale: Three
    row_x: Three
    row_y: Three
    cross: Three
    cross_squared: tl.tensor
    xx: tl.tensor
    xy: tl.tensor
    yy: tl.tensor
    determinant: tl.tensor


@jit
def number(view, at: tl.constexpr):
    """Return one number of the view as float32."""
    return tl.load(view + at).to(tl.float32)


@jit
def three(view, at: tl.constexpr):
    """Return three numbers of the view as float32."""
    return number(view, at), number(view, at + 1), number(view, at + 2)


@jit
def load_three(base, row, mask):
    """Return the columns of rows of three."""
    at = base + row.to(tl.int64) * 3
    return tl.load(at, mask, 0.0), tl.load(at + 1, mask, 0.0), tl.load(at + 2, mask, 0.0)


@jit
def load_four(base, row, mask):
    """Return the columns of rows of four."""
    at = base + row.to(tl.int64) * 4
    return (
        tl.load(at, mask, 0.0),
        tl.load(at + 1, mask, 0.0),
        tl.load(at + 2, mask, 0.0),
        tl.load(at + 3, mask, 0.0),
    )


@jit
def dot3(a, b):
    """Return the inner product of two triples."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@jit
def project_point(view, mean):
    """Project centres, in float64: a splat below a pixel's size must not carry the rounding of the pose."""
    dx = mean[0].to(tl.float64) - tl.load(view + CENTER)
    dy = mean[1].to(tl.float64) - tl.load(view + CENTER + 1)
    dz = mean[2].to(tl.float64) - tl.load(view + CENTER + 2)
    w = view + ROTATION
    x = tl.load(w) * dx + tl.load(w + 1) * dy + tl.load(w + 2) * dz
    y = tl.load(w + 3) * dx + tl.load(w + 4) * dy + tl.load(w + 5) * dz
    z = tl.load(w + 6) * dx + tl.load(w + 7) * dy + tl.load(w + 8) * dz
    front = z > tl.load(view + NEAR_PLANE)
    z = tl.where(front, z, 1.0)
    inverse = 1.0 / z
    ratio_x, ratio_y = x * inverse, y * inverse
    return Point(
        offset=(dx.to(tl.float32), dy.to(tl.float32), dz.to(tl.float32)),
        camera=(x.to(tl.float32), y.to(tl.float32), z.to(tl.float32)),
        inverse_z=inverse.to(tl.float32),
        ratio_x=ratio_x.to(tl.float32),
        ratio_y=ratio_y.to(tl.float32),
        mean_x=(tl.load(view + FX) * ratio_x + tl.load(view + CX)).to(tl.float32),
        mean_y=(tl.load(view + FY) * ratio_y + tl.load(view + CY)).to(tl.float32),
        front=front,
    )


@jit
def clamp_slope(view, ratio, focal: tl.constexpr, offset: tl.constexpr, size: tl.constexpr):
    """Return x/z clamped to the image and its margin, and where it was inside."""
    f, c, extent = number(view, focal), number(view, offset), number(view, size)
    margin = number(view, FRUSTUM_MARGIN) * 0.5 * extent / f
    low, high = -(c / f + margin), (extent - c) / f + margin
    return tl.minimum(tl.maximum(ratio, low), high), (ratio >= low) & (ratio <= high)


@jit
def rotation_of(q):
    """Return the rows of R(q) for unit quaternions wxyz."""
    w, x, y, z = q[0], q[1], q[2], q[3]
    return (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )


@jit
def rotated_row(row, rotation):
    """Return a row vector times a matrix that is given by its rows."""
    return (
        row[0] * rotation[0][0] + row[1] * rotation[1][0] + row[2] * rotation[2][0],
        row[0] * rotation[0][1] + row[1] * rotation[1][1] + row[2] * rotation[2][1],
        row[0] * rotation[0][2] + row[1] * rotation[1][2] + row[2] * rotation[2][2],
    )


@jit
def times(a, b):
    """Return the elementwise product of two triples."""
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]


@jit
def cross3(a, b):
    """Return the cross product of two triples."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@jit
def project_footprint(view, point, log_scale, quat):
    """Project covariances."""
    slope_x, inside_x = clamp_slope(view, point.ratio_x, FX, CX, WIDTH)
    slope_y, inside_y = clamp_slope(view, point.ratio_y, FY, CY, HEIGHT)
    j_x, j_y = number(view, FX) * point.inverse_z, number(view, FY) * point.inverse_z
    w_x, w_y, w_z = three(view, ROTATION), three(view, ROTATION + 3), three(view, ROTATION + 6)
    image_x = (
        j_x * (w_x[0] - slope_x * w_z[0]),
        j_x * (w_x[1] - slope_x * w_z[1]),
        j_x * (w_x[2] - slope_x * w_z[2]),
    )
    image_y = (
        j_y * (w_y[0] - slope_y * w_z[0]),
        j_y * (w_y[1] - slope_y * w_z[1]),
        j_y * (w_y[2] - slope_y * w_z[2]),
    )
    squared = quat[0] * quat[0] + quat[1] * quat[1] + quat[2] * quat[2] + quat[3] * quat[3]
    inverse_norm = 1.0 / tl.sqrt(tl.maximum(squared, 1e-30))
    unit = (quat[0] * inverse_norm, quat[1] * inverse_norm, quat[2] * inverse_norm, quat[3] * inverse_norm)
    rotation = rotation_of(unit)
    scale = (tl.exp(log_scale[0]), tl.exp(log_scale[1]), tl.exp(log_scale[2]))
    row_x, row_y = times(rotated_row(image_x, rotation), scale), times(rotated_row(image_y, rotation), scale)
    cross = cross3(row_x, row_y)
    cross_squared = dot3(cross, cross)
    xx, yy, low_pass = dot3(row_x, row_x), dot3(row_y, row_y), number(view, LOW_PASS)
    return Footprint(
        inside_x=inside_x,
        inside_y=inside_y,
        slope_x=slope_x,
        slope_y=slope_y,
        image_x=image_x,
        image_y=image_y,
        quat=unit,
        inverse_norm=inverse_norm,
        rotation=rotation,
        scale=scale,
        row_x=row_x,
        row_y=row_y,
        cross=cross,
        cross_squared=cross_squared,
        xx=xx + low_pass,
        xy=dot3(row_x, row_y),
        yy=yy + low_pass,
        determinant=cross_squared + low_pass * (xx + yy + low_pass),
    )


@jit
def whitening(footprint):
    """Return a11, a12, a22."""
    a11 = tl.sqrt(footprint.yy * HALF_LOG2_E / footprint.determinant)
    return a11, -(a11 * footprint.xy / footprint.yy), tl.sqrt(1.0 / footprint.yy * HALF_LOG2_E)


@jit
def unit_direction(offset):
    """Return the directions of sight, and 1/distance."""
    inverse = 1.0 / tl.sqrt(tl.maximum(dot3(offset, offset), 1e-30))
    return (offset[0] * inverse, offset[1] * inverse, offset[2] * inverse), inverse
