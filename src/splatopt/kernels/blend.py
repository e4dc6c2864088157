"""Blending of tiles, front to back: the image, and what the passes that follow need of it.

One program draws one tile. Its 256 pixels are the last axis of all tensors, a batch of consecutive Gaussians the
first: Triton then gives each thread whole columns, so that running products over the batch need no exchange between
threads, and the fields of a batch are loaded together, which hides more of the memory's latency than one
Gaussian at a time. A tile stops when all its rays have ended.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from splatopt.kernels.geometry import number
from splatopt.kernels.jit import jit
from splatopt.kernels.projection import SPLAT, TILE, SplatBuffers
from splatopt.kernels.tiles import TileLists
from splatopt.kernels.view import BACKGROUND, HEIGHT, MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, WIDTH

BATCH = 8
"""Gaussians at a time."""

WARPS = 4
"""Two pixels a thread."""


@dataclass(frozen=True)
class Blended:
    """A drawn view.

    Attributes:
        image: Over the background, (H, W, 3).
        transmittance: Behind the last Gaussian, (H, W).
        last: How many entries of its tile's list reach each pixel's end of ray, (H, W) int32.
        depth: Σ w z, (H, W); empty where it was not asked for.
    """

    image: Tensor
    transmittance: Tensor
    last: Tensor
    depth: Tensor


@jit
def tile_pixels(tile, tiles_x, TILE_SIZE: tl.constexpr):
    """Return column and row of a tile's pixels, int32."""
    p = tl.arange(0, TILE_SIZE * TILE_SIZE)
    return tile % tiles_x * TILE_SIZE + p % TILE_SIZE, tile // tiles_x * TILE_SIZE + p // TILE_SIZE


@jit
def pixels_inside(view, x, y):
    """Return which pixels lie in the image."""
    return (x < number(view, WIDTH)) & (y < number(view, HEIGHT))


@jit
def pixel_index(view, x, y):
    """Return pixels' places in row-major planes."""
    return y.to(tl.int64) * number(view, WIDTH).to(tl.int64) + x


@jit
def load_batch(splats, gaussians, at, live):
    """Return the addresses of splats of a batch of entries, (B,)."""
    return splats + tl.load(gaussians + at, live, 0).to(tl.int64) * SPLAT


@jit
def whitened_offsets(splat, live, x, y):
    """Return (u, v) = A (pixel centre - mean) of all pairs, (B, P) each; x and y are pixels' columns and rows."""
    dx = (x.to(tl.float32) + 0.5)[None, :] - tl.load(splat, live, 0.0)[:, None]
    dy = (y.to(tl.float32) + 0.5)[None, :] - tl.load(splat + 1, live, 0.0)[:, None]
    u = tl.load(splat + 2, live, 0.0)[:, None] * dx + tl.load(splat + 3, live, 0.0)[:, None] * dy
    return u, tl.load(splat + 4, live, 0.0)[:, None] * dy


@jit
def unclamped_alpha(splat, live, u, v):
    """Return 2^(log2 o - |w|²) of all pairs; 0 beyond the list's end."""
    log2_opacity = tl.load(splat + 5, live, float("-inf"))
    return tl.exp2(log2_opacity[:, None] - u * u - v * v)


@jit
def load_colors(splat, live):
    """Return the colours of a batch, (B, 1) each."""
    return (
        tl.load(splat + 6, live, 0.0)[:, None],
        tl.load(splat + 7, live, 0.0)[:, None],
        tl.load(splat + 8, live, 0.0)[:, None],
    )


@jit
def blend_kernel(
    view,
    splats,
    depths,
    gaussians,
    tile_begin,
    image,
    transmittance,
    last,
    depth,
    tiles_x,
    WITH_DEPTH: tl.constexpr,
    TILE_SIZE: tl.constexpr,
    BATCH_SIZE: tl.constexpr,
):
    """Draw one tile."""
    tile = tl.program_id(0)
    x, y = tile_pixels(tile, tiles_x, TILE_SIZE)
    inside = pixels_inside(view, x, y)
    begin, end = tl.load(tile_begin + tile), tl.load(tile_begin + tile + 1)
    max_alpha, min_alpha = number(view, MAX_ALPHA), number(view, MIN_ALPHA)
    min_transmittance = number(view, MIN_TRANSMITTANCE)
    # Pixels outside the image have ended before they begin.
    running = tl.where(inside, 1.0, 0.0)
    final = running
    red, green, blue, z_sum = tl.zeros_like(final), tl.zeros_like(final), tl.zeros_like(final), tl.zeros_like(final)
    reached = tl.zeros_like(x)
    start = begin
    while (start < end) & (tl.max(running) >= min_transmittance):
        at = start + tl.arange(0, BATCH_SIZE)
        live = at < end
        splat = load_batch(splats, gaussians, at, live)
        u, v = whitened_offsets(splat, live, x, y)
        alpha = tl.minimum(unclamped_alpha(splat, live, u, v), max_alpha)
        alpha = tl.where(alpha >= min_alpha, alpha, 0.0)
        # T only falls, so all the Gaussians behind the one that would take it below the threshold fail here too.
        after = running[None, :] * tl.cumprod(1 - alpha, axis=0)
        used = (alpha > 0) & (after >= min_transmittance)
        weight = tl.where(used, alpha / (1 - alpha) * after, 0.0)
        color = load_colors(splat, live)
        red += tl.sum(weight * color[0], axis=0)
        green += tl.sum(weight * color[1], axis=0)
        blue += tl.sum(weight * color[2], axis=0)
        if WITH_DEPTH:
            z = tl.load(depths + tl.load(gaussians + at, live, 0), live, 0.0)
            z_sum += tl.sum(weight * z[:, None], axis=0)
        final = tl.minimum(final, tl.min(tl.where(used, after, 1.0), axis=0))
        reached = tl.maximum(reached, tl.max(tl.where(used, (at - begin + 1)[:, None], 0), axis=0))
        running = tl.min(after, axis=0)
        start += BATCH_SIZE
    pixel = pixel_index(view, x, y)
    tl.store(image + pixel * 3, red + final * number(view, BACKGROUND), inside)
    tl.store(image + pixel * 3 + 1, green + final * number(view, BACKGROUND + 1), inside)
    tl.store(image + pixel * 3 + 2, blue + final * number(view, BACKGROUND + 2), inside)
    tl.store(transmittance + pixel, final, inside)
    tl.store(last + pixel, reached, inside)
    if WITH_DEPTH:
        tl.store(depth + pixel, z_sum, inside)


def blend(
    view: Tensor, projected: SplatBuffers, lists: TileLists, width: int, height: int, *, with_depth: bool = False
) -> Blended:
    """Draw a view: colour = Σ c α T + T_end·background, front to back.

    Args:
        view: Of :func:`~splatopt.kernels.view.pack_view`.
        projected: Splats.
        lists: Who touches which tile.
        width: Pixels.
        height: Pixels.
        with_depth: Whether Σ w z is wanted.
    """
    device = projected.splats.device
    out = Blended(
        image=torch.empty(height, width, 3, device=device),
        transmittance=torch.empty(height, width, device=device),
        last=torch.empty(height, width, dtype=torch.int32, device=device),
        depth=torch.empty((height, width) if with_depth else (0,), device=device),
    )
    blend_kernel[(lists.tiles_x * lists.tiles_y,)](
        view,
        projected.splats,
        projected.depths,
        lists.gaussians,
        lists.begin,
        out.image,
        out.transmittance,
        out.last,
        out.depth,
        lists.tiles_x,
        WITH_DEPTH=with_depth,
        TILE_SIZE=TILE,
        BATCH_SIZE=BATCH,
        num_warps=WARPS,
    )
    return out
