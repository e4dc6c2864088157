"""The reference renderer: the rendering rule in plain PyTorch, twice differentiable.

It is the truth that faster renderers are tested against, so it is dense, written straight from the
formulae, and slow. All float types; tests use float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields

import torch
from jaxtyping import Bool
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.objective import Oracle
from splatopt.core.row_statistics import ErrorMap, GradientStatistics
from splatopt.core.schema import GAUSSIAN_TENSORS, GaussianTensors
from splatopt.raster.constants import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE
from splatopt.raster.problem import ViewLoss, ViewProblem, WeightedSum, add_statistics
from splatopt.raster.reference_blend import (
    blend_splats,
    image_blocks,
    over_background,
    overlapping,
    pixel_centers,
    unclamped_alpha,
)
from splatopt.raster.reference_products import ImageVJP, ReferenceProducts
from splatopt.raster.reference_projection import Splats, project_reference
from splatopt.raster.reference_statistics import add_gradient_statistics, view_statistics
from splatopt.raster.types import Gaussians, Rendering, RenderOptions

_DEFAULT_OPTIONS = RenderOptions()
_PAIRS_AT_ONCE = 1 << 22
"""Pixel-Gaussian pairs held in memory at once by the dense loop, 32 MB a tensor in float64."""


def _row_chunks(camera: Camera, count: int) -> Iterator[range]:
    """Yield ranges of image rows small enough for the dense loop over ``count`` splats."""
    step = max(1, _PAIRS_AT_ONCE // max(1, count * camera.width))
    for start in range(0, camera.height, step):
        yield range(start, min(camera.height, start + step))


def render_reference(gaussians: Gaussians, camera: Camera, options: RenderOptions = _DEFAULT_OPTIONS) -> Rendering:
    """Render one view, differentiably, over all pairs of pixels and Gaussians.

    colour = Σ_i c_i α_i T_i + T·background, T_i = Π_{j<i} (1 - α_j), front to back, with
    α = min(0.999, o·exp(-½ dᵀ Q d)) where that is at least 1/255 and 0 otherwise; a ray ends before
    the first Gaussian that would take T below 1e-4. Kerbl et al. 2023; projection as described at
    :func:`~splatopt.raster.reference_projection.project_reference`. Only differentiable operations
    without in-place writes: gradients of gradients and ``torch.func`` transforms apply. A clamped α
    passes no gradient, nor does the order.

    Args:
        gaussians: N Gaussians, N may be 0, any float type.
        camera: From where.
        options: Background, footprint, degree.

    Returns:
        Image, alpha and depth in the Gaussians' type.
    """
    splats = project_reference(gaussians, camera, options)
    colors, alphas, depths = [], [], []
    for rows in _row_chunks(camera, splats.depths.shape[0]):
        blend = blend_splats(splats, pixel_centers(splats.means, rows, range(camera.width)))
        colors.append(over_background(blend, options))
        alphas.append(1 - blend.transmittance)
        depths.append(blend.depth)
    size = (camera.height, camera.width)
    return Rendering(
        image=torch.cat(colors).reshape(*size, 3),
        alpha=torch.cat(alphas).reshape(size),
        depth=torch.cat(depths).reshape(size),
    )


def _swappable_pairs(gaussians: Gaussians, splats: Splats, camera: Camera) -> Bool[Tensor, "n n"]:
    """Return which pairs of splats lie so close in depth that float32 rounding may swap them.

    Pairs with identical means are left out: every renderer computes the same z for both.
    """
    means = gaussians.means.detach()[splats.index]
    pose = camera.world_to_camera.to(means)
    terms = means.abs() @ pose[2, :3].abs() + pose[2, 3].abs()
    rounding = 4 * torch.finfo(torch.float32).eps * terms
    close = (splats.depths[:, None] - splats.depths[None, :]).abs() <= rounding[:, None] + rounding[None, :]
    return close & (means[:, None, :] != means[None, :, :]).any(dim=2)


def ambiguous_pixels(
    gaussians: Gaussians, camera: Camera, options: RenderOptions = _DEFAULT_OPTIONS, relative: float = 1e-4
) -> Bool[Tensor, "h w"]:
    """Find the pixels where a renderer of lower precision may rightly give another colour.

    Those are the pixels whose ray meets, before it ends, an α within ``relative`` of 1/255 or of
    0.999, a transmittance within ``relative`` of 1e-4, or two visible Gaussians whose depths differ by
    no more than float32 rounds.

    Args:
        gaussians: As rendered.
        camera: As rendered.
        options: As rendered.
        relative: Largest relative distance to a threshold that counts as near.

    Returns:
        (H, W), bool.
    """
    with torch.no_grad():
        splats = project_reference(gaussians, camera, options)
        swappable = _swappable_pairs(gaussians, splats, camera).to(splats.means)
        found = []
        for rows in _row_chunks(camera, splats.depths.shape[0]):
            unclamped = unclamped_alpha(splats, pixel_centers(splats.means, rows, range(camera.width)))
            alpha = torch.where(unclamped >= MIN_ALPHA, unclamped.clamp_max(MAX_ALPHA), 0.0)
            after = torch.cumprod(1 - alpha, dim=1)
            reached = after / (1 - alpha) >= MIN_TRANSMITTANCE * (1 - relative)
            near_cut = (unclamped / MIN_ALPHA - 1).abs() <= relative
            near_clamp = (unclamped / MAX_ALPHA - 1).abs() <= relative
            near_end = (after / MIN_TRANSMITTANCE - 1).abs() <= relative
            drawn = ((unclamped >= MIN_ALPHA * (1 - relative)) & reached).to(splats.means)
            swaps = (drawn @ swappable) * drawn > 0
            found.append(((near_cut | near_clamp | near_end | swaps) & reached).any(dim=1))
    return torch.cat(found).reshape(camera.height, camera.width)


class ReferenceRenderer(ReferenceProducts):
    """The rule of :func:`render_reference`, block by block so that memory stays bounded.

    Computes in the type of the Gaussians; the gradient is autograd's. A block of pixels leaves out the
    splats whose α is below 1/255 all over it, which changes nothing.
    """

    name = "reference"

    @property
    def oracles(self) -> frozenset[Oracle]:
        """All of them."""
        return frozenset(Oracle)

    def render(self, gaussians: Gaussians, camera: Camera, options: RenderOptions) -> Rendering:
        """Render one view, without gradients."""
        with torch.no_grad():
            rendering, _ = _render_blocks(project_reference(gaussians, camera, options), camera, options)
        return rendering

    def accumulate_gradient(
        self,
        gaussians: Gaussians,
        problem: ViewProblem,
        into: WeightedSum,
        seen: Tensor,
        observed: GradientStatistics | None = None,
    ) -> ViewLoss:
        """Add ∂loss/∂θ of one view; see :meth:`Renderer.accumulate_gradient`.

        ``seen`` becomes true for the Gaussians that are blended into at least one pixel.
        """
        loss = ViewLoss(0.0, 0.0)
        along = gaussians.means.new_empty(0)

        def image_gradient(image: Tensor) -> Tensor:
            nonlocal loss, along
            loss, along = problem.loss_gradient(image)
            return along

        found = self.image_vjp(gaussians, problem.camera, problem.options, image_gradient)
        if into.overwrite:
            seen.zero_()
        into.add(found.gradient)
        seen[found.splats.index[found.blended]] = True
        if observed is not None:
            add_gradient_statistics(observed, gaussians, problem, found, along)
        return loss

    def statistics(self, gaussians: Gaussians, problem: ViewProblem, error: ErrorMap, into: WeightedSum) -> None:
        """Add what each Gaussian does in one view; see :meth:`Renderer.statistics`."""
        image = self.render(gaussians, problem.camera, problem.options).image
        add_statistics(into, view_statistics(gaussians, problem, image, error))

    def image_vjp(
        self,
        gaussians: Gaussians,
        camera: Camera,
        options: RenderOptions,
        image_gradient: Callable[[Tensor], Tensor],
    ) -> ImageVJP:
        """Return (∂image/∂θ)ᵀ g with g = ``image_gradient(image)``, block by block."""
        leaves = GaussianTensors(*(getattr(gaussians, name).detach().requires_grad_() for name in GAUSSIAN_TENSORS))
        with torch.enable_grad():
            splats = project_reference(leaves, camera, options)
            outer = _splat_leaves(splats)
        with torch.no_grad():
            rendering, blended = _render_blocks(outer, camera, options)
        along = image_gradient(rendering.image)
        with torch.enable_grad():
            for rows, columns in image_blocks(camera):
                near = outer.take(overlapping(outer, rows, columns))
                blend = blend_splats(near, pixel_centers(near.means, rows, columns))
                block_gradient = along[rows.start : rows.stop, columns.start : columns.stop]
                if near.depths.shape[0]:
                    torch.autograd.backward(over_background(blend, options), block_gradient.reshape(-1, 3))
            names = [name for name in _SPLAT_FLOATS if getattr(outer, name).grad is not None]
            if names:
                torch.autograd.backward(
                    [getattr(splats, name) for name in names], [getattr(outer, name).grad for name in names]
                )
        gradient = {name: getattr(leaves, name).grad for name in GAUSSIAN_TENSORS}
        return ImageVJP(gradient, outer, blended)

    def image_of(self, gaussians: Gaussians, camera: Camera, options: RenderOptions) -> Tensor:
        """Return the image, differentiably."""
        return render_reference(gaussians, camera, options).image


_SPLAT_FLOATS = tuple(field.name for field in fields(Splats) if field.name != "index")


def _splat_leaves(splats: Splats) -> Splats:
    """Return the splats cut off from the projection's graph, as leaves of their own."""
    tensors = {name: getattr(splats, name).detach().requires_grad_() for name in _SPLAT_FLOATS}
    return Splats(index=splats.index, **tensors)


def _render_blocks(splats: Splats, camera: Camera, options: RenderOptions) -> tuple[Rendering, Tensor]:
    """Return the view and which splats were blended into it."""
    size = (camera.height, camera.width)
    image, alpha, depth = (splats.means.new_zeros(*size, 3), splats.means.new_zeros(size), splats.means.new_zeros(size))
    blended = torch.zeros_like(splats.index, dtype=torch.bool)
    for rows, columns in image_blocks(camera):
        chosen = overlapping(splats, rows, columns)
        near = splats.take(chosen)
        blend = blend_splats(near, pixel_centers(near.means, rows, columns))
        block = (slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        shape = (len(rows), len(columns))
        image[block] = over_background(blend, options).reshape(*shape, 3)
        alpha[block] = 1 - blend.transmittance.reshape(shape)
        depth[block] = blend.depth.reshape(shape)
        blended[chosen[blend.blended]] = True
    return Rendering(image=image, alpha=alpha, depth=depth), blended
