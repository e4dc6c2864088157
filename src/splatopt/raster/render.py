"""Picking a renderer, and rendering with autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from splatopt.core import native
from splatopt.core.camera import Camera
from splatopt.core.checks import InputError, nearest_names
from splatopt.raster.cpu import NativeRenderer
from splatopt.raster.reference import ReferenceRenderer
from splatopt.raster.renderer import Renderer
from splatopt.raster.types import GAUSSIAN_TENSORS, Gaussians, Rendering, RenderOptions

RENDERERS = ("native", "reference")


def renderer_in_use(name: str = "auto") -> tuple[str, str]:
    """Return which renderer ``name`` stands for here, and why, in one sentence.

    Raises:
        InputError: There is no such renderer, or it is not installed.
    """
    if name not in ("auto", *RENDERERS):
        raise InputError(f"no renderer is named {name!r}; {nearest_names(name, ('auto', *RENDERERS))}")
    if name == "native" and not native.available():
        raise InputError("the native renderer is not installed: run `make install` (it needs a C++20 compiler)")
    if name != "auto":
        return name, "it was asked for"
    if native.available():
        return "native", "the native module is installed and is the fastest here"
    return "reference", "the native module is not installed; this is the slow PyTorch reference"


def make_renderer(name: str = "auto", threads: int = 0) -> Renderer:
    """Return a renderer.

    Args:
        name: "auto" (the fastest that this machine has), "native" or "reference".
        threads: Threads of the native renderer; 0 for one per processor.

    Raises:
        InputError: There is no such renderer, or it is not installed.
    """
    chosen, _ = renderer_in_use(name)
    return NativeRenderer(threads) if chosen == "native" else ReferenceRenderer()


class _NativeRender(torch.autograd.Function):
    """The native renderer as a differentiable function of the six tensors."""

    @staticmethod
    def forward(ctx: Any, camera: Camera, options: RenderOptions, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        renderer = NativeRenderer()
        rendering = renderer.render(_Tensors(*tensors), camera, options)
        ctx.renderer, ctx.options = renderer, options
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(rendering.alpha, rendering.depth)
        return rendering.image, rendering.alpha, rendering.depth

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, image_gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        gradient = {name: torch.zeros_like(tensor) for name, tensor in zip(GAUSSIAN_TENSORS, tensors, strict=True)}
        ctx.renderer.backpropagate(_Tensors(*tensors), ctx.options, image_gradient, gradient)
        return None, None, *gradient.values()


class _Tensors:
    """The six tensors under their names."""

    def __init__(self, *tensors: Tensor) -> None:
        self.means, self.log_scales, self.quats, self.logit_opacities, self.sh_dc, self.sh_rest = tensors


def render(gaussians: Gaussians, camera: Camera, options: RenderOptions | None = None) -> Rendering:
    """Render one view with the native renderer; ``image`` is differentiable by autograd.

    Gradients of ``alpha`` and ``depth`` are not given; the reference renderer has them.

    Args:
        gaussians: Contiguous float32 tensors on the CPU.
        camera: From where.
        options: Background, footprint and degree.

    Returns:
        Image (H, W, 3), alpha (H, W) and depth (H, W).
    """
    tensors = [getattr(gaussians, name) for name in GAUSSIAN_TENSORS]
    return Rendering(*_NativeRender.apply(camera, options or RenderOptions(), *tensors))
