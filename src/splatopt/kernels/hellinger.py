"""Trust radii by the squared Hellinger distance, on the GPU; the formulas are those of ``optim/hellinger.py``."""

from __future__ import annotations

from typing import NamedTuple

import triton.language as tl

from splatopt.core.constants import MAX_LOG_RATIO, MAX_LOG_SCALE, SH_C0
from splatopt.kernels.jit import jit

TINY: tl.constexpr = tl.constexpr(1.17549435e-38)
"""The smallest normal float32."""

Y0: tl.constexpr = tl.constexpr(SH_C0)
"""The constant spherical harmonic."""

LOG_SCALE_BOUND: tl.constexpr = tl.constexpr(MAX_LOG_SCALE)
LOG_RATIO_BOUND: tl.constexpr = tl.constexpr(MAX_LOG_RATIO)


class TrustBounds(NamedTuple):
    """The trust region of one step; max_mean in world units.

    ``place``, ``shape`` and ``look`` are factors on the radii of means, of log-scales and quaternions, and of opacities
    and colours; ``conditional_variance`` says which variance bounds a mean.
    """

    epsilon: float
    opacity_floor: float
    max_relative_distance: float
    max_mean: float
    max_log_scale: float
    max_quat: float
    max_logit: float
    max_color: float
    color_floor: float
    higher_bands: float
    place: float
    shape: float
    look: float
    conditional_variance: bool


class Radii(NamedTuple):
    """Radii of some Gaussians' entries, and the lengths of their quaternions."""

    mean: tuple
    log_scale: tl.tensor
    quat: tuple
    logit: tl.tensor
    color: tuple
    quat_length: tl.tensor


@jit
def eightfold_log(r):
    """-8·ln(1 - r) for 0 ≤ r < 1; the series where the difference from 1 has lost r's digits."""
    series = r * (1 + r * (1 / 2 + r * (1 / 3 + r * (1 / 4 + r * (1 / 5)))))
    return 8 * tl.where(r < 0.02, series, -tl.log(tl.maximum(1 - r, 1e-30)))


@jit
def squared_sinh(x):
    """sinh²(x), |x| ≤ 10; the series where eˣ - e⁻ˣ has lost x's digits."""
    squared = x * x
    series = x * (1 + squared * (1 / 6 + squared * (1 / 120)))
    sinh = tl.where(squared < 0.0625, series, 0.5 * (tl.exp(x) - tl.exp(-x)))
    return sinh * sinh


@jit
def length_of(q):
    """The length of four numbers."""
    return tl.sqrt_rn(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])


@jit
def hellinger_radii(bounds, cloud, row, inside, CONDITIONAL: tl.constexpr):
    """The radii of the Gaussians in ``row``, from the values of a cloud."""
    logit = tl.load(cloud.logit_opacities + row, mask=inside, other=0.0)
    opacity = tl.maximum(1 / (1 + tl.exp(-logit)), bounds.opacity_floor)
    relative = tl.minimum(bounds.epsilon / opacity, bounds.max_relative_distance)
    eightfold = eightfold_log(relative)
    clear = tl.maximum(1 / (1 + tl.exp(logit)), TINY)
    color = ()
    for c in tl.static_range(3):
        value = tl.maximum(0.5 + Y0 * tl.load(cloud.sh_dc + 3 * row + c, mask=inside, other=0.0), bounds.color_floor)
        radius = tl.minimum(tl.sqrt(4 * value * relative), bounds.max_color) / Y0
        color = color + (bounds.look * radius,)

    scale, q = (), ()
    for c in tl.static_range(3):
        scale = scale + (tl.load(cloud.log_scales + 3 * row + c, mask=inside, other=0.0),)
    for c in tl.static_range(4):
        q = q + (tl.load(cloud.quats + 4 * row + c, mask=inside, other=0.0),)
    length = length_of(q)
    inverse = 1 / tl.maximum(length, TINY)
    w, x, y, z = q[0] * inverse, q[1] * inverse, q[2] * inverse, q[3] * inverse
    ww, xx, yy, zz = w * w, x * x, y * y, z * z

    # The second derivative of the distance along each entry, times the squared length; 0 for a sphere.
    stretch, variance = (), ()
    DOUBLE: tl.constexpr = -2 if CONDITIONAL else 2
    for c in tl.static_range(3):
        ratio = scale[(c + 1) % 3] - scale[(c + 2) % 3]
        ratio = tl.minimum(tl.maximum(ratio, -LOG_RATIO_BOUND), LOG_RATIO_BOUND)
        stretch = stretch + (32 * squared_sinh(ratio),)
        doubled = DOUBLE * tl.minimum(tl.maximum(scale[c], -LOG_SCALE_BOUND), LOG_SCALE_BOUND)
        variance = variance + (tl.exp(doubled),)
    rotations = ((xx, yy, zz), (ww, zz, yy), (zz, ww, xx), (yy, xx, ww))
    quat = ()
    for c in tl.static_range(4):
        curvature = rotations[c][0] * stretch[0] + rotations[c][1] * stretch[1] + rotations[c][2] * stretch[2]
        reach = tl.sqrt(eightfold / tl.maximum(curvature, 1e-30))
        quat = quat + (bounds.shape * tl.minimum(reach, bounds.max_quat) * length,)

    rotation = (
        (1 - 2 * (yy + zz), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (xx + zz), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (xx + yy)),
    )
    mean = ()
    for c in tl.static_range(3):
        total = rotation[c][0] * rotation[c][0] * variance[0]
        total += rotation[c][1] * rotation[c][1] * variance[1]
        total += rotation[c][2] * rotation[c][2] * variance[2]
        if CONDITIONAL:
            total = 1 / total
        mean = mean + (bounds.place * tl.minimum(tl.sqrt(total * eightfold), bounds.max_mean),)
    return Radii(
        mean,
        bounds.shape * tl.minimum(tl.sqrt(2 * relative), bounds.max_log_scale),
        quat,
        bounds.look * tl.minimum(2 * tl.sqrt(relative) / clear, bounds.max_logit),
        color,
        length,
    )
