"""The schema of 3D Gaussians: names and shapes of their tensors, the layout of a block, rotations, harmonics.

A cloud of N Gaussians is six tensors, in this order:

    means            (N, 3)     centres, world units
    log_scales       (N, 3)     logarithms of the standard deviations along the own axes
    quats            (N, 4)     rotations wxyz, of any length
    logit_opacities  (N,)       opacities before the sigmoid
    sh_dc            (N, 3)     harmonics of degree 0, per colour channel
    sh_rest          (N, K, 3)  harmonics of the degrees above, K = (degree+1)² - 1

A Gaussian's own block of JᵀJ is 14 x 14: all tensors but ``sh_rest``, side by side in this order.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor


class GaussianTensors(NamedTuple):
    """Six tensors in the shapes of a cloud's: values, a gradient, a state."""

    means: Tensor
    log_scales: Tensor
    quats: Tensor
    logit_opacities: Tensor
    sh_dc: Tensor
    sh_rest: Tensor

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> GaussianTensors:
        """Return the tensors of these names, detached."""
        return cls(**{name: tensors[name].detach() for name in cls._fields})


GAUSSIAN_TENSORS = GaussianTensors._fields
"""The names of a cloud's tensors, in their order. Parameters of exactly these names are a cloud's."""

BLOCK_TENSORS = GAUSSIAN_TENSORS[:-1]
"""The tensors whose entries, in this order, make up a Gaussian's block."""

BLOCK_WIDTHS: Mapping[str, int] = MappingProxyType(dict(zip(BLOCK_TENSORS, (3, 3, 4, 1, 3), strict=True)))
"""Rows of a block by tensor: centre 3, log-scales 3, quaternion 4, opacity 1, base colour 3."""

BLOCK_SIZE = sum(BLOCK_WIDTHS.values())
"""Rows of a Gaussian's block."""

PACKED_BLOCK = BLOCK_SIZE * (BLOCK_SIZE + 1) // 2
"""Numbers of a block's lower triangle; entry (i, j ≤ i) stands at i·(i+1)/2 + j."""

PARAMETER_TYPES = (GAUSSIAN_TENSORS[:1], GAUSSIAN_TENSORS[1:3], GAUSSIAN_TENSORS[3:])
"""The tensors of a Gaussian's place, its shape and its look."""

MAX_SH_DEGREE = 3
"""Highest degree of the harmonics."""

SH_REST_COUNTS = tuple((degree + 1) ** 2 - 1 for degree in range(MAX_SH_DEGREE + 1))
"""Coefficients above degree 0 by the highest degree: 0, 3, 8, 15."""

Number = TypeVar("Number", float, Tensor)


def tensor_shapes(count: int, coefficients: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the six tensors of ``count`` Gaussians with K = ``coefficients`` above degree 0."""
    return {
        "means": (count, 3),
        "log_scales": (count, 3),
        "quats": (count, 4),
        "logit_opacities": (count,),
        "sh_dc": (count, 3),
        "sh_rest": (count, coefficients, 3),
    }


def sh_degree_of(sh_rest: Tensor) -> int:
    """Return the highest degree that ``sh_rest`` (N, K, 3) stores.

    Raises:
        ValueError: K is none of 0, 3, 8, 15.
    """
    if sh_rest.shape[1] not in SH_REST_COUNTS:
        raise ValueError(
            f"sh_rest must hold 0, 3, 8 or 15 coefficients per channel (degree 0 to 3), got {sh_rest.shape[1]}"
        )
    return SH_REST_COUNTS.index(sh_rest.shape[1])


def rotation_entries(w: Number, x: Number, y: Number, z: Number) -> tuple[Number, ...]:
    """Return the nine entries of R(q) by row, of a unit quaternion's four: floats, or tensors of any shape."""
    return (
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    )


def unit_rotation_matrices(quats: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3 3"]:
    """Return the rotations of unit quaternions wxyz; a Gaussian's axes are the columns."""
    return torch.stack(rotation_entries(*quats.unbind(dim=1)), dim=1).view(-1, 3, 3)


def rotation_matrices(quats: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3 3"]:
    """Return the rotations of quaternions wxyz of any length; a zero quaternion is the identity."""
    return unit_rotation_matrices(torch.nn.functional.normalize(quats, dim=1, eps=torch.finfo(quats.dtype).tiny))
