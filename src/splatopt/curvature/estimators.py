"""Estimators of the Gauss-Newton diagonal diag(JᵀJ), for any Jacobian that gives products.

A Rademacher vector has independent entries ±1, so that E[z zᵀ] = I:

- parameter probes z: E[z ⊙ Jᵀ(J z)] = diag(JᵀJ) (Hutchinson 1990; Bekas et al. 2007), variance of entry i
  Σ_{j≠i} (JᵀJ)²_ij, of either sign;
- residual probes u: E[(Jᵀu) ⊙ (Jᵀu)] = diag(JᵀJ), variance of entry i 2·((Σ_k J_ki²)² - Σ_k J_ki⁴), so at
  most 2·(JᵀJ)²_ii however the parameters couple, and never negative.

Averaging m probes divides both variances by m.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.objective import Batch, Objective, Oracle, Residuals, Tensors

_SIGNS = 2.0 * ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).to(torch.float32) - 1.0
"""The eight signs that each byte stands for, (256, 8)."""


def rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return independent entries -1 or +1, each with probability ½, shaped and typed as ``like``.

    One random 64-bit word gives 64 signs, which costs a fraction of drawing them one by one.

    Args:
        like: Shape, type and device of the result; its values are not read.
        generator: Source of randomness; the same state gives the same signs, in any float type.
    """
    words = torch.randint(
        -(2**63), 2**63 - 1, ((like.numel() + 63) // 64,), generator=generator, device=generator.device
    )
    signs = _SIGNS.to(words.device)[words.view(torch.uint8).long()]
    return signs.view(-1)[: like.numel()].reshape(like.shape).to(like.device, like.dtype)


def diagonal_by_parameter_probes(
    jvp: Callable[[Tensors], Residuals],
    vjp: Callable[[Residuals], Tensors],
    parameters: Tensors,
    count: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return the mean over ``count`` probes of z ⊙ Jᵀ(J z), z random signs over the parameters.

    Args:
        jvp: v to J v.
        vjp: u to Jᵀ u.
        parameters: Tensors in the shapes of v.
        count: Number of probes.
        generator: Source of the signs.

    Returns:
        An unbiased estimate of diag(JᵀJ), one tensor per parameter.
    """

    def estimates() -> Iterable[Tensors]:
        for _ in range(count):
            probe = {name: rademacher(parameter, generator) for name, parameter in parameters.items()}
            vjp_value = vjp(jvp(probe))
            yield {name: probe[name].mul_(vjp_value[name]) for name in parameters}

    return _mean(estimates(), count)


def diagonal_by_residual_probes(
    vjp: Callable[[Residuals], Tensors], residuals: Residuals, count: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the mean over ``count`` probes of (Jᵀu) ⊙ (Jᵀu), u random signs over the residuals.

    Args:
        vjp: u to Jᵀ u.
        residuals: Tensors in the shapes of u; their values are not read.
        count: Number of probes.
        generator: Source of the signs.

    Returns:
        An unbiased estimate of diag(JᵀJ), one tensor per parameter, nowhere negative.
    """

    def estimates() -> Iterable[Tensors]:
        for _ in range(count):
            vjp_value = vjp(tuple(rademacher(residual, generator) for residual in residuals))
            yield {name: part.square() for name, part in vjp_value.items()}

    return _mean(estimates(), count)


@dataclass(frozen=True)
class Exact:
    """The objective's own pass that sums squared derivatives; no probes."""

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GAUSS_NEWTON_DIAGONAL})

    def estimate(self, objective: Objective, batch: Batch, generator: torch.Generator | None) -> Tensors:
        """Return diag(JᵀJ); ``generator`` is not used. The objective says what its pass leaves out."""
        return objective.exact_gauss_newton_diagonal(batch)


@dataclass(frozen=True)
class ParameterProbes:
    """:func:`diagonal_by_parameter_probes` for each part (view) of the batch, averaged over the parts.

    Attributes:
        count: Probes per part, each one JVP and one VJP.
    """

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.JVP, Oracle.VJP})
    count: int = 1

    def __post_init__(self) -> None:
        """Check the number of probes."""
        _check_count(self.count, "parameter")

    def estimate(self, objective: Objective, batch: Batch, generator: torch.Generator | None) -> Tensors:
        """Return the estimate; raises ValueError where there is no generator."""
        source = _given(generator, self)
        parts = objective.parts(batch)

        def of_part(part: Batch) -> Tensors:
            return diagonal_by_parameter_probes(
                lambda tangent: objective.jvp(part, tangent),
                lambda cotangent: objective.vjp(part, cotangent),
                objective.parameters,
                self.count,
                source,
            )

        return _mean((of_part(part) for part in parts), len(parts))


@dataclass(frozen=True)
class ResidualProbes:
    """:func:`diagonal_by_residual_probes` for each part (view) of the batch, averaged over the parts.

    Attributes:
        count: Probes per part, each one VJP.
    """

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.VJP})
    count: int = 1

    def __post_init__(self) -> None:
        """Check the number of probes."""
        _check_count(self.count, "residual")

    def estimate(self, objective: Objective, batch: Batch, generator: torch.Generator | None) -> Tensors:
        """Return the estimate; raises ValueError where there is no generator."""
        source = _given(generator, self)
        parts = objective.parts(batch)

        def of_part(part: Batch) -> Tensors:
            return diagonal_by_residual_probes(
                lambda cotangent: objective.vjp(part, cotangent), objective.empty_residuals(part), self.count, source
            )

        return _mean((of_part(part) for part in parts), len(parts))


def _mean(estimates: Iterable[Tensors], count: int) -> dict[str, Tensor]:
    """Return the mean of ``count`` estimates that share no memory; the first one becomes the sum."""
    total: dict[str, Tensor] = {}
    for estimate in estimates:
        if not total:
            total = dict(estimate)
        else:
            for name, part in estimate.items():
                total[name].add_(part)
    if count > 1:
        for part in total.values():
            part.div_(count)
    return total


def _check_count(count: int, kind: str) -> None:
    if count < 1:
        raise InputError(
            f"the number of {kind} probes must be at least 1, got {count}; one is the usual choice, and Exact() "
            "needs none"
        )


def _given(generator: torch.Generator | None, estimator: object) -> torch.Generator:
    if generator is None:
        raise ValueError(f"{type(estimator).__name__} draws random signs: hand it the run's torch.Generator, got None")
    return generator
