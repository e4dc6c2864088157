"""Conjugate gradients: A x = b for a symmetric positive semidefinite A that is known by its products alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LinearMap = Callable[[Tensor], Tensor]
"""v to A v, both (n,); the result may live in a buffer that the next call reuses."""


@dataclass(frozen=True)
class Solution:
    """What conjugate gradients found.

    Attributes:
        x: The approximate solution, (n,).
        residual: b - A x, (n,), as the recurrence carries it.
        iterations: Products that were asked for.
        relative_residual: √(rᵀM⁻¹r / bᵀM⁻¹b) at the end; 0 for b = 0.
    """

    x: Tensor
    residual: Tensor
    iterations: int
    relative_residual: float


def conjugate_gradients(
    product: LinearMap,
    right: Float[Tensor, " n"],
    *,
    iterations: int,
    tolerance: float = 0.0,
    precondition: LinearMap | None = None,
) -> Solution:
    """Solve A x = b by preconditioned conjugate gradients from x = 0 (Hestenes and Stiefel 1952).

    With M⁻¹ ≈ A⁻¹, r = b, z = M⁻¹ r and p = z, each iteration is::

        α = rᵀz / pᵀA p        x ← x + α p        r ← r - α A p
        β = rᵀz (new) / rᵀz (old), with z = M⁻¹ r        p ← z + β p

    It is exact after n iterations but for rounding, and ½ xᵀA x - bᵀx falls with every one. Where M⁻¹ has zero
    rows, x stays exactly 0: the system is solved in the other entries. It also ends where pᵀA p is not above 0
    or not finite, with x as it was before. Inner products are summed in float64.

    Args:
        product: v to A v.
        right: b.
        iterations: Products at most.
        tolerance: End where √(rᵀM⁻¹r) falls to this share of √(bᵀM⁻¹b); 0 for never.
        precondition: r to M⁻¹ r, M⁻¹ symmetric positive semidefinite; the identity when None.
    """
    x, residual = torch.zeros_like(right), right.clone()
    step = residual.clone() if precondition is None else precondition(residual).clone()
    first = energy = inner(residual, step)
    done = 0
    while done < iterations and energy > 0 and energy > tolerance**2 * first:
        applied = product(step)
        done += 1
        curvature = inner(step, applied)
        length = energy / curvature if curvature > 0 else math.inf
        if not math.isfinite(length) or not math.isfinite(curvature):
            break
        x.add_(step, alpha=length)
        residual.sub_(applied, alpha=length)
        preconditioned = residual if precondition is None else precondition(residual)
        before, energy = energy, inner(residual, preconditioned)
        step.mul_(energy / before).add_(preconditioned)
    return Solution(x, residual, done, math.sqrt(max(energy, 0.0) / first) if first > 0 else 0.0)


def inner(a: Tensor, b: Tensor) -> float:
    """Return aᵀb of two tensors of one shape, summed in float64."""
    return float((a * b).sum(dtype=torch.float64))
