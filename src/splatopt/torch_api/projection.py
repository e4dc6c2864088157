"""Gaussians onto the images of several cameras, as gsplat projects them: a native pass, and its PyTorch twin."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from splatopt.core import native
from splatopt.core.schema import rotation_matrices
from splatopt.raster.constants import FRUSTUM_MARGIN, MIN_ALPHA
from splatopt.raster.cpu import native_constants
from splatopt.torch_api.workers import HeldViews, native_module, torch_workers, uses_native

MAX_EXTENT = 3.33
"""Half sides of a row's box end at so many standard deviations, as gsplat's; α of an opacity of 1 ends at 3.329."""


@dataclass(frozen=True)
class PlainGaussians:
    """N Gaussians as gsplat holds them, activated; either covariances or quaternions and scales.

    Attributes:
        means: Centres, (N, 3).
        quats: Rotations wxyz of any length, (N, 4), or None.
        scales: Standard deviations along the axes, (N, 3), or None.
        opacities: (N,); they decide what is drawn, and no gradient passes to them here.
        covariances: (N, 3, 3), or None.
    """

    means: Float[Tensor, "n 3"]
    quats: Float[Tensor, "n 4"] | None
    scales: Float[Tensor, "n 3"] | None
    opacities: Float[Tensor, " n"]
    covariances: Float[Tensor, "n 3 3"] | None = None


@dataclass(frozen=True)
class PinholeCameras:
    """C cameras of one image size, and which Gaussians they leave out.

    Attributes:
        viewmats: World to camera, (C, 4, 4); the rotation's entries are taken as they are.
        intrinsics: (C, 3, 3), of which fx, fy, cx and cy are read.
        width: Pixels.
        height: Pixels.
        near_plane: What lies nearer along z is not drawn.
        far_plane: What lies further along z is not drawn.
        radius_clip: What reaches no further than so many pixels is not drawn.
        low_pass: Added to the diagonal of the projected covariances, pixels².
        antialiased: Whether opacities are compensated for the low-pass.
    """

    viewmats: Float[Tensor, "c 4 4"]
    intrinsics: Float[Tensor, "c 3 3"]
    width: int
    height: int
    near_plane: float = 0.01
    far_plane: float = 1e10
    radius_clip: float = 0.0
    low_pass: float = 0.3
    antialiased: bool = False


@dataclass(frozen=True)
class ProjectedRows:
    """Rows as cameras see them, zeros where a row is not drawn; (C, N, …), or (rows, …) where packed.

    Attributes:
        radii: Half sides of the box outside of which α is below 1/255, (…, 2) int32, whole pixels.
        means2d: Centres, (…, 2), pixels.
        factors: xx, xy and yy of the upper triangular U with UᵀU = Σ⁻¹, (…, 3), pixels⁻¹. Unlike the entries of Σ⁻¹
            they keep the digits of needles.
        depths: Camera z, (…).
        compensations: √(det Σ before / after the low-pass), (…).
    """

    radii: Int[Tensor, "*rows 2"]
    means2d: Float[Tensor, "*rows 2"]
    factors: Float[Tensor, "*rows 3"]
    depths: Float[Tensor, "*rows"]
    compensations: Float[Tensor, "*rows"]

    @cached_property
    def drawn(self) -> Tensor:
        """Which rows are drawn, (…) bool; either both radii are positive or none is."""
        return self.radii[..., 0] > 0

    @property
    def conics(self) -> Tensor:
        """Entries xx, xy and yy of Σ⁻¹, (…, 3), pixels⁻²."""
        return _Conics.apply(self.factors)

    def flattened(self) -> ProjectedRows:
        """Return the rows of all cameras one after the other, (rows, …)."""
        radii, means2d, factors = self.radii.reshape(-1, 2), self.means2d.reshape(-1, 2), self.factors.reshape(-1, 3)
        return ProjectedRows(radii, means2d, factors, self.depths.reshape(-1), self.compensations.reshape(-1))

    def take(self, rows: Tensor) -> ProjectedRows:
        """Return these of the flattened rows, each at most once."""
        flat = self.flattened()
        return ProjectedRows(**{field.name: take_rows(getattr(flat, field.name), rows) for field in fields(flat)})


def take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a tensor, each of which is asked for at most once; indexing's backward pass would sort them."""
    return _TakeRows.apply(tensor, rows) if tensor.is_floating_point() else tensor[rows]


class _Conics(torch.autograd.Function):
    """UᵀU, without a tensor for each product: few ask for it."""

    @staticmethod
    def forward(ctx: Any, factors: Tensor) -> Tensor:
        ctx.save_for_backward(factors)
        xx, xy, yy = factors.unbind(dim=-1)
        conics = torch.empty_like(factors)
        torch.mul(xx, xx, out=conics[..., 0])
        torch.mul(xx, xy, out=conics[..., 1])
        torch.mul(xy, xy, out=conics[..., 2]).addcmul_(yy, yy)
        return conics

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (factors,) = ctx.saved_tensors
        (xx, xy, yy), (of_xx, of_xy, of_yy) = factors.unbind(dim=-1), gradient.unbind(dim=-1)
        return torch.stack([2 * xx * of_xx + xy * of_xy, xx * of_xy + 2 * xy * of_yy, 2 * yy * of_yy], dim=-1)


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = tensor.shape
        return tensor.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.shape).index_copy(0, rows, gradient), None


def project(gaussians: PlainGaussians, cameras: PinholeCameras) -> ProjectedRows:
    """Project N Gaussians onto C images, (C, N, …).

    The formulas are those of :func:`~splatopt.raster.reference_projection.project_reference`. Float32 takes a native
    pass unless there are covariances; all else takes PyTorch. Differentiable in means, quaternions, scales,
    covariances and world-to-camera matrices.
    """
    if gaussians.covariances is None and uses_native(gaussians.means):
        shapes = gaussians.means, gaussians.quats, gaussians.scales
        return ProjectedRows(*_NativeProjection.apply(*shapes, cameras.viewmats, gaussians.opacities, cameras))
    return project_with_torch(gaussians, cameras)


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
    return ProjectedRows(
        radii=radii,
        means2d=torch.where(drawn_pairs, centers, torch.zeros_like(centers)),
        factors=torch.where(drawn_pairs, factors, torch.zeros_like(factors)),
        depths=torch.where(drawn, point[..., 2], torch.zeros_like(one)),
        compensations=torch.where(drawn, compensations, torch.zeros_like(one)),
    )


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
        opacities: Tensor,
        cameras: PinholeCameras,
    ) -> tuple[Tensor, ...]:
        rows, count = (viewmats.shape[0], means.shape[0]), viewmats.shape[0]
        radii = torch.empty(*rows, 2, dtype=torch.int32)
        means2d, factors = means.new_empty(*rows, 2), means.new_empty(*rows, 3)
        depths, compensations = means.new_empty(2, *rows).unbind()
        ctx.rows = tuple(tensor.detach().contiguous() for tensor in (means, quats, scales, opacities))
        ctx.cameras = cameras
        constants = native_constants(near_plane=cameras.near_plane, low_pass=cameras.low_pass)
        module, limits = native_module(), (cameras.far_plane, cameras.radius_clip)
        pointers = module.PlainRows(*ctx.rows)
        ctx.held = HeldViews([native_view(cameras, view) for view in range(count)])
        for view, camera in enumerate(ctx.held.views):
            into = module.PlainSplats(means2d[view], factors[view], depths[view], compensations[view], radii[view])
            torch_workers().project_rows(constants, camera, limits, pointers, into)
        ctx.save_for_backward(means, quats, scales, viewmats, radii)
        ctx.mark_non_differentiable(radii)
        ctx.set_materialize_grads(False)
        return radii, means2d, factors, depths, compensations

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _radii: None, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        *_, radii = ctx.saved_tensors
        module, pointers = native_module(), native_module().PlainRows(*ctx.rows)
        into = [torch.zeros_like(tensor) for tensor in ctx.rows[:3]]
        poses = []
        given = [None if one is None else one.contiguous() for one in gradients]
        constants = native_constants(near_plane=ctx.cameras.near_plane, low_pass=ctx.cameras.low_pass)
        for view, camera in enumerate(ctx.held.views):
            of_view = module.PlainSplatGradients(*(None if one is None else one[view] for one in given), radii[view])
            poses.append(torch_workers().project_rows_backward(constants, camera, pointers, of_view, *into))
        return *into, _pose_gradients(poses).to(into[0]), None, None


def _pose_gradients(numbers: list[list[float]]) -> Tensor:
    """Return ∂L/∂(world to camera), (C, 4, 4), of those of the rotation, row-major, and the translation."""
    flat = torch.tensor(numbers, dtype=torch.float64)
    upper = torch.cat([flat[:, :9].reshape(-1, 3, 3), flat[:, 9:, None]], dim=2)
    return torch.nn.functional.pad(upper, (0, 0, 0, 1))


def native_view(cameras: PinholeCameras, view: int) -> native.Native:
    """Return one camera as the native module takes it."""
    pose = cameras.viewmats[view].detach().double()
    fx, _, cx, _, fy, cy = cameras.intrinsics[view].detach().double()[:2].reshape(-1).tolist()
    center = torch.linalg.solve(pose[:3, :3], -pose[:3, 3])
    return native_module().View(
        rotation=pose[:3, :3].reshape(-1).tolist(),
        center=center.tolist(),
        intrinsics=[fx, fy, cx, cy],
        width=cameras.width,
        height=cameras.height,
        background=[0.0, 0.0, 0.0],
        antialiased=cameras.antialiased,
    )
