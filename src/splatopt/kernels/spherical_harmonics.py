"""Real spherical harmonics up to degree 3, as 3DGS orders and signs them, and their derivatives, in Triton."""

from __future__ import annotations

import triton.language as tl

from splatopt.core.constants import SH_C0, SH_C1, SH_C2, SH_C3
from splatopt.kernels.jit import jit

C0 = tl.constexpr(SH_C0)
C1 = tl.constexpr(SH_C1)
C20 = tl.constexpr(SH_C2[0])
"""On xy, and negative on yz and xz."""
C22 = tl.constexpr(SH_C2[2])
C24 = tl.constexpr(SH_C2[4])
C30 = tl.constexpr(SH_C3[0])
"""On y(3x²-y²), and on x(x²-3y²)."""
C31 = tl.constexpr(SH_C3[1])
C32 = tl.constexpr(SH_C3[2])
"""On y(4z²-x²-y²), and on x(4z²-x²-y²)."""
C33 = tl.constexpr(SH_C3[3])
C35 = tl.constexpr(SH_C3[5])


@jit
def sh_basis(x, y, z):
    """Return the 15 basis functions above degree 0 at unit directions; what is not used costs nothing."""
    xx, yy, zz = x * x, y * y, z * z
    return (
        y * -C1,
        z * C1,
        x * -C1,
        x * y * C20,
        y * z * -C20,
        (2 * zz - xx - yy) * C22,
        x * z * -C20,
        (xx - yy) * C24,
        y * (3 * xx - yy) * C30,
        x * y * z * C31,
        y * (4 * zz - xx - yy) * C32,
        z * (2 * zz - 3 * xx - 3 * yy) * C33,
        x * (4 * zz - xx - yy) * C32,
        z * (xx - yy) * C35,
        x * (xx - 3 * yy) * C30,
    )


@jit
def sh_basis_by_x(x, y, z):
    """Return ∂/∂x of :func:`sh_basis`, the three coordinates taken as independent."""
    xx, yy, zz = x * x, y * y, z * z
    zero = x * 0
    return (
        zero,
        zero,
        zero - C1,
        y * C20,
        zero,
        x * (-2 * C22),
        z * -C20,
        x * (2 * C24),
        x * y * (C30 * 6),
        y * z * C31,
        x * y * (-2 * C32),
        x * z * (-6 * C33),
        (4 * zz - 3 * xx - yy) * C32,
        x * z * (2 * C35),
        (xx - yy) * (C30 * 3),
    )


@jit
def sh_basis_by_y(x, y, z):
    """Return ∂/∂y of :func:`sh_basis`."""
    xx, yy, zz = x * x, y * y, z * z
    zero = x * 0
    return (
        zero - C1,
        zero,
        zero,
        x * C20,
        z * -C20,
        y * (-2 * C22),
        zero,
        y * (-2 * C24),
        (xx - yy) * (C30 * 3),
        x * z * C31,
        (4 * zz - xx - 3 * yy) * C32,
        y * z * (-6 * C33),
        x * y * (-2 * C32),
        y * z * (-2 * C35),
        x * y * (-6 * C30),
    )


@jit
def sh_basis_by_z(x, y, z):
    """Return ∂/∂z of :func:`sh_basis`."""
    xx, yy, zz = x * x, y * y, z * z
    zero = x * 0
    return (
        zero,
        zero + C1,
        zero,
        zero,
        y * -C20,
        z * (4 * C22),
        x * -C20,
        zero,
        zero,
        x * y * C31,
        y * z * (8 * C32),
        (6 * zz - 3 * xx - 3 * yy) * C33,
        x * z * (8 * C32),
        (xx - yy) * C35,
        zero,
    )
