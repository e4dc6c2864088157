"""Products with the true Hessian ∇²L, exact or by a difference of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.objective import Objective, Oracle, Tensors


@dataclass(frozen=True)
class ExactHessian:
    """The objective's own exact product."""

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.HVP})

    def product(self, objective: Objective, batch: Any, tangent: Tensors) -> Tensors:
        """Return ∇²L v."""
        return objective.exact_hvp(batch, tangent)


@dataclass(frozen=True)
class CentralDifference:
    """(g(θ + h v) - g(θ - h v)) / 2h, for any objective that has a gradient g.

    h‖v‖ = relative_step · (1 + ‖θ‖), norms over all parameters together. With ε the rounding of their
    type, the default ε^⅓ (float32: 0.0049) balances the rounding ε/h against the truncation h² of a
    gradient whose third derivatives are of order one. A v of signs then moves each entry by about 0.5 % of
    the parameters' root mean square; a v that is zero almost everywhere moves its few entries by far more.

    A rendering is less smooth than that: kinks of the loss within the step count with their jump (of
    |x - y| whose sign flips, of α that crosses its threshold), while the exact product counts them as
    zero. On a scene of six Gaussians the default is off by 0.1 to 1.9 of the product's norm, and √ε to ε^0.6
    (float32: 3e-4 to 1e-4) by 1e-4 to 3e-4 where it meets no kink; see ``docs/curvature.md``.

    Attributes:
        relative_step: h‖v‖ / (1 + ‖θ‖); None for ε^⅓.
    """

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT})
    relative_step: float | None = None

    def __post_init__(self) -> None:
        """Check the step."""
        if self.relative_step is not None and not 0 < self.relative_step < math.inf:
            raise InputError(
                f"the relative step of a central difference must be a positive number, got {self.relative_step}; "
                "leave it out for the cube root of the type's rounding"
            )

    def product(self, objective: Objective, batch: Any, tangent: Tensors) -> Tensors:
        """Return ∇²L v; the parameters are moved meanwhile and put back, bit for bit."""
        return central_difference(
            lambda: objective.gradient(batch).gradient, objective.parameters, tangent, self.relative_step
        )


def central_difference(
    gradient: Callable[[], Tensors], parameters: Tensors, tangent: Tensors, relative_step: float | None = None
) -> dict[str, Tensor]:
    """Return (g(θ + h v) - g(θ - h v)) / 2h; see :class:`CentralDifference`.

    Args:
        gradient: Returns g at the present values of ``parameters``; may reuse its buffers.
        parameters: θ, written in place and put back, even where ``gradient`` raises.
        tangent: v, in their shapes; a missing one is zero.
        relative_step: h‖v‖ / (1 + ‖θ‖); None for ε^⅓.

    Returns:
        One tensor per parameter, of its own memory; all zero for v = 0.
    """
    length = _norm({name: tangent[name] for name in parameters if name in tangent})
    if length == 0:
        return {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    if relative_step is None:
        relative_step = max(torch.finfo(parameter.dtype).eps for parameter in parameters.values()) ** (1 / 3)
    step = relative_step * (1 + _norm(parameters)) / length
    kept = {name: parameters[name].clone() for name in parameters if name in tangent}

    def gradient_at(change: float) -> Tensors:
        with torch.no_grad():
            for name, value in kept.items():
                torch.add(value, tangent[name], alpha=change, out=parameters[name])
        return gradient()

    try:
        ahead = {name: part.clone() for name, part in gradient_at(step).items()}
        behind = gradient_at(-step)
        return {name: part.sub_(behind[name]).div_(2 * step) for name, part in ahead.items()}
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                parameters[name].copy_(value)


def _norm(tensors: Tensors) -> float:
    """Return the Euclidean norm over all tensors together."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))
