"""Gaussians onto the images of several cameras, as gsplat projects them: a native pass, and its PyTorch twin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from splatopt.core import native
from splatopt.core.schema import rotation_matrices
from splatopt.raster.constants import FRUSTUM_MARGIN, MIN_ALPHA
from splatopt.raster.cpu import native_constants
from splatopt.torch_api.arguments import TILE_SIZE
from splatopt.torch_api.harmonics import empty_gradient, seen_colors
from splatopt.torch_api.plain_rows import Harmonics, PinholeCameras, PlainGaussians, ProjectedRows
from splatopt.torch_api.workers import HeldViews, native_module, torch_workers, uses_native

MAX_EXTENT = 3.33
"""Half sides of a row's box end at so many standard deviations, as gsplat's; α of an opacity of 1 ends at 3.329."""


def project(gaussians: PlainGaussians, cameras: PinholeCameras) -> ProjectedRows:
    """Project N Gaussians onto C images, (C, N, …).

    The formulas are those of :func:`~splatopt.raster.reference_projection.project_reference`. Float32 takes a native
    pass unless there are covariances; all else takes PyTorch. Differentiable in means, quaternions, scales,
    covariances, coefficients of harmonics and world-to-camera matrices.
    """
    harmonics = gaussians.harmonics
    if gaussians.covariances is None and uses_native(gaussians.means):
        shapes = gaussians.means, gaussians.quats, gaussians.scales, cameras.viewmats
        coefficients = None if harmonics is None else harmonics.coefficients.to(gaussians.means.dtype)
        return ProjectedRows(*_NativeProjection.apply(*shapes, coefficients, gaussians, cameras))
    rows = project_with_torch(gaussians, cameras)
    if harmonics is None:
        return rows
    directions = gaussians.means[None] - torch.inverse(cameras.viewmats)[:, None, :3, 3]
    return replace(rows, colors=seen_colors(harmonics.degree, harmonics.coefficients, directions, rows.drawn))


def _image_covariances(gaussians: PlainGaussians, to_image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return xx, xy, yy of T Σ Tᵀ and their determinant, (C, N) each, of T = J W, (C, N, 2, 3)."""
    if gaussians.covariances is not None:
        projected = to_image @ gaussians.covariances @ to_image.transpose(-1, -2)
        xx, xy, yy = projected[..., 0, 0], projected[..., 0, 1], projected[..., 1, 1]
        return xx, xy, yy, (xx * yy - xy * xy).clamp_min(0)
    assert gaussians.quats is not None
    assert gaussians.scales is not None
    across, down = (to_image @ (rotation_matrices(gaussians.quats) * gaussians.scales[:, None, :])).unbind(dim=-2)
    area = torch.linalg.cross(across, down, dim=-1)
    return (across * across).sum(-1), (across * down).sum(-1), (down * down).sum(-1), (area * area).sum(-1)


def _to_image(cameras: PinholeCameras, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return J W, (C, N, 2, 3), and the centres, (C, N, 2), of points (C, N, 3) in the cameras' axes."""
    x, y, z = point.unbind(dim=-1)
    focal = [cameras.intrinsics[:, i, i, None] for i in (0, 1)]
    middle = [cameras.intrinsics[:, i, 2, None] for i in (0, 1)]
    slopes = []
    for ratio, f, c, side in zip((x / z, y / z), focal, middle, (cameras.width, cameras.height), strict=True):
        margin = FRUSTUM_MARGIN * 0.5 * side / f
        slopes.append(torch.minimum(torch.maximum(ratio, -(c / f + margin)), (side - c) / f + margin))
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [
            torch.stack([focal[0] / z, zero, -focal[0] * slopes[0] / z], dim=-1),
            torch.stack([zero, focal[1] / z, -focal[1] * slopes[1] / z], dim=-1),
        ],
        dim=-2,
    )
    centers = torch.stack([focal[0] * x / z + middle[0], focal[1] * y / z + middle[1]], dim=-1)
    return jacobian @ cameras.viewmats[:, None, :3, :3], centers


def project_with_torch(gaussians: PlainGaussians, cameras: PinholeCameras) -> ProjectedRows:
    """Project in plain PyTorch, in any float type."""
    rotation, translation = cameras.viewmats[:, :3, :3], cameras.viewmats[:, :3, 3]
    point = torch.einsum("cij,nj->cni", rotation, gaussians.means) + translation[:, None]
    front = (point[..., 2] > cameras.near_plane) & (point[..., 2] <= cameras.far_plane)
    ahead = torch.tensor([0.0, 0.0, 1.0], dtype=point.dtype, device=point.device)
    point = torch.where(front[..., None], point, ahead)
    to_image, centers = _to_image(cameras, point)
    xx, xy, yy, before = _image_covariances(gaussians, to_image)
    after = before + cameras.low_pass * (xx + yy) + cameras.low_pass**2
    xx, yy = xx + cameras.low_pass, yy + cameras.low_pass
    sound = front & (after > 0) & torch.isfinite(after)
    one = torch.ones_like(after)
    xx, yy, after = (torch.where(sound, value, one) for value in (xx, yy, after))
    flat = before <= torch.finfo(before.dtype).tiny * after
    compensations = torch.where(flat, torch.zeros_like(one), (torch.where(flat, one, before) / after).sqrt())
    radii = _radii(gaussians, cameras, centers, (xx, yy, compensations))
    radii = torch.where(sound[..., None], radii, torch.zeros_like(radii))
    drawn = (radii > 0).all(dim=-1)
    across = (yy / after).sqrt()
    factors = torch.stack([across, -across * xy / yy, yy.rsqrt()], dim=-1)
    drawn_pairs = drawn[..., None]
    means2d = torch.where(drawn_pairs, centers, torch.zeros_like(centers))
    factors = torch.where(drawn_pairs, factors, torch.zeros_like(factors))
    return ProjectedRows(
        radii=radii,
        means2d=means2d,
        factors=factors,
        conics=_conics(factors),
        tiles=_tiles_of_boxes(radii, means2d.detach(), cameras),
        depths=torch.where(drawn, point[..., 2], torch.zeros_like(one)),
        compensations=torch.where(drawn, compensations, torch.zeros_like(one)),
    )


def _conics(factors: Tensor) -> Tensor:
    """Return UᵀU."""
    xx, xy, yy = factors.unbind(dim=-1)
    return torch.stack([xx * xx, xx * xy, xy * xy + yy * yy], dim=-1)


def _tiles_of_boxes(radii: Tensor, centers: Tensor, cameras: PinholeCameras) -> Tensor:
    """Return how many tiles each row's box meets, (…) int32."""
    tiles = centers.new_tensor([-(-cameras.width // TILE_SIZE), -(-cameras.height // TILE_SIZE)])
    half = radii.to(centers)
    low, high = ((centers - half) / TILE_SIZE).floor().clamp_min(0), ((centers + half) / TILE_SIZE).ceil()
    sides = (high.minimum(tiles) - low).to(torch.int32)
    return sides[..., 0] * sides[..., 1] * (radii[..., 0] > 0)


@torch.no_grad()
def _radii(
    gaussians: PlainGaussians, cameras: PinholeCameras, centers: Tensor, measures: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Return the half sides of the boxes, 0 where a row reaches nothing of the image."""
    xx, yy, compensations = measures
    opacities = gaussians.opacities * compensations if cameras.antialiased else gaussians.opacities.expand_as(xx)
    extent = (2 * (opacities / MIN_ALPHA).clamp_min(1).log()).sqrt().clamp_max(MAX_EXTENT)
    box = (extent[..., None] * torch.stack([xx, yy], dim=-1).sqrt()).ceil()
    size = box.new_tensor([cameras.width, cameras.height])
    inside = ((centers + box > 0) & (centers - box < size)).all(dim=-1)
    reaches = inside & (opacities >= MIN_ALPHA) & (box > cameras.radius_clip).any(dim=-1)
    return torch.where(reaches[..., None], box.clamp_max(1e9), torch.zeros_like(box)).to(torch.int32)


class _NativeProjection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        viewmats: Tensor,
        coefficients: Tensor | None,
        gaussians: PlainGaussians,
        cameras: PinholeCameras,
    ) -> tuple[Tensor | None, ...]:
        rows = (viewmats.shape[0], means.shape[0])
        radii, tiles = torch.empty(*rows, 2, dtype=torch.int32), torch.empty(rows, dtype=torch.int32)
        means2d, (factors, conics) = means.new_empty(*rows, 2), means.new_empty(2, *rows, 3).unbind()
        depths, compensations = means.new_empty(2, *rows).unbind()
        colors = None if coefficients is None else means.new_empty(*rows, 3)
        ctx.cameras = cameras
        ctx.rows = tuple(tensor.detach().contiguous() for tensor in (means, quats, scales, gaussians.opacities))
        module, limits = native_module(), (cameras.far_plane, cameras.radius_clip)
        pointers, workers, constants = module.PlainRows(*ctx.rows), torch_workers(), _constants(cameras)
        ctx.held = HeldViews([native_view(cameras, view) for view in range(rows[0])])
        for view, camera in enumerate(ctx.held.views):
            floats = (tensor[view] for tensor in (means2d, factors, conics, depths, compensations))
            into = module.PlainSplats(*floats, radii[view], tiles[view])
            workers.project_rows(constants, camera, limits, pointers, into)
        ctx.harmonics = None
        if gaussians.harmonics is not None and coefficients is not None and colors is not None:
            drawn = radii[..., 0] > 0
            ctx.harmonics = Harmonics(gaussians.harmonics.degree, coefficients.detach().contiguous())
            for view in range(rows[0]):
                workers.harmonics(_harmonic_rows(ctx, view, drawn[view]), colors[view])
        ctx.save_for_backward(means, quats, scales, viewmats, coefficients, radii, factors, colors)
        ctx.mark_non_differentiable(radii, tiles)
        ctx.set_materialize_grads(False)
        return radii, means2d, factors, conics, depths, compensations, tiles, colors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _radii: None, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        *_, radii, factors, colors = ctx.saved_tensors
        of_centers, of_factors, of_conics, of_depths, of_compensations, _, of_colors = gradients
        if of_conics is not None:
            of_factors = _factors_gradient(factors, of_conics, of_factors)
        module, pointers, workers = native_module(), native_module().PlainRows(*ctx.rows), torch_workers()
        into = [torch.zeros_like(tensor) for tensor in ctx.rows[:3]]
        poses = np.zeros((len(radii), 4, 4))
        given = [
            None if one is None else one.contiguous() for one in (of_centers, of_factors, of_depths, of_compensations)
        ]
        constants, of_coefficients = _constants(ctx.cameras), None
        if ctx.harmonics is not None and of_colors is not None:
            of_colors = of_colors.contiguous()
            of_coefficients, drawn = empty_gradient(ctx.harmonics.coefficients, len(radii)), radii[..., 0] > 0
            for view in range(len(radii)):
                shared, rows = of_coefficients.ndim == 3, _harmonic_rows(ctx, view, drawn[view])
                put = of_coefficients if shared else of_coefficients[view]
                moved = workers.harmonics_backward(
                    rows, colors[view], of_colors[view], into[0], put, not shared or view == 0
                )
                poses[view] += _moved_center(ctx.cameras, view, moved)
        for view, camera in enumerate(ctx.held.views):
            of_view = module.PlainSplatGradients(*(None if one is None else one[view] for one in given), radii[view])
            numbers = workers.project_rows_backward(constants, camera, pointers, of_view, *into)
            poses[view, :3, :3] += np.reshape(numbers[:9], (3, 3))
            poses[view, :3, 3] += numbers[9:]
        return *into, torch.from_numpy(poses).to(into[0]), of_coefficients, None, None


def _factors_gradient(factors: Tensor, of_conics: Tensor, of_factors: Tensor | None) -> Tensor:
    """Return ∂L/∂U with what ∂L/∂(UᵀU) adds to it."""
    (xx, xy, yy), (of_xx, of_xy, of_yy) = factors.unbind(dim=-1), of_conics.unbind(dim=-1)
    through = torch.stack([2 * xx * of_xx + xy * of_xy, xx * of_xy + 2 * xy * of_yy, 2 * yy * of_yy], dim=-1)
    return through if of_factors is None else of_factors + through


def _constants(cameras: PinholeCameras) -> native.Native:
    return native_constants(near_plane=cameras.near_plane, low_pass=cameras.low_pass)


def _harmonic_rows(ctx: Any, view: int, drawn: Tensor) -> native.Native:
    """Return the pointers to what gives drawn rows their colours in a view; ``ctx`` keeps the tensors alive."""
    means, coefficients = ctx.rows[0], ctx.harmonics.coefficients
    of_view = coefficients if coefficients.ndim == 3 else coefficients[view]
    return native_module().HarmonicRows(ctx.harmonics.degree, means, of_view, drawn, ctx.cameras.centers[view].tolist())


def _moved_center(cameras: PinholeCameras, view: int, directions: list[float]) -> np.ndarray:
    """Return ∂L/∂(world to camera), (4, 4), of Σ ∂L/∂direction: what is seen from c, V⁻¹'s last column, along μ - c."""
    center, summed = cameras.centers[view], np.asarray(directions)
    through = np.linalg.solve(cameras.poses[view, :3, :3].T, summed)
    return np.outer(np.append(through, center @ summed), np.append(center, 1.0))


def native_view(cameras: PinholeCameras, view: int) -> native.Native:
    """Return one camera as the native module takes it."""
    fx, _, cx, _, fy, cy = cameras.intrinsics[view].detach().double()[:2].reshape(-1).tolist()
    return native_module().View(
        rotation=cameras.poses[view, :3, :3].ravel().tolist(),
        center=cameras.centers[view].tolist(),
        intrinsics=[fx, fy, cx, cy],
        width=cameras.width,
        height=cameras.height,
        background=[0.0, 0.0, 0.0],
        antialiased=cameras.antialiased,
    )
