"""The gradient of blending: per pair of tile and Gaussian, then per Gaussian.

A tile walks its list back to front. With the suffix colour C = Σ_{j>i} w_j c_j + T_end·background, ∂I/∂c = w and
∂I/∂α = T c - C / (1 - α). A pair of tile and Gaussian leaves nine sums over the tile's pixels, with g = ∂L/∂log2 α
and the whitened offset w = (u, v): Σ g, Σ g w (2), Σ g (uu, uv, vv), ∂L/∂colour (3). They are written once, at the
pair's slot, and added per Gaussian in the order of the slots: no atomics on floats, so a run repeats bit for bit. The
price is memory, 36 bytes a pair, while the backward pass runs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from splatopt.kernels.blend import (
    Blended,
    load_batch,
    load_colors,
    pixel_index,
    pixels_inside,
    tile_pixels,
    unclamped_alpha,
    whitened_offsets,
)
from splatopt.kernels.geometry import LN_2, number
from splatopt.kernels.jit import jit
from splatopt.kernels.projection import TILE, SplatBuffers
from splatopt.kernels.tiles import TileLists
from splatopt.kernels.view import BACKGROUND, MAX_ALPHA, MIN_ALPHA

GRADIENT = 9
"""Floats that a pair hands to its Gaussian."""

ABSOLUTE = 2
"""Further ones where the absolute gradient is asked for, Σ |g u| and Σ |g (a12 u + a22 v)|: half of Σ |∂L/∂mean|, the
first but for its factor a11."""

BATCH = 4
"""Gaussians at a time; more are live at once than forward, so a batch is smaller."""

WARPS = 4
"""Two pixels a thread."""

CLEARED = tl.constexpr(64)
"""Pairs that no ray reaches, emptied at a time."""

SUM_ROWS = 32
"""Gaussians a program of the sums per Gaussian."""

SUM_PAIRS = 4
"""Pairs of each at a time."""


@jit
def load_ray_ends(view, transmittance, last, x, y, inside):
    """Return T behind the last Gaussian and how many entries of the list reach it, for a tile's pixels."""
    pixel = pixel_index(view, x, y)
    return pixel, tl.load(transmittance + pixel, inside, 0.0), tl.load(last + pixel, inside, 0)


@jit
def clear_behind(pairs, slots, at, end, FIELDS: tl.constexpr):
    """Write zeros for the entries from ``at`` to ``end``, which lie behind the end of every ray of their tile."""
    while at < end:
        entry = at + tl.arange(0, CLEARED)
        live = entry < end
        to = pairs + tl.load(slots + entry, live, 0).to(tl.int64) * FIELDS
        for field in tl.static_range(FIELDS):
            tl.store(to + field, tl.zeros([CLEARED], tl.float32), live)
        at += CLEARED


@jit
def walk_back(splat, live, position, x, y, behind_t, reached, max_alpha, min_alpha):
    """Return u, v, unclamped α, α and T of a batch of pairs; 0 where a pair was not drawn.

    Args:
        splat: Addresses, (B,).
        live: Which of them are entries, (B,).
        position: Places in the tile's list, (B,).
        x: Columns, (P,).
        y: Rows, (P,).
        behind_t: T behind the batch, (P,).
        reached: How many entries reach each pixel, (P,).
        max_alpha: Clamp.
        min_alpha: Threshold.
    """
    u, v = whitened_offsets(splat, live, x, y)
    unclamped = unclamped_alpha(splat, live, u, v)
    used = (unclamped >= min_alpha) & (position[:, None] < reached[None, :])
    alpha = tl.where(used, tl.minimum(unclamped, max_alpha), 0.0)
    before = behind_t[None, :] / tl.cumprod(1 - alpha, axis=0, reverse=True)
    return u, v, unclamped, alpha, before


@jit
def blend_backward_kernel(
    view,
    splats,
    gaussians,
    slots,
    tile_begin,
    transmittance,
    last,
    image_gradient,
    pairs,
    tiles_x,
    ABSOLUTE_TOO: tl.constexpr,
    TILE_SIZE: tl.constexpr,
    BATCH_SIZE: tl.constexpr,
):
    """Write the sums of each entry of one tile."""
    FIELDS: tl.constexpr = 11 if ABSOLUTE_TOO else 9
    tile = tl.program_id(0)
    x, y = tile_pixels(tile, tiles_x, TILE_SIZE)
    inside = pixels_inside(view, x, y)
    begin, end = tl.load(tile_begin + tile), tl.load(tile_begin + tile + 1)
    pixel, running, reached = load_ray_ends(view, transmittance, last, x, y, inside)
    d_red = tl.load(image_gradient + pixel * 3, inside, 0.0)
    d_green = tl.load(image_gradient + pixel * 3 + 1, inside, 0.0)
    d_blue = tl.load(image_gradient + pixel * 3 + 2, inside, 0.0)
    behind = number(view, BACKGROUND) * d_red + number(view, BACKGROUND + 1) * d_green
    behind = (behind + number(view, BACKGROUND + 2) * d_blue) * running
    max_alpha, min_alpha = number(view, MAX_ALPHA), number(view, MIN_ALPHA)
    start = (tl.max(reached) + BATCH_SIZE - 1) // BATCH_SIZE * BATCH_SIZE
    clear_behind(pairs, slots, begin + start, end, FIELDS)
    while start > 0:
        start -= BATCH_SIZE
        position = start + tl.arange(0, BATCH_SIZE)
        live = begin + position < end
        splat = load_batch(splats, gaussians, begin + position, live)
        u, v, unclamped, alpha, before = walk_back(splat, live, position, x, y, running, reached, max_alpha, min_alpha)
        color = load_colors(splat, live)
        along = color[0] * d_red[None, :] + color[1] * d_green[None, :] + color[2] * d_blue[None, :]
        weight = alpha * before
        passed = weight * along
        behind_each = behind[None, :] + tl.cumsum(passed, axis=0, reverse=True) - passed
        g = tl.where(unclamped <= max_alpha, passed - alpha * behind_each / (1 - alpha), 0.0) * LN_2
        to = pairs + tl.load(slots + begin + position, live, 0).to(tl.int64) * FIELDS
        gu, gv = g * u, g * v
        tl.store(to, tl.sum(g, axis=1), live)
        tl.store(to + 1, tl.sum(gu, axis=1), live)
        tl.store(to + 2, tl.sum(gv, axis=1), live)
        tl.store(to + 3, tl.sum(gu * u, axis=1), live)
        tl.store(to + 4, tl.sum(gu * v, axis=1), live)
        tl.store(to + 5, tl.sum(gv * v, axis=1), live)
        tl.store(to + 6, tl.sum(weight * d_red[None, :], axis=1), live)
        tl.store(to + 7, tl.sum(weight * d_green[None, :], axis=1), live)
        tl.store(to + 8, tl.sum(weight * d_blue[None, :], axis=1), live)
        if ABSOLUTE_TOO:
            down = tl.load(splat + 3, live, 0.0)[:, None] * gu + tl.load(splat + 4, live, 0.0)[:, None] * gv
            tl.store(to + 9, tl.sum(tl.abs(gu), axis=1), live)
            tl.store(to + 10, tl.sum(tl.abs(down), axis=1), live)
        behind += tl.sum(passed, axis=0)
        running = tl.max(before, axis=0)


@jit
def sum_pairs_kernel(
    pairs,
    slot_begin,
    slot_count,
    out,
    N,
    GREATEST: tl.constexpr,
    FIELDS: tl.constexpr,
    BLOCK: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Add the sums of each Gaussian's slots, in one fixed order, or find the greatest, which are at least 0.

    The programs of one ``BLOCK``'s fields follow one another, so that what one reads of memory serves the next.
    """
    program = tl.program_id(0)
    row = program // FIELDS * BLOCK + tl.arange(0, BLOCK)
    field = program % FIELDS
    begin = tl.load(slot_begin + row, row < N, 0).to(tl.int64)
    count = tl.load(slot_count + row, row < N, 0)
    max_count = tl.max(count)
    total = tl.zeros([BLOCK, TOGETHER], tl.float32)
    done = max_count * 0
    while done < max_count:
        k = done + tl.arange(0, TOGETHER)
        at = (begin[:, None] + k[None, :]) * FIELDS + field
        found = tl.load(pairs + at, k[None, :] < count[:, None], 0.0)
        total = tl.maximum(total, found) if GREATEST else total + found
        done += TOGETHER
    result = tl.max(total, axis=1) if GREATEST else tl.sum(total, axis=1)
    tl.store(out + row.to(tl.int64) * FIELDS + field, result, row < N)


def sum_pairs(pairs: Tensor, lists: TileLists, *, greatest: bool = False) -> Tensor:
    """Return, for each Gaussian, the sums of its slots' rows.

    Args:
        pairs: (M, F).
        lists: Who owns which slots.
        greatest: Find the greatest instead, of numbers that are at least 0.

    Returns:
        (N, F), 0 for what is not drawn.
    """
    count, width = lists.slot_begin.numel(), pairs.shape[1]
    out = torch.empty(count, width, device=pairs.device)
    if count:
        sum_pairs_kernel[(triton.cdiv(count, SUM_ROWS) * width,)](
            pairs,
            lists.slot_begin,
            lists.slot_count,
            out,
            count,
            GREATEST=greatest,
            FIELDS=width,
            BLOCK=SUM_ROWS,
            TOGETHER=SUM_PAIRS,
        )
    return out


def blend_backward(
    view: Tensor,
    projected: SplatBuffers,
    lists: TileLists,
    drawn: Blended,
    image_gradient: Tensor,
    *,
    absolute: bool = False,
) -> Tensor:
    """Take ∂L/∂image back to the splats.

    Args:
        view: Of :func:`~splatopt.kernels.view.pack_view`.
        projected: Splats.
        lists: Who touches which tile.
        drawn: What the forward pass left.
        image_gradient: ∂L/∂image, (H, W, 3), contiguous float32.
        absolute: Whether Σ |g u| and Σ |g (a12 u + a22 v)| are wanted too.

    Returns:
        (N, 9): Σ g, Σ g w (2), Σ g (uu, uv, vv) with g = ∂L/∂log2 α, and ∂L/∂colour (3); 0 where nothing is drawn.
        With ``absolute`` (N, 11), the two sums behind them.
    """
    fields = GRADIENT + ABSOLUTE * absolute
    pairs = torch.empty(lists.slots.numel(), fields, device=image_gradient.device)
    if lists.slots.numel():
        blend_backward_kernel[(lists.tiles_x * lists.tiles_y,)](
            view,
            projected.splats,
            lists.gaussians,
            lists.slots,
            lists.begin,
            drawn.transmittance,
            drawn.last,
            image_gradient,
            pairs,
            lists.tiles_x,
            ABSOLUTE_TOO=absolute,
            TILE_SIZE=TILE,
            BATCH_SIZE=BATCH,
            num_warps=WARPS,
        )
    return sum_pairs(pairs, lists)
