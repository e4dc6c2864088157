"""How two sets of derivatives are compared: as vectors and element by element."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_vector_error(result: Tensor, truth: Tensor) -> float:
    """Return ‖result - truth‖ / ‖truth‖; where the truth is zero, ‖result‖.

    It weighs elements by their size, so it sees a wrong scale or a wrong big element, and not a wrong
    small one.
    """
    result, truth = result.detach().double(), truth.detach().double()
    if not torch.isfinite(result).all():
        return float("inf")
    length = float(truth.norm())
    return float((result - truth).norm()) / (length if length > 0 else 1.0)


def worst_elementwise_error(result: Tensor, truth: Tensor, floor: float = 1e-2) -> float:
    """Return the largest |result - truth| / (|truth| + floor·max|truth|) over all elements.

    ``floor`` says below which share of the largest element an error counts against that share and no
    longer against the element itself: a gradient is a sum over pixels whose terms cancel, so float32
    keeps an absolute and not a relative precision (plain PyTorch in float32 stays within 1e-4 on most
    of the shared cases at 1e-2, and on few of them at 1e-3). Where the truth is zero everywhere, the largest |result|.
    """
    result, truth = result.detach().double(), truth.detach().double()
    if truth.numel() == 0:
        return 0.0
    if not torch.isfinite(result).all():
        return float("inf")
    largest = float(truth.abs().max())
    allowed = truth.abs() + floor * largest if largest > 0 else torch.ones_like(truth)
    return float(((result - truth).abs() / allowed).max())
