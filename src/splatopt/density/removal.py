"""What a scene loses when one of its Gaussians is removed, and what others judge Gaussians by.

**The cost.** A pixel's colour is affine in the opacity o of any one Gaussian: with G its footprint there, T the
transmittance before it, c its colour and C' what lies behind it, seen without it, the pixel is
(what lies before) + T (oG c + (1 - oG) C'). So the residuals r of a squared error, affine in the colour, are affine
in o as well, and L = ½‖r‖² is a parabola in it whose second derivative is the Gauss-Newton one, B_oo = ‖∂r/∂o‖².
Removing the Gaussian is the step -o along that parabola:

    ΔL = L(0) - L(o) = -o g_o + ½ o² B_oo                  g_o = ∂L/∂o

What objectives give is by the logit ℓ, o = σ(ℓ), ∂o/∂ℓ = o(1-o): g_ℓ = o(1-o) g_o and B_ℓℓ = o²(1-o)² B_oo, so

    ΔL = -g_ℓ/(1-o) + ½ B_ℓℓ/(1-o)²                        1-o = σ(-ℓ)

Where ΔL ≤ 0 the loss falls. This is exact for squared errors wherever the rendering rule does not cut: a clamped α has
no derivative, and what lies behind the end of a ray is not known. For other losses it is their Gauss-Newton model,
which is far from them where a step is as long as this one (docs/results/density.md has both). It is the cost of one
Gaussian with all others there: costs of Gaussians that overlap do not add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum

import torch
from torch import Tensor

from splatopt.core.objective import Batch, Objective, Oracle
from splatopt.core.schema import BLOCK_WIDTHS
from splatopt.curvature.blocks import unpack_blocks

_MIN_TRANSPARENCY = 1e-12
"""Below this 1-o, derivatives by the logit underflow and tell nothing."""

_PLACE_AND_SIZE = BLOCK_WIDTHS["means"] + BLOCK_WIDTHS["log_scales"]
"""Rows of a block that are of the centre and of the scales."""


class Criterion(Enum):
    """What Gaussians are removed by, lowest first: the cost of removing it, opacity, or what PUP 3D-GS scores by."""

    COST = "cost"
    OPACITY = "opacity"
    PUP = "pup"


@torch.no_grad()
def removal_costs(objective: Objective, batches: Sequence[Batch]) -> Tensor:
    """Return ΔL of removing each row alone, (N,) float64, in the unit of the loss; exact for squared errors.

    One pass over the batches, in their order; sums are taken in float64. A row that none of them sees costs 0. One
    that is so opaque that its logit has no derivative left, 1-o < 1e-12, costs infinity.

    Args:
        objective: Rows are a cloud's.
        batches: L is the mean over them of the objective's loss on each; one view each bounds the memory.

    Raises:
        MissingOracleError: The objective gives no Gauss-Newton diagonal.
    """
    objective.require(frozenset({Oracle.GRADIENT, Oracle.GAUSS_NEWTON_DIAGONAL}), "the cost of removal")
    logits = objective.parameters["logit_opacities"].detach().double()
    slope, curvature = torch.zeros_like(logits), torch.zeros_like(logits)
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for batch in batches:
        with objective.fixed_parameters():
            evaluation = objective.gradient(batch)
            slope += evaluation.gradient["logit_opacities"]
            seen |= True if evaluation.seen is None else evaluation.seen
            curvature += objective.exact_gauss_newton_diagonal(batch)["logit_opacities"]
    transparency = torch.sigmoid(-logits)
    known = transparency >= _MIN_TRANSPARENCY
    transparency = transparency.clamp_min(_MIN_TRANSPARENCY)
    costs = (-slope / transparency + 0.5 * curvature / transparency.square()) / len(batches)
    costs = torch.where(known, costs, math.inf)
    return torch.where(seen, costs, 0.0)


@torch.no_grad()
def opacities(objective: Objective, batches: Sequence[Batch]) -> Tensor:
    """Return each row's opacity, (N,) float64; asks nothing of ``batches``."""
    return torch.sigmoid(objective.parameters["logit_opacities"].detach().double())


@torch.no_grad()
def pup_scores(objective: Objective, batches: Sequence[Batch]) -> Tensor:
    """Return log det Σ_{views,pixels} ∇r∇rᵀ over centre and scales, (N,) float64, as PUP 3D-GS (Hanson et al. 2024).

    The leading 6×6 of each row's own block of JᵀJ, with ∂/∂s = (∂/∂log s)/s. For squared errors that is, up to a
    constant, PUP's matrix of the image's derivatives. A row that is not seen, or whose matrix is singular, has -∞.

    Args:
        objective: Rows are a cloud's.
        batches: One view each bounds the memory.

    Raises:
        MissingOracleError: The objective gives no Gauss-Newton blocks.
    """
    objective.require(frozenset({Oracle.GAUSS_NEWTON_BLOCKS}), "the score of PUP 3D-GS")
    log_scales = objective.parameters["log_scales"].detach().double()
    packed = log_scales.new_zeros(len(log_scales), _PLACE_AND_SIZE * (_PLACE_AND_SIZE + 1) // 2)
    for batch in batches:
        packed += objective.gauss_newton_blocks(batch).blocks[:, : packed.shape[1]]
    sign, logarithm = torch.linalg.slogdet(unpack_blocks(packed / len(batches)))
    scores = logarithm - 2 * log_scales.sum(dim=1)
    return torch.where((sign > 0) & torch.isfinite(scores), scores, -math.inf)


SCORES: Mapping[Criterion, Callable[[Objective, Sequence[Batch]], Tensor]] = {
    Criterion.COST: removal_costs,
    Criterion.OPACITY: opacities,
    Criterion.PUP: pup_scores,
}
"""How rows are scored by each criterion."""


def cheapest(scores: Tensor, count: int) -> Tensor:
    """Return which ``count`` rows have the lowest scores, (N,) bool; of equal ones those with the lowest number."""
    chosen = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    chosen[torch.argsort(scores, stable=True)[:count]] = True
    return chosen
