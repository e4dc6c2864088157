"""Ways to make two Gaussians of one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from splatopt.core.objective import Tensors
from splatopt.core.schema import rotation_matrices

CHILD_SCALE = 0.8
"""A child's scale along the axis that is split, as a share of its parent's. At 1/√2, Brush's, the pair parts faster and
changes the image three times as much."""

_OFFSET = math.sqrt(1 - CHILD_SCALE**2)


def sampled_split(tensors: Tensors, rows: Tensor, generator: torch.Generator, shrink: float = 1.6) -> dict[str, Tensor]:
    """Return the centres and log-scales of two children drawn from each of ``rows``.

    A child lies at μ + R(s ⊙ ξ) with ξ ~ N(0, I), and its scales are s / ``shrink``.

    Args:
        tensors: A cloud's.
        rows: Which rows are split, (K,), int64.
        generator: Draws ξ, on the CPU.
        shrink: What scales are divided by.

    Returns:
        ``means`` and ``log_scales``, (2K, 3): the first children of all rows, then the second ones. Source: 3DGS.
    """
    means, log_scales = tensors["means"][rows], tensors["log_scales"][rows]
    drawn = torch.randn(2, len(rows), 3, generator=generator, dtype=torch.float64).to(means)
    offsets = turned(tensors["quats"][rows], log_scales.exp() * drawn)
    return {
        "means": (means + offsets).reshape(-1, 3),
        "log_scales": (log_scales - math.log(shrink)).repeat(2, 1),
    }


def long_axis_split(tensors: Tensors, rows: Tensor) -> dict[str, Tensor]:
    """Return what becomes of two children that together look like each of ``rows``.

    Along the longest axis, of scale s, the children's scale is b·s with b = 0.8, and their centres lie at ±s√(1 - b²), so
    that the pair has the row's mean and covariance. Their opacity o' has 1-o' = (1-o)^(1/2b), so that where the row is
    faint the pair has its mass.

    Args:
        tensors: A cloud's.
        rows: Which rows are split, (K,), int64.

    Returns:
        ``means``, ``log_scales`` (2K, 3) and ``logit_opacities`` (2K,): the children at + of all rows, then those at -.
        Source: after Brush.
    """
    means, log_scales = tensors["means"][rows], tensors["log_scales"][rows]
    longest = log_scales.argmax(dim=1, keepdim=True)
    along = torch.zeros_like(log_scales).scatter_(1, longest, log_scales.gather(1, longest).exp() * _OFFSET)
    offsets = turned(tensors["quats"][rows], along)
    shrunken = log_scales.scatter_add(1, longest, torch.full_like(log_scales[:, :1], math.log(CHILD_SCALE)))
    logits = transmittance_power(tensors["logit_opacities"][rows], 1 / (2 * CHILD_SCALE))
    return {
        "means": torch.cat([means + offsets, means - offsets]),
        "log_scales": shrunken.repeat(2, 1),
        "logit_opacities": logits.repeat(2),
    }


def transmittance_power(logits: Tensor, power: float | Tensor) -> Tensor:
    """Return the logits of 1 - (1-o)^power, o the opacities of ``logits``: one of ``1/power`` equal layers.

    In t = -power · ln(1-o), a softplus of the logit, it is t + ln(1 - e^-t), which keeps its digits at both ends.
    """
    thickness = (torch.nn.functional.softplus(logits.double()) * power).clamp_min(torch.finfo(torch.float64).tiny)
    return (thickness + torch.log(-torch.expm1(-thickness))).to(logits.dtype)


def turned(quats: Tensor, vectors: Tensor, *, transposed: bool = False) -> Tensor:
    """Return R(q) v for each row, or R(q)ᵀ v, (..., K, 3); summed in one order whatever the number of threads."""
    rotations = rotation_matrices(quats)
    rotations = rotations.mT if transposed else rotations
    return sum((rotations[:, :, axis] * vectors[..., axis, None] for axis in range(3)), torch.zeros_like(vectors))
