"""Ratios of gradient to curvature, as ESGD, AdaHessian and Sophia take them."""

from __future__ import annotations

import torch
from torch import Tensor


def esgd_ratio(momentum: Tensor, squares: Tensor, *, damping: float) -> Tensor:
    """Return m / (√D + damping · mean √D).

    Args:
        momentum: m, the gradient's mean, corrected for its start.
        squares: D, the mean of (Hv)², likewise; its mean is taken over what is not 0.
        damping: Relative to the mean of √D.
    """
    norms = squares.sqrt()
    return momentum / norms.add_(damping * mean_of_nonzero(norms))


def adahessian_ratio(momentum: Tensor, curvature: Tensor, *, power: float, epsilon: float) -> Tensor:
    """Return m / (s·(c/s + ε)^k), s the mean of the curvatures c; m/c for k = 1 and ε = 0.

    Args:
        momentum: m, the gradient's mean, corrected for its start.
        curvature: c ≥ 0, likewise; its mean is taken over what is not 0.
        power: k, the Hessian power.
        epsilon: ε, relative to s.
    """
    scale = mean_of_nonzero(curvature)
    return momentum / curvature.div(scale).add_(epsilon).pow_(power).mul_(scale)


def sophia_ratio(momentum: Tensor, diagonal: Tensor, *, gamma: float, epsilon: float) -> Tensor:
    """Return m / max(γh, ε), before it is clipped.

    Args:
        momentum: m, the gradient's mean.
        diagonal: h, of either sign.
        gamma: γ.
        epsilon: ε.
    """
    return momentum / diagonal.mul(gamma).clamp_min_(epsilon)


def mean_of_nonzero(values: Tensor) -> Tensor:
    """Return the mean over what is not 0, of values that are not negative; 0 where there is none.

    What is not finite, of a row that broke down, does not count.
    """
    mean = values.sum() / values.count_nonzero().clamp_min(1)
    return mean if bool(torch.isfinite(mean)) else mean_of_nonzero(torch.where(torch.isfinite(values), values, 0))
