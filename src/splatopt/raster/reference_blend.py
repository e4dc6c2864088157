"""Blending splats along rays, in plain differentiable PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.raster.constants import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE
from splatopt.raster.reference_projection import Splats
from splatopt.raster.types import RenderOptions

BLOCK = 32
"""Side of the blocks that an image is culled by, pixels."""


@dataclass(frozen=True)
class Blend:
    """Blending of P pixels with N splats: outputs a pixel, and who was blended.

    Attributes:
        weights: w = α·T of each pair, (P, N).
        color: Σ w c, (P, 3), without background.
        transmittance: T behind the last splat, (P,).
        depth: Σ w z, (P,).
        blended: Which splats were blended into at least one of the pixels, (N,) bool.
    """

    weights: Tensor
    color: Tensor
    transmittance: Tensor
    depth: Tensor
    blended: Tensor


def pixel_centers(like: Tensor, rows: range, columns: range) -> Tensor:
    """Return the centres of a block of pixels in row-major order, (P, 2), x and y."""
    y = torch.arange(rows.start, rows.stop, dtype=like.dtype, device=like.device) + 0.5
    x = torch.arange(columns.start, columns.stop, dtype=like.dtype, device=like.device) + 0.5
    return torch.stack([x.repeat(len(rows)), y.repeat_interleave(len(columns))], dim=1)


def unclamped_alpha(splats: Splats, pixels: Tensor) -> Tensor:
    """Return o·exp(-½ dᵀ Q d) for all pairs, (P, N).

    The splats' means, conics and opacities may have a leading axis of P: one splat a pixel.
    """
    dx, dy = (pixels[:, None, :] - splats.means).unbind(dim=-1)
    xx, xy, yy = splats.conics.unbind(dim=-1)
    return splats.opacities * torch.exp(-0.5 * (xx * dx * dx + yy * dy * dy) - xy * dx * dy)


def blend_splats(splats: Splats, pixels: Tensor) -> Blend:
    """Blend splats, front to back, over nothing.

    A ray ends before the first splat that would take T below the threshold. T only falls, so all the
    splats behind that one fail the same test and no loop is needed.
    """
    unclamped = unclamped_alpha(splats, pixels)
    matters = unclamped >= MIN_ALPHA
    alpha = torch.where(matters, unclamped.clamp_max(MAX_ALPHA), torch.zeros_like(unclamped))
    log_passed = torch.log1p(-alpha)
    log_after = torch.cumsum(log_passed, dim=1)
    reached = log_after.detach() >= math.log(MIN_TRANSMITTANCE)
    zero = torch.zeros_like(alpha)
    weights = torch.where(reached, alpha * torch.exp(log_after - log_passed), zero)
    return Blend(
        weights=weights,
        color=weights @ splats.colors,
        transmittance=torch.where(reached, log_passed, zero).sum(dim=1).exp(),
        depth=weights @ splats.depths,
        blended=(matters & reached).any(dim=0),
    )


def over_background(blend: Blend, options: RenderOptions) -> Tensor:
    """Return the colours over the background, (P, 3)."""
    background = torch.tensor(options.background, dtype=blend.color.dtype, device=blend.color.device)
    return blend.color + blend.transmittance[:, None] * background


def image_blocks(camera: Camera) -> Iterator[tuple[range, range]]:
    """Yield the rows and columns of the blocks that make up the image."""
    for top in range(0, camera.height, BLOCK):
        for left in range(0, camera.width, BLOCK):
            yield range(top, min(camera.height, top + BLOCK)), range(left, min(camera.width, left + BLOCK))


def overlapping(splats: Splats, rows: range, columns: range) -> Tensor:
    """Return the splats that may reach α = 1/255 at a pixel of the block, in order, as indices.

    On dᵀ Q d ≤ 2·ln(255·o) the largest |dx| is √(2·ln(255·o)·Σ_xx), likewise for y.
    """
    with torch.no_grad():
        reach = 2 * (splats.opacities / MIN_ALPHA).clamp_min(torch.finfo(splats.means.dtype).tiny).log()
        # A hair more than exact, so that rounding never drops a pair that the dense loop would draw.
        extent = (reach.clamp_min(0)[:, None] * splats.covariances[:, [0, 2]]).sqrt() * 1.001 + 0.01
        lower = splats.means.new_tensor([columns.start, rows.start])
        upper = splats.means.new_tensor([columns.stop, rows.stop])
        inside = ((splats.means + extent >= lower) & (splats.means - extent <= upper)).all(dim=1)
        return (inside & (splats.opacities >= MIN_ALPHA)).nonzero().squeeze(1)
