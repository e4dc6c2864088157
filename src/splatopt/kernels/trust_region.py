"""θ ← θ - clip(Δ, -η, η) on a whole cloud, on the GPU: the steps of ``optim/diagonal_gauss_newton.py``.

:func:`_move_rows` takes one Gaussian a lane: its radii, and all of its entries but those of ``sh_rest``, which lie far
apart in memory. :func:`_move_coefficients` takes those as they lie, with the radii of the colours that the first has
written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from triton import cdiv

from splatopt.core.schema import GaussianTensors
from splatopt.kernels.adam import adam_change
from splatopt.kernels.hellinger import TINY, TrustBounds, hellinger_radii, length_of
from splatopt.kernels.jit import jit

ROWS = 128
"""Gaussians that a program takes, one for each of its threads."""

COEFFICIENTS = 1024
"""Numbers of ``sh_rest`` that a program takes."""

_SIX = (0.0,) * 6


class Rule(NamedTuple):
    """The numbers of a direction Δ; those that its kind does not have are not read.

    Attributes:
        decay1: 1 - θ₁ (or 1 - β₁) of the first state, a running mean m of the gradient.
        beta2: Adam's β₂.
        decay2: 1 - β₂.
        root: √(1 - β₂ᵗ).
        epsilon: Adam's ε.
        factor: What the curvature is multiplied by.
    """

    decay1: float
    beta2: float = 0.0
    decay2: float = 0.0
    root: float = 1.0
    epsilon: float = 0.0
    factor: float = 0.0


@jit
def moved(value, gradient, first, second, at, second_at, inside, radius, rule, step_size, damping, KIND: tl.constexpr):
    """Update the states at ``at``; return the new values and, of a step with curvature, |mη|."""
    now = tl.load(value + at, mask=inside, other=0.0)
    g = tl.load(gradient + at, mask=inside, other=0.0)
    m = tl.load(first + at, mask=inside, other=0.0)
    if KIND == "adam":
        v = tl.load(second + second_at, mask=inside, other=0.0)
        change, m, v = adam_change(g, m, v, step_size, rule.decay1, rule.beta2, rule.decay2, rule.root, rule.epsilon)
        change = tl.minimum(tl.maximum(change, -radius), radius)
        tl.store(second + second_at, v, mask=inside)
        predicted = tl.abs(change)
    else:
        m += (g - m) * rule.decay1
        predicted = tl.abs(m * radius)
        if KIND == "sign":
            change = tl.where(m > 0, radius, tl.where(m < 0, -radius, 0.0))
        else:
            d = tl.load(second + second_at, mask=inside, other=0.0)
            # To the end of the radius where there is no curvature, and nowhere where there is no slope.
            curvature = tl.maximum(rule.factor * d * (radius * radius) + damping, TINY)
            change = radius * tl.minimum(tl.maximum(tl.div_rn(m * radius, curvature), -1.0), 1.0)
            if KIND == "color curvature":
                change = tl.where(d > 0, change, 0.0)
    tl.store(first + at, m, mask=inside)
    return now - change, predicted


@jit
def move_columns(
    value, gradient, first, second, row, inside, radius, rule, step_size, damping,
    KIND: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Do so with the columns of a tensor; return their new values, the sum of their |mη| and how many are not 0."""
    new = ()
    total = tl.zeros(row.shape, tl.float32)
    counted = tl.zeros(row.shape, tl.float32)
    for c in tl.static_range(WIDTH):
        column, predicted = moved(
            value,
            gradient,
            first,
            second,
            WIDTH * row + c,
            WIDTH * row + c,
            inside,
            radius[c],
            rule,
            step_size,
            damping,
            KIND,
        )
        new = new + (column,)
        predicted = tl.where(inside, predicted, 0.0)
        total += predicted
        counted += tl.where(predicted > 0, 1.0, 0.0)
    return new, total, counted


@jit
def store_columns(value, row, inside, new, factor, WIDTH: tl.constexpr):
    """Write the columns of a tensor, times ``factor``."""
    for c in tl.static_range(WIDTH):
        tl.store(value + WIDTH * row + c, new[c] * factor, mask=inside)


@jit
def lengths_kept(new, length):
    """What quaternions are multiplied by to get back their lengths."""
    now = length_of(new)
    return tl.where(now > 0, tl.div_rn(length, tl.maximum(now, TINY)), 1.0)


@jit
def _move_rows(
    bounds, values, gradient, first, second, colors, predicted_out, count, rule, step_sizes, damping,
    KIND: tl.constexpr, CONDITIONAL: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < count
    radii = hellinger_radii(bounds, values, row, inside, CONDITIONAL)
    spread = (radii.log_scale, radii.log_scale, radii.log_scale)
    radius = (radii.mean, spread, radii.quat, (radii.logit,), radii.color)
    WIDTHS: tl.constexpr = (3, 3, 4, 1, 3)
    for tensor in tl.static_range(5):
        new, total, counted = move_columns(
            values[tensor], gradient[tensor], first[tensor], second[tensor], row, inside, radius[tensor], rule,
            step_sizes[tensor], damping[tensor], KIND, WIDTHS[tensor],
        )  # fmt: skip
        if tensor == 2:
            store_columns(values[tensor], row, inside, new, lengths_kept(new, radii.quat_length), 4)
        else:
            store_columns(values[tensor], row, inside, new, 1.0, WIDTHS[tensor])
        if KIND == "curvature":
            tl.store(predicted_out + 10 * program + 2 * tensor, tl.sum(total))
            tl.store(predicted_out + 10 * program + 2 * tensor + 1, tl.sum(counted))
    store_columns(colors, row, inside, radii.color, 1.0, 3)


@jit
def _move_coefficients(
    value, gradient, first, second, colors, predicted_out, count, rule, step_size, damping, higher_bands,
    KIND: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``WIDTH`` numbers belong to a Gaussian, three for a coefficient."""
    program = tl.program_id(0)
    at = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    color = 3 * (at // WIDTH) + at % 3
    radius = higher_bands * tl.load(colors + color, mask=inside, other=0.0)
    new, predicted = moved(
        value, gradient, first, second, at, color if KIND == "color curvature" else at, inside, radius, rule, step_size,
        damping, KIND,
    )  # fmt: skip
    tl.store(value + at, new, mask=inside)
    if KIND == "curvature":
        predicted = tl.where(inside, predicted, 0.0)
        tl.store(predicted_out + 2 * program, tl.sum(predicted))
        tl.store(predicted_out + 2 * program + 1, tl.sum(tl.where(predicted > 0, 1.0, 0.0)))


def move_coefficients(
    kind: str,
    colors: Tensor,
    clouds: tuple[GaussianTensors, GaussianTensors, GaussianTensors, GaussianTensors],
    rule: Rule,
    higher_bands: float,
    step_size: float = 0.0,
    damping: float = 0.0,
) -> Tensor:
    """Move ``sh_rest`` within ``higher_bands`` times the radii of its colours, (N, 3).

    Args:
        kind: ``sign``, ``adam``, ``curvature``, or ``color curvature``, whose second state belongs to the colours,
            (N, 3), and which moves nothing where that is 0.
        colors: The radii.
        clouds: Values, gradient and two states.
        rule: The direction's numbers.
        higher_bands: Factor on the radii.
        step_size: Adam's.
        damping: Of the curvature.

    Returns:
        Σ|mη| and how many are not 0, (2,) in float64, where the kind keeps them.
    """
    values = clouds[0]
    count = values.sh_rest.numel()
    programs = cdiv(count, COEFFICIENTS)
    predicted_out = values.means.new_empty(programs, 2)
    if programs:
        _move_coefficients[(programs,)](
            *(cloud.sh_rest for cloud in clouds), colors, predicted_out, count, rule,
            step_size, damping, higher_bands, KIND=kind, WIDTH=3 * values.sh_rest.shape[1], BLOCK=COEFFICIENTS,
        )  # fmt: skip
    return predicted_out.sum(dim=0, dtype=torch.float64)


def _clipped_step(
    kind: str,
    bounds: TrustBounds,
    clouds: tuple[GaussianTensors, GaussianTensors, GaussianTensors, GaussianTensors],
    rule: Rule,
    step_sizes: tuple[float, ...] = _SIX,
    damping: tuple[float, ...] = _SIX,
) -> Tensor:
    """Move all six tensors; return Σ|mη| and how many are not 0 of each, (6, 2), where the kind keeps them."""
    values = clouds[0]
    count = values.means.shape[0]
    programs = cdiv(count, ROWS)
    colors, predicted_out = torch.empty_like(values.sh_dc), values.means.new_empty(programs, 5, 2)
    if programs:
        _move_rows[(programs,)](
            bounds, *clouds, colors, predicted_out, count, rule, step_sizes, damping,
            KIND=kind, CONDITIONAL=bounds.conditional_variance, ROWS=ROWS,
        )  # fmt: skip
    rest = move_coefficients(kind, colors, clouds, rule, bounds.higher_bands, step_sizes[5], damping[5])
    return torch.cat([predicted_out.sum(dim=0, dtype=torch.float64), rest[None]])


def sign_step(
    bounds: TrustBounds, values: GaussianTensors, gradient: GaussianTensors, momentum: GaussianTensors, *, decay: float
) -> None:
    """Momentum's sign times the trust radii, in place."""
    _clipped_step("sign", bounds, (values, gradient, momentum, momentum), Rule(1 - decay))


def adam_clipped_step(
    bounds: TrustBounds,
    values: GaussianTensors,
    gradient: GaussianTensors,
    exp_avg: GaussianTensors,
    exp_avg_sq: GaussianTensors,
    *,
    rates: list[float],
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
) -> None:
    """One Adam step clipped to the trust radii, in place; ``rates`` of the six tensors, ``step`` counts from 1."""
    rule = Rule(1 - beta1, beta2, 1 - beta2, (1 - beta2**step) ** 0.5, epsilon)
    step_sizes = tuple(rate / (1 - beta1**step) for rate in rates)
    _clipped_step("adam", bounds, (values, gradient, exp_avg, exp_avg_sq), rule, step_sizes)


def curvature_step(
    bounds: TrustBounds,
    values: GaussianTensors,
    gradient: GaussianTensors,
    momentum: GaussianTensors,
    curvature: GaussianTensors,
    *,
    decay: float,
    factor: float,
    damping: list[float],
) -> list[float]:
    """Momentum over damped curvature clipped to the trust radii, in place; the curvature is only read.

    Returns:
        The mean of |mη| over each tensor's entries where it is not 0, from one wait for the device.
    """
    rule = Rule(1 - decay, factor=factor)
    predicted_out = _clipped_step(
        "curvature", bounds, (values, gradient, momentum, curvature), rule, damping=tuple(damping)
    )
    return (predicted_out[:, 0] / predicted_out[:, 1].clamp_min(1)).tolist()
