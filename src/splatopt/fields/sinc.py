"""sin(u)/u and its derivatives of any order, right at and around 0."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_TERMS = {torch.float64: 10}
_FEWER_TERMS = 6


def sinc(angle: Tensor) -> Tensor:
    """Return sin(u)/u, 1 at 0, which may be differentiated as often as one likes.

    ``torch.sinc`` may not: its derivatives divide by u² and u³ what rounding has left of differences, and its second
    is NaN for small u. Here the derivative of order k comes of the one before it, f_k = (sin⁽ᵏ⁾u - k f_{k-1})/u,
    where |u| is at least 1, and below of the series Σ (-1)ⁿ u²ⁿ⁻ᵏ / ((2n-k)! (2n+1)), 2n ≥ k, to the type's precision.
    One pass a derivative: a graph of the two branches would cost a field of this activation twice the time.
    """
    return _Derivative.apply(angle, None, 0)


class _Derivative(torch.autograd.Function):
    """f_k(u), f_0 = sin(u)/u; its own derivative is f_{k+1}."""

    generate_vmap_rule = True

    @staticmethod
    def forward(angle: Tensor, before: Tensor | None, order: int) -> Tensor:
        """Return f_k; ``before`` is f_{k-1}, which counts as a function of the angle here and not for itself."""
        found = (torch.sin, torch.cos)[order % 2](angle)
        if order % 4 >= 2:
            found.neg_()
        if before is not None:
            found.sub_(before, alpha=order)
        # Passes that torch.where would take are made of sums and products, six times as fast; nothing overflows.
        square = (angle * angle).clamp(max=1.0)
        small = (1.0 - square).ceil_()
        return torch.lerp(found.div_(angle + small), _series(angle, square, order), small)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None, int], output: Tensor) -> None:
        """Keep what the next derivative is made of."""
        angle, _, ctx.order = inputs
        ctx.save_for_backward(angle, output)
        ctx.save_for_forward(angle, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return g · f_{k+1}(u)."""
        return gradients[0] * _next(ctx), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """Return f_{k+1}(u) · t."""
        return tangents[0] * _next(ctx)


def _next(ctx: Any) -> Tensor:
    angle, found = ctx.saved_tensors
    return _Derivative.apply(angle, found.detach(), ctx.order + 1)


def _series(angle: Tensor, square: Tensor, order: int) -> Tensor:
    """Return Σ (-1)ⁿ u²ⁿ⁻ᵏ / ((2n-k)! (2n+1)) by Horner's rule in u², which is given."""
    first = (order + 1) // 2
    terms = range(first, first + _TERMS.get(angle.dtype, _FEWER_TERMS))
    factors = [(-1) ** n / (math.factorial(2 * n - order) * (2 * n + 1)) for n in terms]
    total = square * factors[-1]
    for factor in reversed(factors[1:-1]):
        total.add_(factor).mul_(square)
    total.add_(factors[0])
    return total.mul_(angle) if order % 2 else total
