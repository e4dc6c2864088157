"""Real spherical harmonics as 3DGS orders and signs them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.constants import SH_C1, SH_C2, SH_C3


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
