"""Jacobian products, Gauss-Newton curvature and Hessian products of the reference renderer.

Products are forward and reverse differentiation of :func:`~splatopt.raster.reference.render_reference`. The
curvature of each Gaussian comes in two exact steps: over pixels, of the nine numbers that blending reads of
a splat, by differentiating each pair on its own; then through the projection, which treats rows separately.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.schema import BLOCK_SIZE, GAUSSIAN_TENSORS, GaussianTensors
from splatopt.raster.problem import ViewProblem, WeightedSum
from splatopt.raster.reference_blend import blend_splats, over_background, pixel_centers
from splatopt.raster.reference_projection import Splats, project_reference
from splatopt.raster.renderer import Renderer
from splatopt.raster.types import Gaussians, RenderOptions

_PAIRS_AT_ONCE = 1 << 19
"""Pixel-Gaussian pairs whose nine derivatives are held at once, 38 MB a tensor in float64."""


@dataclass(frozen=True)
class ImageVJP:
    """An image's gradient taken back to the Gaussians.

    Attributes:
        gradient: One tensor per parameter; None where nothing came back.
        splats: The splats, leaves that hold their own gradient where one came back.
        blended: Which of them were blended into at least one pixel, (N,) bool.
    """

    gradient: Mapping[str, Tensor | None]
    splats: Splats
    blended: Tensor


class ReferenceProducts(Renderer):
    """The oracles beyond the gradient, for a renderer whose image is differentiable."""

    @abstractmethod
    def image_of(self, gaussians: Gaussians, camera: Camera, options: RenderOptions) -> Tensor:
        """Return the image (H, W, 3), differentiably and fit for ``torch.func``."""

    @abstractmethod
    def image_vjp(
        self,
        gaussians: Gaussians,
        camera: Camera,
        options: RenderOptions,
        image_gradient: Callable[[Tensor], Tensor],
    ) -> ImageVJP:
        """Return (∂image/∂θ)ᵀ g with g = ``image_gradient(image)``."""

    def residuals(self, gaussians: Gaussians, problem: ViewProblem) -> Tensor:
        """Return the residuals of one view; see :meth:`Renderer.residuals`."""
        return problem.residuals(self.render(gaussians, problem.camera, problem.options).image)

    def jvp(self, gaussians: Gaussians, problem: ViewProblem, tangent: Mapping[str, Tensor]) -> Tensor:
        """Return J v of one view; see :meth:`Renderer.jvp`."""
        values = tuple(getattr(gaussians, name).detach() for name in GAUSSIAN_TENSORS)
        with torch.no_grad():
            image_and_change = torch.func.jvp(
                lambda *tensors: self.image_of(GaussianTensors(*tensors), problem.camera, problem.options),
                values,
                _whole(gaussians, tangent),
            )
            return problem.residual_jvp(image_and_change[0], image_and_change[1])

    def vjp(self, gaussians: Gaussians, problem: ViewProblem, cotangent: Tensor, into: WeightedSum) -> None:
        """Add Jᵀ u of one view; see :meth:`Renderer.vjp`."""
        found = self.image_vjp(
            gaussians, problem.camera, problem.options, lambda image: problem.residual_vjp(image, cotangent)
        )
        into.add(found.gradient)

    def accumulate_diagonal(self, gaussians: Gaussians, problem: ViewProblem, into: WeightedSum) -> None:
        """Add the diagonal of one view; see :meth:`Renderer.accumulate_diagonal`."""
        curvature = self._curvature(gaussians, problem)
        shapes = [getattr(gaussians, name).shape for name in GAUSSIAN_TENSORS]
        parts = curvature.diagonal().split([shape[1:].numel() for shape in shapes], dim=1)
        into.add({name: part.reshape(shape) for name, shape, part in zip(GAUSSIAN_TENSORS, shapes, parts, strict=True)})

    def accumulate_blocks(self, gaussians: Gaussians, problem: ViewProblem, into: WeightedSum) -> None:
        """Add the blocks of one view; see :meth:`Renderer.accumulate_blocks`."""
        curvature = self._curvature(gaussians, problem)
        row, column = torch.tril_indices(BLOCK_SIZE, BLOCK_SIZE)
        rest = curvature.diagonal()[:, BLOCK_SIZE:].reshape(gaussians.sh_rest.shape)
        into.add({"blocks": curvature.blocks(BLOCK_SIZE)[:, row, column], "sh_rest": rest})

    def hvp(self, gaussians: Gaussians, problem: ViewProblem, tangent: Mapping[str, Tensor], into: WeightedSum) -> None:
        """Add ∇²loss v of one view, by differentiating twice; see :meth:`Renderer.hvp`."""
        leaves = [getattr(gaussians, name).detach().requires_grad_() for name in GAUSSIAN_TENSORS]
        with torch.enable_grad():
            loss = problem.loss_of(self.image_of(GaussianTensors(*leaves), problem.camera, problem.options))
            first = torch.autograd.grad(loss, leaves, create_graph=True)
            second = torch.autograd.grad(first, leaves, _whole(gaussians, tangent), allow_unused=True)
        into.add(dict(zip(GAUSSIAN_TENSORS, second, strict=True)))

    def _curvature(self, gaussians: Gaussians, problem: ViewProblem) -> _Curvature:
        """Return each Gaussian's curvature in one view."""
        camera, options = problem.camera, problem.options
        with torch.no_grad():
            weights = problem.pixel_curvature(self.render(gaussians, camera, options).image)
            splats = project_reference(gaussians, camera, options)
            unsort = torch.argsort(splats.index)
        outer = _splat_curvature(splats, camera, options, weights)[unsort]
        return _Curvature(outer, _projection_jacobian(gaussians, camera, options))


@dataclass(frozen=True)
class _Curvature:
    """Gᵀ M G per Gaussian: M (N, 9, 9) over what blending reads, G (N, 9, T) the projection's Jacobian."""

    outer: Tensor
    jacobian: Tensor

    def blocks(self, size: int) -> Tensor:
        """Return the leading (size, size) entries, (N, size, size); exactly 0 for what is not drawn."""
        leading = self.jacobian[:, :, :size]
        return self._drawn(leading.transpose(1, 2) @ self.outer @ leading)

    def diagonal(self) -> Tensor:
        """Return the diagonal, (N, T); exactly 0 for what is not drawn."""
        return self._drawn(((self.outer @ self.jacobian) * self.jacobian).sum(dim=1))

    def _drawn(self, result: Tensor) -> Tensor:
        # Where M is zero, G may still be infinite or NaN: a transparent Gaussian whose determinant overflows.
        drawn = (self.outer != 0).flatten(1).any(dim=1)
        return torch.where(drawn.reshape(-1, *[1] * (result.dim() - 1)), result, torch.zeros_like(result))


def _whole(gaussians: Gaussians, tangent: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return a tangent's six tensors, zeros for those that are missing."""
    return tuple(
        tangent[name].to(getattr(gaussians, name)) if name in tangent else torch.zeros_like(getattr(gaussians, name))
        for name in GAUSSIAN_TENSORS
    )


def _splat_curvature(splats: Splats, camera: Camera, options: RenderOptions, weights: Tensor) -> Tensor:
    """Return M = Σ_{p,c} W_pc (∂C_pc/∂s)(∂C_pc/∂s)ᵀ per splat, s = (mean 2, conic 3, opacity, colour 3), (N, 9, 9).

    Each pixel gets splats of its own as leaves, so one backward pass a channel gives the derivatives of all
    pairs; no formula of blending is written a second time.
    """
    count = splats.depths.shape[0]
    total = splats.means.new_zeros(count, 9, 9)
    step = max(1, _PAIRS_AT_ONCE // max(1, count * camera.width))
    for start in range(0, camera.height, step):
        rows = range(start, min(camera.height, start + step))
        pixels = pixel_centers(splats.means, rows, range(camera.width))
        shape = (pixels.shape[0], count)
        with torch.enable_grad():
            own = {
                name: getattr(splats, name).detach().expand(*shape, *getattr(splats, name).shape[1:]).clone()
                for name in ("means", "conics", "opacities")
            }
            for leaf in own.values():
                leaf.requires_grad_()
            blend = blend_splats(replace(splats, **own), pixels)
            color = over_background(blend, options)
            sums = [color[:, channel].sum() for channel in range(3)]
        near = weights[rows.start : rows.stop].reshape(-1, 3)
        for channel in range(3):
            parts = torch.autograd.grad(sums[channel], list(own.values()), retain_graph=channel < 2)
            to_color = splats.means.new_zeros(*shape, 3)
            to_color[:, :, channel] = blend.weights.detach()
            derivative = torch.cat([parts[0], parts[1], parts[2][:, :, None], to_color], dim=2).transpose(0, 1)
            total += (derivative * near[:, channel, None]).transpose(1, 2) @ derivative
    return total


def _projection_jacobian(gaussians: Gaussians, camera: Camera, options: RenderOptions) -> Tensor:
    """Return ∂s/∂θ per Gaussian, (N, 9, T), columns in the order of the six tensors.

    Rows do not depend on one another, so one tangent that is the same in all of them gives a column for all of them.
    """

    def projected(*tensors: Tensor) -> Tensor:
        splats = project_reference(GaussianTensors(*tensors), camera, options)
        numbers = [splats.means, splats.conics, splats.opacities[:, None], splats.colors]
        return torch.cat(numbers, dim=1)[torch.argsort(splats.index)]

    values = tuple(getattr(gaussians, name).detach() for name in GAUSSIAN_TENSORS)
    sizes = [value.shape[1:].numel() for value in values]

    def column(along: Tensor) -> Tensor:
        parts = zip(along.split(sizes), values, strict=True)
        tangent = tuple(part.reshape(value.shape[1:]).expand(value.shape) for part, value in parts)
        return torch.func.jvp(projected, values, tangent)[1]

    with torch.no_grad():
        columns = torch.eye(sum(sizes), dtype=values[0].dtype, device=values[0].device)
        return torch.func.vmap(column, out_dims=2)(columns)
