"""Rules of curvature-aware diagonals, as small functions of plain tensors.

A diagonal preconditioner D is the change of variables x̃ = D^½x, under which the Hessian becomes D^-½HD^-½. With
random signs v, independent and fair:

- E[(Hv)²]ᵢ = Σⱼ H²ᵢⱼ, the squared 2-norm of row i: the equilibrated preconditioner (Dauphin et al. 2015);
- E[v ⊙ Hv]ᵢ = Hᵢᵢ: Jacobi's preconditioner (Bekas et al. 2007).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def squared_row_norms(products: Sequence[Tensor]) -> Tensor:
    """Return the mean over probes of (Hv)², which estimates Σⱼ H²ᵢⱼ.

    Args:
        products: Hv of each probe.
    """
    return torch.stack(list(products)).square_().mean(dim=0)


def diagonal_entries(probes: Sequence[Tensor], products: Sequence[Tensor]) -> Tensor:
    """Return the mean over probes of v ⊙ Hv, which estimates Hᵢᵢ.

    Args:
        probes: v of each probe, random signs.
        products: Its Hv.
    """
    return torch.stack([v * product for v, product in zip(probes, products, strict=True)]).mean(dim=0)


def moving_average(mean: Tensor, sample: Tensor, decay: float) -> None:
    """D ← βD + (1-β)·sample, in place; begins at zero, so see :func:`bias_correction`.

    Args:
        mean: D.
        sample: Of the same shape.
        decay: β.
    """
    mean.lerp_(sample, 1 - decay)


def decaying_maximum(largest: Tensor, sample: Tensor, decay: float) -> None:
    """D ← max(βD, sample), in place: the largest of late, without a bias.

    Args:
        largest: D, nowhere negative.
        sample: Of the same shape, nowhere negative.
        decay: β.
    """
    largest.mul_(decay).clamp_(min=sample)


def bias_correction(decay: float, count: int) -> float:
    """Return 1 - βᵏ: what a moving average that began at zero is divided by after k samples.

    k counts the samples that were taken, not the optimizer's steps. With β = 0.999 and a refresh in every 100th
    step after the first 50, dividing a mean square by 1 - β^steps leaves its root at down to 1/3.6 of what it is.

    Args:
        decay: β.
        count: k, at least 1.
    """
    return 1 - decay**count


def kernel_average(values: Tensor) -> Tensor:
    """Return ``values`` averaged over the positions of a convolution's kernel, in the same shape.

    Weights (out, in, *kernel) of one kernel share a curvature (AdaHessian; Yao et al. 2021); matrices and
    vectors come back as they are.
    """
    if values.dim() <= 2:
        return values
    return values.mean(dim=tuple(range(2, values.dim())), keepdim=True).expand_as(values).clone()
