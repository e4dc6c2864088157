"""One trust-region step for each Gaussian's own 14×14 block of curvature, on the GPU, one Gaussian a lane.

    minimise gᵀd + ½ dᵀ(s B)d  subject to  Σ (d_k/η_k)² ≤ 1

In x = d/η this is (A + μI) x = -ηg, A = s·ηBη, with μ ≥ damping such that |x| = 1, or |x| < 1 at the least μ (Moré and
Sorensen 1983). μ is kept between steps: one Newton step on 1/|x| - 1 for each factorisation, and what still leaves the
ball is scaled back onto it. The Cholesky factor's 105 numbers stay in a lane's registers; the block is read again for
every factorisation, for both would not fit.

Blocks are kept sixteen rows side by side: entry n of row i is blocks[16·(105·(i // 16) + n) + i % 16], which lanes read
in whole pieces of memory.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor
from triton import cdiv

from splatopt.core.schema import BLOCK_SIZE, PACKED_BLOCK, GaussianTensors
from splatopt.kernels.hellinger import TrustBounds, hellinger_radii
from splatopt.kernels.jit import jit
from splatopt.kernels.trust_region import Rule, lengths_kept, move_coefficients, store_columns

SIZE: tl.constexpr = tl.constexpr(BLOCK_SIZE)
"""Rows of a block: centre 3, log-scales 3, quaternion 4, opacity 1, base colour 3."""

COLOR: tl.constexpr = tl.constexpr(BLOCK_SIZE - 3)
"""The first row of the base colour."""

PACKED: tl.constexpr = tl.constexpr(PACKED_BLOCK)
"""Numbers of its lower triangle; entry (i, j ≤ i) stands at i·(i+1)/2 + j."""

LANES: tl.constexpr = tl.constexpr(16)
"""Rows that lie side by side in kept blocks."""

ROWS = 64
"""Gaussians that a program takes."""

WARPS = 2
"""Warps of a program: one lane for each Gaussian."""


@jit
def _columns(cloud, row, inside):
    """The fourteen numbers of each row, in the order of a block."""
    WIDTHS: tl.constexpr = (3, 3, 4, 1, 3)
    values = ()
    for tensor in tl.static_range(5):
        for c in tl.static_range(WIDTHS[tensor]):
            values = values + (tl.load(cloud[tensor] + WIDTHS[tensor] * row + c, mask=inside, other=0.0),)
    return values


@jit
def _fold_columns(mean, gradient, row, inside, decay):
    """Take m ← m + (1-θ₁)(g - m) and return the new ones."""
    WIDTHS: tl.constexpr = (3, 3, 4, 1, 3)
    values = ()
    for tensor in tl.static_range(5):
        for c in tl.static_range(WIDTHS[tensor]):
            at = WIDTHS[tensor] * row + c
            m = tl.load(mean[tensor] + at, mask=inside, other=0.0)
            m += (tl.load(gradient[tensor] + at, mask=inside, other=0.0) - m) * decay
            tl.store(mean[tensor] + at, m, mask=inside)
            values = values + (m,)
    return values


@jit
def _factorised(block, lanes, scaled, eta, shift, floor):
    """The Cholesky factor of A + shift·I by columns, its diagonal inverted; column k holds rows k to 13.

    Pivots that rounding took below the shift are raised, as in the native pass; the trace is 1e6 floors.
    """
    factor = ()
    for c in tl.static_range(SIZE):
        column = ()
        for r in tl.static_range(c, SIZE):
            entry = tl.load(block + LANES * (r * (r + 1) // 2 + c), mask=lanes, other=0.0) * (scaled[r] * eta[c])
            if r == c:
                entry += shift
            for k in tl.static_range(c):
                entry -= factor[k][r - k] * factor[k][c - k]
            column = column + (entry,)
        pivot = tl.where(column[0] < shift * 0.25, floor * 1e6 + shift, column[0])
        inverse = tl.div_rn(1.0, tl.sqrt_rn(pivot))
        finished = (inverse,)
        for r in tl.static_range(1, SIZE - c):
            finished = finished + (column[r] * inverse,)
        factor = factor + (finished,)
    return factor


@jit
def _solved_lower(factor, right):
    """L⁻¹ · right."""
    x = ()
    for r in tl.static_range(SIZE):
        entry = right[r]
        for k in tl.static_range(r):
            entry -= factor[k][r - k] * x[k]
        x = x + (entry * factor[r][0],)
    return x


@jit
def _solved_upper(factor, right):
    """L⁻ᵀ · right."""
    x = ()
    for step in tl.static_range(SIZE):
        entry = right[SIZE - 1 - step]
        for k in tl.static_range(step):
            entry -= factor[SIZE - 1 - step][step - k] * x[k]
        x = x + (entry * factor[SIZE - 1 - step][0],)
    solution = ()
    for r in tl.static_range(SIZE):
        solution = solution + (x[SIZE - 1 - r],)
    return solution


@jit
def _squared_length(x):
    total = x[0] * x[0]
    for r in tl.static_range(1, SIZE):
        total += x[r] * x[r]
    return total


@jit
def _block_step(
    bounds, values, gradient, momentum, blocks, seen, multipliers, colors, curvature, predicted_out,
    count, decay, correction, scale, damping, factorisations,
    MEASURE_ONLY: tl.constexpr, ALL_SEEN: tl.constexpr, CONDITIONAL: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < count
    if MEASURE_ONLY:
        slope = _columns(gradient, row, inside)
    else:
        slope = _fold_columns(momentum, gradient, row, inside, decay)
    if ALL_SEEN:
        drawn = inside
    else:
        drawn = tl.load(seen + row, mask=inside, other=0).to(tl.int32) > 0
    radii = hellinger_radii(bounds, values, row, inside, CONDITIONAL)
    spread = (radii.log_scale, radii.log_scale, radii.log_scale)
    eta = radii.mean + spread + radii.quat + (radii.logit,) + radii.color
    block = blocks + LANES * (PACKED * (row // LANES)) + row % LANES
    right, scaled = (), ()
    trace = tl.zeros((ROWS,), tl.float32)
    for r in tl.static_range(SIZE):
        right = right + (-correction * eta[r] * slope[r],)
        scaled = scaled + (scale * eta[r],)
        trace += scaled[r] * eta[r] * tl.load(block + LANES * (r * (r + 1) // 2 + r), mask=drawn, other=0.0)
    predicted = tl.sqrt(_squared_length(right))
    tl.store(predicted_out + program, tl.sum(tl.where(drawn, predicted, 0.0)))
    if not MEASURE_ONLY:
        # Of a Gaussian without any curvature nothing is known about how far it may go: it stays.
        lanes = drawn & (trace > 0)
        # What rounding may have taken from a block without full rank.
        floor = tl.maximum(trace * 1e-6, 1e-30)
        mu = tl.maximum(tl.load(multipliers + row, mask=lanes, other=1.0), damping)
        x = right
        length = tl.zeros((ROWS,), tl.float32)
        for _ in range(factorisations):
            factor = _factorised(block, lanes, scaled, eta, mu + floor, floor)
            half = _solved_lower(factor, right)
            x = _solved_upper(factor, half)
            squared = _squared_length(x)
            slack = _squared_length(_solved_lower(factor, x))  # for d|x|/dμ
            length = tl.sqrt_rn(squared)
            mu = tl.maximum(mu + tl.div_rn(squared, tl.maximum(slack, 1e-30)) * (length - 1), damping)
        shrink = tl.div_rn(1.0, tl.maximum(length, 1.0))
        # A step beyond all measure was made by rounding: that row stays.
        sound = lanes & (length < 1e15)
        now = _columns(values, row, inside)
        new = ()
        for r in tl.static_range(SIZE):
            new = new + (now[r] + eta[r] * x[r] * shrink,)
        store_columns(values[0], row, sound, new[0:3], 1.0, 3)
        store_columns(values[1], row, sound, new[3:6], 1.0, 3)
        store_columns(values[2], row, sound, new[6:10], lengths_kept(new[6:10], radii.quat_length), 4)
        store_columns(values[3], row, sound, new[10:11], 1.0, 1)
        store_columns(values[4], row, sound, new[11:14], 1.0, 3)
        tl.store(multipliers + row, mu, mask=sound)
        store_columns(colors, row, inside, radii.color, tl.where(lanes, 1.0, 0.0), 3)
        for c in tl.static_range(3):
            color = tl.load(block + LANES * ((COLOR + c) * (COLOR + c + 1) // 2 + COLOR + c), mask=lanes, other=0.0)
            tl.store(curvature + 3 * row + c, color, mask=inside)


def block_step(
    bounds: TrustBounds,
    values: GaussianTensors,
    gradient: GaussianTensors,
    momentum: GaussianTensors,
    blocks: Tensor,
    seen: Tensor | None,
    multipliers: Tensor,
    *,
    decay: float,
    correction: float,
    scale: float,
    damping: float,
    factorisations: int,
    measure_only: bool = False,
) -> float:
    """Take trust-region steps with 14×14 blocks in place; multipliers are read and updated.

    Returns:
        The sum of |ηg| over the rows that were seen; with ``measure_only`` that is all it does.
    """
    count = values.means.shape[0]
    programs = cdiv(count, ROWS)
    predicted_out = values.means.new_empty(programs)
    if not programs:
        return 0.0
    colors, curvature = torch.empty_like(values.sh_dc), torch.empty_like(values.sh_dc)
    _block_step[(programs,)](
        bounds, values, gradient, momentum, blocks, multipliers if seen is None else seen.view(torch.uint8),
        multipliers, colors, curvature, predicted_out, count, 1 - decay, correction, scale, damping, factorisations,
        MEASURE_ONLY=measure_only, ALL_SEEN=seen is None, CONDITIONAL=bounds.conditional_variance, ROWS=ROWS,
        num_warps=WARPS,
    )  # fmt: skip
    if not measure_only:
        rule = Rule(1 - decay, factor=(values.sh_rest.shape[1] + 1) * scale / correction)
        clouds = (values, gradient, momentum, values._replace(sh_rest=curvature))
        move_coefficients("color curvature", colors, clouds, rule, bounds.higher_bands)
    return float(predicted_out.sum(dtype=torch.float64))


@jit
def _fold_blocks(blocks, fresh, weights, count, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < count
    weight = tl.load(weights + row, mask=inside, other=0.0)
    for n in range(PACKED):
        entry = blocks + LANES * (PACKED * (row // LANES) + n) + row % LANES
        kept = tl.load(entry, mask=inside, other=0.0)
        new = tl.load(fresh + PACKED * row + n, mask=inside, other=0.0)
        tl.store(entry, kept + (new - kept) * weight, mask=inside)


def fold_blocks(blocks: Tensor, fresh: Tensor, weights: Tensor) -> None:
    """Move kept blocks (M, 105, 16) towards fresh ones (N, 105) by each row's weight."""
    programs = cdiv(fresh.shape[0], ROWS)
    if programs:
        _fold_blocks[(programs,)](blocks, fresh, weights, fresh.shape[0], ROWS=ROWS, num_warps=WARPS)


@jit
def _block_form(blocks, step, sums, count, ROWS: tl.constexpr):
    program = tl.program_id(0)
    row = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < count
    d = _columns(step, row, inside)
    total = tl.zeros((ROWS,), tl.float32)
    for r in tl.static_range(SIZE):
        along = tl.zeros((ROWS,), tl.float32)
        for c in tl.static_range(r + 1):
            entry = tl.load(blocks + PACKED * row + r * (r + 1) // 2 + c, mask=inside, other=0.0)
            if c < r:
                entry += entry
            along += entry * d[c]
        total += along * d[r]
    tl.store(sums + program, tl.sum(total))


def block_form(blocks: Tensor, step: GaussianTensors) -> float:
    """Return Σ dᵀBd over all rows, blocks (N, 105), and Σ D d² over ``sh_rest``, D what they bound it by."""
    programs = cdiv(blocks.shape[0], ROWS)
    sums = blocks.new_zeros(programs)
    if programs:
        _block_form[(programs,)](blocks, step, sums, blocks.shape[0], ROWS=ROWS, num_warps=WARPS)
    color = blocks[:, [row * (row + 3) // 2 for row in range(BLOCK_SIZE - 3, BLOCK_SIZE)]]
    bound = (step.sh_rest.shape[1] + 1) * color[:, None]
    rest = (bound * step.sh_rest.square()).sum(dtype=torch.float64)
    return float(sums.sum(dtype=torch.float64) + rest)
