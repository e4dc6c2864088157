"""What a Gaussian becomes that is shared among copies of itself: the formulas of 3DGS as MCMC (Kheradmand et al. 2024).

One of opacity o and scale s becomes n in one place, of opacity o' = 1 - (1-o)^(1/n), which is as opaque together at the
centre, and of scale s · o / D, which keeps the integral along a line through it:

    D = ∫ 1 - (1 - o' e^(-x²/2))ⁿ dx/√(2π) = Σ_{k<n} C(n, k+1) (-1)ᵏ o'^(k+1) / √(k+1)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_COPIES = 51
"""More count as so many; 3DGS as MCMC."""


def relocation(opacities: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Return o' and o/D in float64, (K,) each.

    The sum alternates, and its terms stay below (1 + o')ⁿ: float64 keeps ten digits of it at 51 copies of an opacity of
    1 - 10⁻⁷, and float32 none.

    Args:
        opacities: o, (K,), below 1.
        copies: n, itself counted, (K,), int64; more than ``MAX_COPIES`` count as so many.
    """
    opacities, copies = opacities.double(), copies.clamp(1, MAX_COPIES)
    shared = -torch.expm1(torch.log1p(-opacities) / copies)
    powers = shared[:, None].expand(-1, MAX_COPIES).cumprod(dim=1)
    mass = (_coefficients().to(copies.device)[copies] * powers).sum(dim=1)
    return shared, opacities / mass


def _coefficients() -> Tensor:
    """C(n, k+1) (-1)ᵏ / √(k+1) for n from 0 to MAX_COPIES, by row, and k from 0, by column."""
    rows = [
        [math.comb(n, k + 1) * (-1) ** k / math.sqrt(k + 1) for k in range(MAX_COPIES)] for n in range(MAX_COPIES + 1)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def draw_rows(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` rows drawn with replacement, in proportion to their weights; none where no weight is positive.

    Args:
        weights: (N,), at least 0; what is not finite counts as 0.
        count: How many.
        generator: On the CPU.
    """
    sums = weights.detach().cpu().double().nan_to_num(0, 0, 0).cumsum(0)
    total = float(sums[-1]) if len(sums) else 0.0
    if total <= 0:
        return torch.zeros(0, dtype=torch.int64, device=weights.device)
    places = torch.rand(count, generator=generator, dtype=torch.float64) * total
    last = int(torch.searchsorted(sums, total))  # a product that rounds up to the total is of the last with a weight
    return torch.searchsorted(sums, places, right=True).clamp_(max=last).to(weights.device)
