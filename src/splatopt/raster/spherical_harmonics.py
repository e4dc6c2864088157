"""Real spherical harmonics as 3DGS orders and signs them; the constants that native code is handed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SH_C0 = 0.28209479177387814
"""Y of degree 0: 1 / (2·√π)."""

SH_C1 = 0.4886025119029199
"""Factor of degree 1: √3 / (2·√π); the basis is -C1·y, C1·z, -C1·x."""

SH_C2 = (1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792, 0.5462742152960396)
"""Factors of degree 2, on xy, yz, 2z²-x²-y², xz, x²-y²."""

SH_C3 = (
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    -0.4570457994644658,
    1.445305721320277,
    -0.5900435899266435,
)
"""Factors of degree 3, on y(3x²-y²), xyz, y(4z²-x²-y²), z(2z²-3x²-3y²), x(4z²-x²-y²), z(x²-y²), x(x²-3y²)."""


def spherical_harmonics_basis(directions: Float[Tensor, "n 3"], degree: int) -> Float[Tensor, "n k"]:
    """Evaluate the basis functions of the degrees 1 to ``degree``.

    Args:
        directions: Unit vectors from the camera to the Gaussian, (N, 3).
        degree: Highest degree, 0 to 3.

    Returns:
        (N, (degree+1)² - 1), in the order of ``sh_rest``; the constant ``SH_C0`` is left out.
    """
    x, y, z = directions.unbind(dim=1)
    columns: list[Tensor] = []
    if degree > 0:
        columns += [-SH_C1 * y, SH_C1 * z, -SH_C1 * x]
    xx, yy, zz = x * x, y * y, z * z
    if degree > 1:
        columns += [
            SH_C2[0] * x * y,
            SH_C2[1] * y * z,
            SH_C2[2] * (2 * zz - xx - yy),
            SH_C2[3] * x * z,
            SH_C2[4] * (xx - yy),
        ]
    if degree > 2:
        columns += [
            SH_C3[0] * y * (3 * xx - yy),
            SH_C3[1] * x * y * z,
            SH_C3[2] * y * (4 * zz - xx - yy),
            SH_C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            SH_C3[4] * x * (4 * zz - xx - yy),
            SH_C3[5] * z * (xx - yy),
            SH_C3[6] * x * (xx - 3 * yy),
        ]
    return torch.stack(columns, dim=1) if columns else directions.new_zeros(directions.shape[0], 0)
