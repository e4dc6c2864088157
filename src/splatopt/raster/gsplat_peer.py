"""gsplat as a renderer (Ye et al. 2025): gradient and VJP on CUDA, for comparison and for those who have it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.objective import Oracle
from splatopt.core.row_statistics import GradientStatistics
from splatopt.core.schema import GAUSSIAN_TENSORS, sh_degree_of
from splatopt.raster.constants import LOW_PASS, NEAR_PLANE
from splatopt.raster.problem import ViewLoss, ViewProblem, WeightedSum
from splatopt.raster.renderer import Renderer
from splatopt.raster.types import Footprint, Gaussians, Rendering, RenderOptions

Rasterization = Callable[..., tuple[Tensor, Tensor, dict[str, Any]]]
"""gsplat's function of that name: (1, H, W, channels) colours, (1, H, W, 1) alphas and what it found on the way."""


def rasterization_arguments(
    tensors: Mapping[str, Tensor], camera: Camera, options: RenderOptions, render_mode: str
) -> dict[str, object]:
    """Return what ``gsplat.rasterization`` is called with for one view; differentiable in ``tensors``.

    gsplat takes scales for their logarithms, opacities for their logits, all bands of colour in one tensor
    (N, 1 + K, 3), quaternions wxyz of any length, and cameras as world-to-camera (1, 4, 4) and
    pinhole (1, 3, 3) matrices, pixel centres at +0.5.

    Args:
        tensors: The six tensors of N Gaussians, by name.
        camera: From where.
        options: Background, footprint, degree.
        render_mode: "RGB", or "RGB+D" for Σ w z as fourth channel.
    """
    means = tensors["means"]
    stored = sh_degree_of(tensors["sh_rest"])
    degree = stored if options.sh_degree is None else min(stored, options.sh_degree)
    pinhole = [[camera.fx, 0.0, camera.cx], [0.0, camera.fy, camera.cy], [0.0, 0.0, 1.0]]
    return {
        "means": means,
        "quats": tensors["quats"],
        "scales": tensors["log_scales"].exp(),
        "opacities": tensors["logit_opacities"].sigmoid(),
        "colors": torch.cat([tensors["sh_dc"][:, None], tensors["sh_rest"]], dim=1),
        "viewmats": camera.world_to_camera.to(means)[None],
        "Ks": means.new_tensor(pinhole)[None],
        "width": camera.width,
        "height": camera.height,
        "near_plane": NEAR_PLANE,
        "eps2d": LOW_PASS,
        "sh_degree": degree,
        "packed": False,
        "backgrounds": means.new_tensor(options.background)[None],
        "render_mode": render_mode,
        "rasterize_mode": "antialiased" if options.footprint is Footprint.ANTIALIASED else "classic",
    }


class GsplatRenderer(Renderer):
    """Renders with ``gsplat.rasterization``; the loss is PyTorch's, all derivatives are autograd's."""

    name = "gsplat"

    def __init__(self, rasterization: Rasterization | None = None) -> None:
        """Load gsplat, which compiles its CUDA code when it first renders.

        Args:
            rasterization: Used in place of gsplat's function.
        """
        self._rasterization = rasterization or importlib.import_module("gsplat").rasterization

    @property
    def oracles(self) -> frozenset[Oracle]:
        """Gradient and Jᵀu; gsplat differentiates backwards alone."""
        return frozenset({Oracle.GRADIENT, Oracle.VJP})

    def render(self, gaussians: Gaussians, camera: Camera, options: RenderOptions) -> Rendering:
        """Render one view, without gradients."""
        tensors = {name: getattr(gaussians, name) for name in GAUSSIAN_TENSORS}
        with torch.no_grad():
            colors, alphas, _ = self._rasterization(**rasterization_arguments(tensors, camera, options, "RGB+D"))
        return Rendering(colors[0, :, :, :3].contiguous(), alphas[0, :, :, 0], colors[0, :, :, 3].contiguous())

    def accumulate_gradient(
        self,
        gaussians: Gaussians,
        problem: ViewProblem,
        into: WeightedSum,
        seen: Tensor,
        observed: GradientStatistics | None = None,
    ) -> ViewLoss:
        """Add ∂loss/∂θ of one view; see :meth:`Renderer.accumulate_gradient`.

        ``seen`` becomes true for the Gaussians to which gsplat gives a radius on the image.
        """
        if observed is not None:
            self._refuse(Oracle.STATISTICS.value)
        leaves, image, radii = self._draw(gaussians, problem.camera, problem.options)
        loss, along = problem.loss_gradient(image)
        into.add(_image_vjp(leaves, image, along))
        visible = (radii[0] > 0).all(dim=1)
        seen.copy_(visible if into.overwrite else seen | visible)
        return loss

    def residuals(self, gaussians: Gaussians, problem: ViewProblem) -> Tensor:
        """Return the residuals of one view; see :meth:`Renderer.residuals`."""
        return problem.residuals(self.render(gaussians, problem.camera, problem.options).image)

    def vjp(self, gaussians: Gaussians, problem: ViewProblem, cotangent: Tensor, into: WeightedSum) -> None:
        """Add Jᵀ u of one view; see :meth:`Renderer.vjp`."""
        leaves, image, _ = self._draw(gaussians, problem.camera, problem.options)
        into.add(_image_vjp(leaves, image, problem.residual_vjp(image.detach(), cotangent)))

    def _draw(
        self, gaussians: Gaussians, camera: Camera, options: RenderOptions
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the leaves, the image (H, W, 3) with its graph to them, and the radii (1, N, 2)."""
        leaves = {name: getattr(gaussians, name).detach().requires_grad_() for name in GAUSSIAN_TENSORS}
        with torch.enable_grad():
            colors, _, found = self._rasterization(**rasterization_arguments(leaves, camera, options, "RGB"))
            return leaves, colors[0], found["radii"]


def _image_vjp(leaves: Mapping[str, Tensor], image: Tensor, along: Tensor) -> dict[str, Tensor | None]:
    """Return (∂image/∂leaves)ᵀ ``along``; None where a leaf does not count."""
    found = torch.autograd.grad(image, list(leaves.values()), along, allow_unused=True)
    return dict(zip(leaves, found, strict=True))
