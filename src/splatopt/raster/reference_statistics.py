"""Statistics of rows by the reference renderer, straight from their definitions.

:mod:`splatopt.core.row_statistics` has these. What a gradient pass has of a row follows from the gradient of its splat,
which autograd has left there; sums over pixels are formed pair by pair.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from splatopt.core.row_statistics import ErrorMap, GradientStatistics
from splatopt.core.schema import GAUSSIAN_TENSORS, GaussianTensors
from splatopt.raster.constants import MAX_ALPHA
from splatopt.raster.problem import ViewProblem
from splatopt.raster.reference_blend import (
    blend_splats,
    image_blocks,
    over_background,
    overlapping,
    pixel_centers,
    unclamped_alpha,
)
from splatopt.raster.reference_products import ImageVJP
from splatopt.raster.reference_projection import Splats, project_reference
from splatopt.raster.types import Gaussians

_SUMS = ("weight", "max_weight", "pixels", "error", "weighted_error", "weighted_squared_error")


def center_jacobian(gaussians: Gaussians, problem: ViewProblem) -> Tensor:
    """Return P = ∂m/∂μ of each Gaussian, (N, 2, 3), pixels per world unit.

    It is the centre's own derivative: nothing is clamped in it, as it is where the covariance is projected.
    """
    tensors = GaussianTensors(*(getattr(gaussians, name).detach() for name in GAUSSIAN_TENSORS))

    def centers(means: Tensor) -> Tensor:
        splats = project_reference(tensors._replace(means=means), problem.camera, problem.options)
        return splats.means[torch.argsort(splats.index)]

    means = tensors.means
    axes = torch.eye(3, dtype=means.dtype, device=means.device)
    with torch.no_grad():
        columns = [torch.func.jvp(centers, (means,), (axis.expand_as(means),))[1] for axis in axes]
    return torch.stack(columns, dim=2)


def add_gradient_statistics(
    observed: GradientStatistics, gaussians: Gaussians, problem: ViewProblem, found: ImageVJP, along: Tensor
) -> None:
    """Add one view's statistics to those of the Gaussians that it drew.

    Args:
        observed: What is added to.
        gaussians: What was rendered.
        problem: The view.
        found: The image's gradient taken back, the splats with theirs.
        along: The view's ∂L/∂C, (H, W, 3).
    """
    camera, splats, drawn = problem.camera, found.splats, found.blended
    rows = splats.index[drawn]
    half_size = splats.means.new_tensor([camera.width / 2, camera.height / 2])
    observed.views[rows] += 1
    observed.gradient[rows] += (half_size * _gradient_of(splats.means)[drawn]).norm(dim=1)
    radii = _long_axes(splats.covariances.detach()[drawn]) * 3 / max(camera.width, camera.height)
    observed.max_radius[rows] = torch.maximum(observed.max_radius[rows], radii)
    if observed.absolute is not None:
        observed.absolute[rows] += (half_size * _absolute_gradient(splats, problem, along)[drawn]).norm(dim=1)
    if observed.splitting is not None:
        on_image = _image_splitting(splats)[drawn]
        jacobian = center_jacobian(gaussians, problem)[rows]
        in_world = jacobian.transpose(1, 2) @ on_image @ jacobian
        row, column = torch.triu_indices(3, 3)
        observed.splitting[rows] += in_world[:, row, column]


def _gradient_of(leaf: Tensor) -> Tensor:
    """Return the gradient that a leaf holds, zeros where it holds none."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _long_axes(covariances: Tensor) -> Tensor:
    """Return the greater standard deviation of covariances xx, xy, yy, (N,)."""
    xx, xy, yy = covariances.unbind(dim=1)
    return ((xx + yy) / 2 + torch.hypot((xx - yy) / 2, xy)).sqrt()


def _symmetric(entries: Tensor) -> Tensor:
    """Return (N, 2, 2) matrices of entries xx, xy, yy, (N, 3)."""
    return entries[:, [0, 1, 1, 2]].reshape(-1, 2, 2)


def _image_splitting(splats: Splats) -> Tensor:
    """Return S₂D = 2 ∂L/∂Σ₂D - (o ∂L/∂o) Q, (N, 2, 2), with ∂L/∂Σ₂D = -Q (∂L/∂Q) Q."""
    conic = _symmetric(splats.conics.detach())
    # The entry xy stands in the matrix twice.
    of_conic = _symmetric(_gradient_of(splats.conics) * splats.means.new_tensor([1.0, 0.5, 1.0]))
    of_opacity = splats.opacities.detach() * _gradient_of(splats.opacities)
    return -2 * conic @ of_conic @ conic - of_opacity[:, None, None] * conic


def _absolute_gradient(splats: Splats, problem: ViewProblem, along: Tensor) -> Tensor:
    """Return Σ_p |∂L_p/∂m| by component, (N, 2): each pixel has centres of its own as leaves."""
    fixed = Splats(**{name: value.detach() for name, value in vars(splats).items()})
    total = torch.zeros_like(fixed.means)
    for rows, columns in image_blocks(problem.camera):
        chosen = overlapping(fixed, rows, columns)
        if not len(chosen):
            continue
        near = fixed.take(chosen)
        pixels = pixel_centers(near.means, rows, columns)
        gradient = along[rows.start : rows.stop, columns.start : columns.stop].reshape(-1, 3)
        with torch.enable_grad():
            own = near.means.expand(len(pixels), *near.means.shape).clone().requires_grad_()
            color = over_background(blend_splats(replace(near, means=own), pixels), problem.options)
            (of_pixels,) = torch.autograd.grad(color, own, gradient)
        total[chosen] += of_pixels.abs().sum(dim=0)
    return total


def view_statistics(gaussians: Gaussians, problem: ViewProblem, image: Tensor, error: ErrorMap) -> dict[str, Tensor]:
    """Return the fields of RowStatistics for one view.

    Args:
        gaussians: What was rendered.
        problem: The view.
        image: What was rendered of it, (H, W, 3).
        error: Makes the image of errors.
    """
    with torch.no_grad():
        splats = project_reference(gaussians, problem.camera, problem.options)
    errors = problem.errors(image, error)
    _, along = problem.loss_gradient(image)
    counted = problem.counted(image).to(image)
    count = len(splats.depths)
    found = {name: image.new_zeros(count) for name in _SUMS}
    cross = image.new_zeros(count, 2, 3)
    for rows, columns in image_blocks(problem.camera):
        chosen = overlapping(splats, rows, columns)
        if not len(chosen):
            continue
        block = (slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        near = splats.take(chosen)
        pixels = pixel_centers(near.means, rows, columns)
        w = blend_splats(near, pixels).weights * counted[block].reshape(-1, 1)
        e = errors[block].reshape(-1, 1)
        sums = (w, None, w > 0, e * (w > 0), w * e, w * e * e)
        for name, pairs in zip(_SUMS, sums, strict=True):
            if pairs is not None:
                found[name][chosen] += pairs.sum(dim=0)
        found["max_weight"][chosen] = torch.maximum(found["max_weight"][chosen], w.amax(dim=0))
        cross[chosen] += _image_cross(near, pixels, w, along[block].reshape(-1, 3))
    unsort = torch.argsort(splats.index)
    in_world = center_jacobian(gaussians, problem).transpose(1, 2) @ cross[unsort]
    # What is not drawn may lie where its derivative is no number.
    in_world = torch.where(found["pixels"][unsort][:, None, None] > 0, in_world, torch.zeros_like(in_world))
    return {name: sums[unsort] for name, sums in found.items()} | {"color_cross": in_world}


def _image_cross(splats: Splats, pixels: Tensor, weights: Tensor, along: Tensor) -> Tensor:
    """Return Σ_p w Qd (∂L/∂C_p)ᵀ over some pixels, (N, 2, 3); pairs whose α is clamped have no part in it."""
    passing = torch.where(unclamped_alpha(splats, pixels) <= MAX_ALPHA, weights, torch.zeros_like(weights))
    offsets = pixels[:, None, :] - splats.means
    slopes = (_symmetric(splats.conics) @ offsets[:, :, :, None])[:, :, :, 0]
    return torch.einsum("pn,pni,pc->nic", passing, slopes, along)
