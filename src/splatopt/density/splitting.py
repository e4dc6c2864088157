"""Ways to make two Gaussians of one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from splatopt.core.objective import Tensors
from splatopt.core.schema import rotation_matrices

_SHRINK = 1 / math.sqrt(2)
"""b, a child's scale along the axis that is split, and how far it lies from its parent's centre, as shares of s."""

_SHARED = _SHRINK / 2 * math.exp(-1)
"""K of two children: ∫ G₁G₂ over ∫ G, of the footprints of unit opacity."""


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

    Along the longest axis, of scale s, the children's centres lie at ±s/√2 and their scale is s/√2, so that the pair
    has the row's mean and covariance. Their opacity o' is that of a pair that covers what the row covered: with
    b = 1/√2,

        ∫ 1 - (1 - o'G₁)(1 - o'G₂) = o ∫ G   or   2b o' - K o'² = o,   K = b/(2e),   o' = o / (b + √(b² - K o)),

    over footprints along which that axis lies. At o = 0.9 the image changes by 16 % of what the row drew there, and by
    23 % with Brush's 1 - o' = (1-o)^b.

    Args:
        tensors: A cloud's.
        rows: Which rows are split, (K,), int64.

    Returns:
        ``means``, ``log_scales`` (2K, 3) and ``logit_opacities`` (2K,): the children at + of all rows, then those at -.
        Source: after Brush.
    """
    means, log_scales = tensors["means"][rows], tensors["log_scales"][rows]
    longest = log_scales.argmax(dim=1, keepdim=True)
    along = torch.zeros_like(log_scales).scatter_(1, longest, log_scales.gather(1, longest).exp() * _SHRINK)
    offsets = turned(tensors["quats"][rows], along)
    shrunken = log_scales.scatter_add(1, longest, torch.full_like(log_scales[:, :1], math.log(_SHRINK)))
    logits = _pair_logits(tensors["logit_opacities"][rows])
    return {
        "means": torch.cat([means + offsets, means - offsets]),
        "log_scales": shrunken.repeat(2, 1),
        "logit_opacities": logits.repeat(2),
    }


def _pair_logits(logits: Tensor) -> Tensor:
    """Return the logits of o' = o / (b + √(b² - K o)), o the opacities of ``logits``."""
    log_opacity = torch.nn.functional.logsigmoid(logits.double())
    opacity = log_opacity.exp()
    log_child = log_opacity - torch.log(_SHRINK + torch.sqrt(_SHRINK**2 - _SHARED * opacity))
    return (log_child - torch.log1p(-log_child.exp())).to(logits.dtype)


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
