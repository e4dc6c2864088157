"""Gauss-Newton curvature of a view: sums over pixels that know nothing of the Gaussians' parameters.

With per-pixel weights W_c (the squared slopes of the residuals) and φ = (1, u, v, u², uv, v²), a pixel's colour changes
by g_c·(a·φ) + w·b_c along a parameter, where g_c = ∂C_c/∂log2 α, w is the blending weight, and a and b (the changes of
the exponent and of the colour) belong to the Gaussian. So a pair of tile and Gaussian leaves

    Φ = Σ Ω φφᵀ with Ω = Σ_c W_c g_c²  (15 different moments u^i v^j),  Y_c = Σ W_c w²  (3),  X_c = Σ W_c g_c w φ  (18),

from which the diagonal and the block of JᵀJ follow once per Gaussian, see :mod:`splatopt.kernels.curvature`. Without
harmonics above degree 0 no parameter but the colour moves the colour, and the diagonal does not need X. The sums go to
the pairs' slots as those of the gradient do: 72 or 144 bytes a pair.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from splatopt.kernels.blend import Blended, load_batch, load_colors, pixels_inside, tile_pixels
from splatopt.kernels.blend_backward import clear_behind, load_ray_ends, sum_pairs, walk_back
from splatopt.kernels.geometry import LN_2, number
from splatopt.kernels.jit import jit
from splatopt.kernels.projection import TILE, SplatBuffers
from splatopt.kernels.tiles import TileLists
from splatopt.kernels.view import BACKGROUND, MAX_ALPHA, MIN_ALPHA

SQUARES = 18
"""Floats of Φ and Y; those of X are as many again."""

BATCH = 2
"""Gaussians at a time; 18 or 36 sums are taken of each."""

WARPS = 4
"""Two pixels a thread."""


@jit
def store_sum(to, field: tl.constexpr, values, live):
    """Write the sums over a tile's pixels of (B, P)."""
    tl.store(to + field, tl.sum(values, axis=1), live)


@jit
def store_cross(to, first: tl.constexpr, h, u, v, live):
    """Write Σ h φ."""
    hu, hv = h * u, h * v
    store_sum(to, first, h, live)
    store_sum(to, first + 1, hu, live)
    store_sum(to, first + 2, hv, live)
    store_sum(to, first + 3, hu * u, live)
    store_sum(to, first + 4, hu * v, live)
    store_sum(to, first + 5, hv * v, live)


@jit
def store_moments(to, omega, u, v, live):
    """Write Σ Ω u^i v^j for i + j ≤ 4: 1, u, v, uu, uv, vv, uuu, uuv, uvv, vvv, uuuu, uuuv, uuvv, uvvv, vvvv."""
    store_cross(to, 0, omega, u, v, live)
    uu, vv = u * u, v * v
    ouu, ovv = omega * uu, omega * vv
    store_sum(to, 6, ouu * u, live)
    store_sum(to, 7, ouu * v, live)
    store_sum(to, 8, ovv * u, live)
    store_sum(to, 9, ovv * v, live)
    store_sum(to, 10, ouu * uu, live)
    store_sum(to, 11, ouu * u * v, live)
    store_sum(to, 12, ouu * vv, live)
    store_sum(to, 13, ovv * u * v, live)
    store_sum(to, 14, ovv * vv, live)


@jit
def blend_moments_kernel(
    view,
    splats,
    gaussians,
    slots,
    tile_begin,
    transmittance,
    last,
    pixel_weights,
    pairs,
    tiles_x,
    CROSS: tl.constexpr,
    TILE_SIZE: tl.constexpr,
    BATCH_SIZE: tl.constexpr,
):
    """Write the sums of each entry of one tile."""
    tile = tl.program_id(0)
    x, y = tile_pixels(tile, tiles_x, TILE_SIZE)
    inside = pixels_inside(view, x, y)
    begin, end = tl.load(tile_begin + tile), tl.load(tile_begin + tile + 1)
    pixel, running, reached = load_ray_ends(view, transmittance, last, x, y, inside)
    w_red = tl.load(pixel_weights + pixel * 3, inside, 0.0)[None, :]
    w_green = tl.load(pixel_weights + pixel * 3 + 1, inside, 0.0)[None, :]
    w_blue = tl.load(pixel_weights + pixel * 3 + 2, inside, 0.0)[None, :]
    # What lies behind a pixel's present pair, per channel.
    red = running * number(view, BACKGROUND)
    green = running * number(view, BACKGROUND + 1)
    blue = running * number(view, BACKGROUND + 2)
    max_alpha, min_alpha = number(view, MAX_ALPHA), number(view, MIN_ALPHA)
    FIELDS: tl.constexpr = 36 if CROSS else 18
    start = (tl.max(reached) + BATCH_SIZE - 1) // BATCH_SIZE * BATCH_SIZE
    clear_behind(pairs, slots, begin + start, end, FIELDS)
    while start > 0:
        start -= BATCH_SIZE
        position = start + tl.arange(0, BATCH_SIZE)
        live = begin + position < end
        splat = load_batch(splats, gaussians, begin + position, live)
        u, v, unclamped, alpha, before = walk_back(splat, live, position, x, y, running, reached, max_alpha, min_alpha)
        color = load_colors(splat, live)
        weight = alpha * before
        slope = tl.where(unclamped <= max_alpha, alpha * LN_2, 0.0)
        own, others = slope * before, slope / (1 - alpha)
        add_red, add_green, add_blue = weight * color[0], weight * color[1], weight * color[2]
        g_red = own * color[0] - others * (red[None, :] + tl.cumsum(add_red, axis=0, reverse=True) - add_red)
        g_green = own * color[1] - others * (green[None, :] + tl.cumsum(add_green, axis=0, reverse=True) - add_green)
        g_blue = own * color[2] - others * (blue[None, :] + tl.cumsum(add_blue, axis=0, reverse=True) - add_blue)
        to = pairs + tl.load(slots + begin + position, live, 0).to(tl.int64) * FIELDS
        omega = w_red * g_red * g_red + w_green * g_green * g_green + w_blue * g_blue * g_blue
        store_moments(to, omega, u, v, live)
        store_sum(to, 15, w_red * weight * weight, live)
        store_sum(to, 16, w_green * weight * weight, live)
        store_sum(to, 17, w_blue * weight * weight, live)
        if CROSS:
            store_cross(to, 18, w_red * g_red * weight, u, v, live)
            store_cross(to, 24, w_green * g_green * weight, u, v, live)
            store_cross(to, 30, w_blue * g_blue * weight, u, v, live)
        red += tl.sum(add_red, axis=0)
        green += tl.sum(add_green, axis=0)
        blue += tl.sum(add_blue, axis=0)
        running = tl.max(before, axis=0)


def blend_moments(
    view: Tensor, projected: SplatBuffers, lists: TileLists, drawn: Blended, pixel_weights: Tensor, *, cross: bool
) -> Tensor:
    """Return the curvature sums of the splats.

    Args:
        view: Of :func:`~splatopt.kernels.view.pack_view`.
        projected: Splats.
        lists: Who touches which tile.
        drawn: What the forward pass left.
        pixel_weights: W = Σ_k (∂r_k/∂C)², (H, W, 3), contiguous float32.
        cross: Whether X is wanted.

    Returns:
        (N, 18): 15 moments of Φ and Y (3); with ``cross`` (N, 36), X (3x6) behind them.
    """
    fields = 2 * SQUARES if cross else SQUARES
    pairs = torch.empty(lists.slots.numel(), fields, device=pixel_weights.device)
    if lists.slots.numel():
        blend_moments_kernel[(lists.tiles_x * lists.tiles_y,)](
            view,
            projected.splats,
            lists.gaussians,
            lists.slots,
            lists.begin,
            drawn.transmittance,
            drawn.last,
            pixel_weights,
            pairs,
            lists.tiles_x,
            CROSS=cross,
            TILE_SIZE=TILE,
            BATCH_SIZE=BATCH,
            num_warps=WARPS,
        )
    return sum_pairs(pairs, lists)
