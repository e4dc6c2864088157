"""Blending rows that are projected already, any number of channels: a native pass, and its PyTorch twin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from splatopt.core import native
from splatopt.raster.reference_blend import blend_splats, pixel_centers
from splatopt.raster.reference_projection import Splats
from splatopt.torch_api.plain_rows import ProjectedRows
from splatopt.torch_api.workers import Drawing, native_module, uses_native

_CHANNELS_AT_ONCE = 4
_PAIRS_AT_ONCE = 1 << 22
"""Pixel-Gaussian pairs that PyTorch's pass holds at once."""


@dataclass(frozen=True)
class BlendPlan:
    """What is blended into which images.

    Attributes:
        bounds: Where each camera's rows begin among all of them, and where the last one's end.
        width: Pixels.
        height: Pixels.
        absgrad: Whether the centres get their absolute gradient too, as their attribute ``absgrad``.
    """

    bounds: tuple[int, ...]
    width: int
    height: int
    absgrad: bool

    @property
    def views(self) -> Iterator[slice]:
        """Each camera's rows."""
        return (slice(*ends) for ends in zip(self.bounds, self.bounds[1:], strict=False))


def blend(projected: ProjectedRows, opacities: Tensor, colors: Tensor, plan: BlendPlan) -> tuple[Tensor, Tensor]:
    """Blend rows front to back over nothing.

    Differentiable in centres, factors, opacities and colours; the order of depth is taken as constant. With
    ``plan.absgrad`` a backward pass sets ``projected.means2d.absgrad`` to Σ over pixels of |∂L_pixel/∂centre|.

    Args:
        projected: Rows on the images, those of each camera together.
        opacities: (…), as drawn.
        colors: (…, D).
        plan: Which rows are whose.

    Returns:
        Σ w c, (C, H, W, D), and 1 - T_end, (C, H, W, 1).
    """
    if uses_native(colors):
        rest = projected.factors, opacities, colors, projected.depths, projected.radii
        return _NativeBlend.apply(projected.means2d, *rest, plan, torch.is_grad_enabled())
    return blend_with_torch(projected, opacities, colors, plan)


def blend_with_torch(
    projected: ProjectedRows, opacities: Tensor, colors: Tensor, plan: BlendPlan
) -> tuple[Tensor, Tensor]:
    """Blend in plain PyTorch over all pairs of pixels and rows, in any float type."""
    rows = projected.flattened()
    opacities, colors = opacities.reshape(-1), colors.reshape(-1, colors.shape[-1])
    absolute = torch.zeros_like(rows.means2d)
    if plan.absgrad and projected.means2d.requires_grad:
        projected.means2d.absgrad = absolute.view_as(projected.means2d)  # type: ignore[attr-defined]
    images, alphas = [], []
    for part in plan.views:
        drawn = rows.drawn[part].nonzero().squeeze(1) + part.start
        index = drawn[torch.argsort(rows.depths[drawn].detach(), stable=True)]
        conics = rows.conics[index]
        splats = Splats(
            index, rows.means2d[index], conics, conics, opacities[index], colors[index], rows.depths[index].detach()
        )
        image, alpha = _image_with_torch(splats, plan, absolute)
        images.append(image)
        alphas.append(alpha)
    return torch.stack(images), torch.stack(alphas)


def _image_with_torch(splats: Splats, plan: BlendPlan, absolute: Tensor) -> tuple[Tensor, Tensor]:
    """Return one camera's image (H, W, D) and alpha (H, W, 1); its absolute gradients are added when they pass."""
    step = max(1, _PAIRS_AT_ONCE // max(1, len(splats.index) * plan.width))
    colors, transmittances = [], []
    for top in range(0, plan.height, step):
        pixels = pixel_centers(splats.means, range(top, min(plan.height, top + step)), range(plan.width))
        seen = splats
        if plan.absgrad and splats.means.requires_grad:
            # One centre a pixel: what comes back is of that pixel alone.
            means = splats.means.expand(len(pixels), -1, -1)
            means.register_hook(partial(_add_absolute, absolute, splats.index))
            seen = replace(splats, means=means)
        blended = blend_splats(seen, pixels)
        colors.append(blended.color)
        transmittances.append(blended.transmittance)
    size = (plan.height, plan.width, -1)
    return torch.cat(colors).reshape(size), (1 - torch.cat(transmittances)).reshape(size)


def _add_absolute(absolute: Tensor, index: Tensor, gradient: Tensor) -> None:
    absolute.index_add_(0, index, gradient.abs().sum(0))


class _NativeBlend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means2d: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        factors, opacities, colors, depths, radii, plan, graph = given
        flat = _contiguous(means2d, 2), _contiguous(factors, 3), _contiguous(opacities), _contiguous(depths)
        radii, channels = _contiguous(radii, 2), colors.shape[-1]
        flat_colors = _contiguous(colors, channels)
        count = len(plan.bounds) - 1
        images = flat_colors.new_empty(count, plan.height, plan.width, channels)
        alphas = flat_colors.new_empty(count, plan.height, plan.width, 1)
        ctx.drawings, view = [], _image_view(plan)
        for i, part in enumerate(plan.views):
            drawing = Drawing()
            rows = native_module().BlendRows(*(tensor[part] for tensor in flat), radii[part])
            drawing.rasterizer.draw_rows(view, rows)
            for first, width in _channel_passes(channels):
                alpha = alphas[i, ..., 0] if first == 0 else None
                drawing.rasterizer.blend_channels(flat_colors[part], first, width, images[i], alpha)
            if graph:
                ctx.drawings.append(drawing)
        ctx.plan, ctx.shapes = plan, (factors.shape, opacities.shape, colors.shape)
        ctx.save_for_backward(means2d, flat_colors)
        ctx.set_materialize_grads(False)
        return images, alphas

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, image: Tensor | None, alpha: Tensor | None) -> tuple[Tensor | None, ...]:
        means2d, colors = ctx.saved_tensors
        count, channels = colors.shape
        centers, factors, opacities = colors.new_zeros(count, 2), colors.new_zeros(count, 3), colors.new_zeros(count)
        absolute = colors.new_zeros(count, 2) if ctx.plan.absgrad else None
        color_gradient = torch.zeros_like(colors)
        image = None if image is None else image.contiguous()
        alpha = None if alpha is None else alpha.squeeze(-1).contiguous()
        for i, (part, drawing) in enumerate(zip(ctx.plan.views, ctx.drawings, strict=True)):
            whole = None if absolute is None else absolute[part]
            into = native_module().BlendRowGradients(centers[part], factors[part], opacities[part], whole)
            for first, width in _channel_passes(channels):
                if image is None and first > 0:
                    break
                of_image = None if image is None else image[i]
                of_alpha = None if alpha is None or first > 0 else alpha[i]
                drawing.rasterizer.channels_backward(
                    colors[part], first, width, of_image, of_alpha, into, color_gradient[part]
                )
        if absolute is not None:
            means2d.absgrad = absolute.view_as(means2d)
        shaped = [one.view(shape) for one, shape in zip((factors, opacities, color_gradient), ctx.shapes, strict=True)]
        return centers.view_as(means2d), *shaped, None, None, None, None


def _contiguous(tensor: Tensor, *ends: int) -> Tensor:
    """Return flattened rows as native passes read them."""
    return tensor.detach().reshape(-1, *ends).contiguous()


def _channel_passes(channels: int) -> list[tuple[int, int]]:
    """Return first channel and number of channels of each pass."""
    starts = range(0, channels, _CHANNELS_AT_ONCE)
    return [(start, min(_CHANNELS_AT_ONCE, channels - start)) for start in starts]


def _image_view(plan: BlendPlan) -> native.Native:
    """Return a view of the plan's image size; rows that are projected already need no more of it."""
    identity = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    return native_module().View(
        rotation=identity,
        center=[0.0, 0.0, 0.0],
        intrinsics=[1.0, 1.0, 0.0, 0.0],
        width=plan.width,
        height=plan.height,
        background=[0.0, 0.0, 0.0],
        antialiased=False,
    )
