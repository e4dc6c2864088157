"""Products with the true Hessian ∇²L, exact or by a difference of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.objective import Batch, Objective, Oracle, Tensors

RELATIVE_STEP = 1e-4
"""Long enough for the rounding of float32, short enough to be exact where the gradient is smooth."""


@dataclass(frozen=True)
class ExactHessian:
    """The objective's own exact product."""

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.HVP})

    def product(self, objective: Objective, batch: Batch, tangent: Tensors) -> Tensors:
        """Return ∇²L v."""
        return objective.exact_hvp(batch, tangent)


@dataclass(frozen=True)
class CentralDifference:
    """(g(θ + h v) - g(θ - h v)) / 2h, for any objective that has a gradient g.

    h‖v‖ = relative_step · (1 + ‖θ‖), norms over all parameters together. A v of signs then moves each entry by
    about ``relative_step`` of the parameters' root mean square; a v that is zero almost everywhere moves its few
    entries by far more.

    A rendering has kinks: |x - y| changes its sign, α crosses its threshold. Those within the step count with the
    gradient's jump over 2h, while the exact product counts them as zero. Where a float32 scene is so small that the
    default step meets none, it is off by 1e-4 to 4e-4 of the product's norm. A photograph's thousands of pixels have
    kinks within any step that float32 resolves; there nothing comes near the exact product, a short step is mostly
    the noise of single kinks, and one of 0.01 averages over them: see ``docs/results/curvature.md``.

    Attributes:
        relative_step: h‖v‖ / (1 + ‖θ‖).
    """

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT})
    relative_step: float = RELATIVE_STEP

    def __post_init__(self) -> None:
        """Check the step."""
        if not 0 < self.relative_step < math.inf:
            raise InputError(
                f"the relative step of a central difference must be a positive number, got {self.relative_step}; "
                f"leave it out for {RELATIVE_STEP}"
            )

    def product(self, objective: Objective, batch: Batch, tangent: Tensors) -> Tensors:
        """Return ∇²L v; the parameters are moved meanwhile and put back, bit for bit."""

        def gradient() -> Tensors:
            with objective.fixed_parameters():  # each point is one of its own, also where θ is held
                return objective.gradient(batch).gradient

        return central_difference(gradient, objective.parameters, tangent, self.relative_step)


def central_difference(
    gradient: Callable[[], Tensors], parameters: Tensors, tangent: Tensors, relative_step: float = RELATIVE_STEP
) -> dict[str, Tensor]:
    """Return (g(θ + h v) - g(θ - h v)) / 2h; see :class:`CentralDifference`.

    Args:
        gradient: Returns g at the present values of ``parameters``; may reuse its buffers.
        parameters: θ, written in place and put back, even where ``gradient`` raises.
        tangent: v, in their shapes; a missing one is zero.
        relative_step: h‖v‖ / (1 + ‖θ‖).

    Returns:
        One tensor per parameter, of its own memory; all zero for v = 0.
    """
    length = _norm({name: tangent[name] for name in parameters if name in tangent})
    if length == 0:
        return {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
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
