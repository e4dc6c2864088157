"""Covariances of Gaussians and their inverses, from quaternions and scales."""

from __future__ import annotations

import torch
from torch import Tensor

from splatopt.core.schema import rotation_matrices

_UPPER = ((0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2))


def quat_scale_to_covar_preci(
    quats: Tensor, scales: Tensor, compute_covar: bool = True, compute_preci: bool = True, triu: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """Return R diag(s²) Rᵀ and R diag(s⁻²) Rᵀ, as gsplat's function of this name does.

    Args:
        quats: Rotations wxyz of any length, (..., 4).
        scales: s, (..., 3).
        compute_covar: Else None stands for the covariances.
        compute_preci: Else None stands for their inverses.
        triu: Return the entries xx, xy, xz, yy, yz, zz, (..., 6), and not (..., 3, 3).
    """
    rotations = rotation_matrices(quats.reshape(-1, 4)).reshape(*quats.shape[:-1], 3, 3)

    def squared(axes: Tensor) -> Tensor:
        matrix = axes @ axes.transpose(-1, -2)
        return matrix[..., _UPPER[0], _UPPER[1]] if triu else matrix

    covariances = squared(rotations * scales[..., None, :]) if compute_covar else None
    precisions = squared(rotations / scales[..., None, :]) if compute_preci else None
    return covariances, precisions


def full_covariances(covariances: Tensor) -> Tensor:
    """Return (N, 3, 3) of the entries xx, xy, xz, yy, yz, zz, (N, 6)."""
    rows = torch.tensor([0, 1, 2, 1, 3, 4, 2, 4, 5], device=covariances.device)
    return covariances.index_select(1, rows).reshape(-1, 3, 3)
