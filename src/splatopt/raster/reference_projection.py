"""From Gaussians in the world to splats on the image, in plain differentiable PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.constants import SH_C0
from splatopt.core.schema import sh_degree_of, unit_rotation_matrices
from splatopt.raster.constants import FRUSTUM_MARGIN, LOW_PASS, MIN_ALPHA, NEAR_PLANE
from splatopt.raster.spherical_harmonics import spherical_harmonics_basis
from splatopt.raster.types import Footprint, Gaussians, RenderOptions


@dataclass(frozen=True)
class Splats:
    """Gaussians as one camera sees them, front to back.

    Attributes:
        index: Row of the cloud that each splat comes from, (N,), int64.
        means: Centres on the image, (N, 2), pixels.
        covariances: Entries xx, xy, yy of the covariance, low-pass included, (N, 3), pixels².
        conics: Entries xx, xy, yy of the covariance's inverse, (N, 3), pixels⁻².
        opacities: Peak opacities, (N,); 0 for what lies before the near plane.
        colors: Colours seen from this camera, (N, 3).
        depths: Camera z of the centres, (N,), world units.
    """

    index: Tensor
    means: Tensor
    covariances: Tensor
    conics: Tensor
    opacities: Tensor
    colors: Tensor
    depths: Tensor

    def take(self, rows: Tensor) -> Splats:
        """Return the splats at ``rows`` (indices or a mask)."""
        return Splats(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def _unit_quats(quats: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """Return q / ‖q‖, twice differentiable everywhere; a zero quaternion stays one, whose rotation is the identity."""
    squared = (quats * quats).sum(dim=1, keepdim=True)
    # where() on both sides: the square root's derivative at zero never meets the graph.
    return quats / torch.where(squared > 0, squared, torch.ones_like(squared)).sqrt()


def view_colors(gaussians: Gaussians, rays: Float[Tensor, "n 3"], sh_degree: int | None) -> Float[Tensor, "n 3"]:
    """Return max(0, SH(direction) + 0.5), the colours seen along ``rays`` (any length, not zero)."""
    stored = sh_degree_of(gaussians.sh_rest)
    degree = stored if sh_degree is None else min(stored, sh_degree)
    directions = rays / rays.norm(dim=1, keepdim=True)
    basis = spherical_harmonics_basis(directions, degree)
    rest = gaussians.sh_rest[:, : basis.shape[1]]
    return (SH_C0 * gaussians.sh_dc + (basis[:, :, None] * rest).sum(dim=1) + 0.5).clamp_min(0)


def _clamped_slopes(x: Tensor, y: Tensor, z: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """Return x/z and y/z, held to the image plus a margin, where the Jacobian is taken."""
    margin_x = FRUSTUM_MARGIN * 0.5 * camera.width / camera.fx
    margin_y = FRUSTUM_MARGIN * 0.5 * camera.height / camera.fy
    slope_x = (x / z).clamp(-(camera.cx / camera.fx + margin_x), (camera.width - camera.cx) / camera.fx + margin_x)
    slope_y = (y / z).clamp(-(camera.cy / camera.fy + margin_y), (camera.height - camera.cy) / camera.fy + margin_y)
    return slope_x, slope_y


def _opacity_compensation(before: Tensor, after: Tensor) -> Tensor:
    """Return √(det before / det after), exactly 0 where no opacity could still reach 1/255."""
    matters = before > 0.5 * MIN_ALPHA**2 * after
    ratio = torch.where(matters, before / after, torch.ones_like(before))
    return torch.where(matters, ratio.sqrt(), torch.zeros_like(before))


def _image_axes(
    gaussians: Gaussians, rotation: Float[Tensor, "3 3"], place: tuple[Tensor, Tensor, Tensor], camera: Camera
) -> Float[Tensor, "n 2 3"]:
    """Return M = J W R(q) diag(exp(log_scales)) of Gaussians at ``place`` (x, y, z) in the camera's axes."""
    x, y, z = place
    slope_x, slope_y = _clamped_slopes(x, y, z, camera)
    zero = torch.zeros_like(z)
    row_x = torch.stack([camera.fx / z, zero, -camera.fx * slope_x / z], dim=1)
    row_y = torch.stack([zero, camera.fy / z, -camera.fy * slope_y / z], dim=1)
    jacobian = torch.stack([row_x, row_y], dim=1)
    axes = unit_rotation_matrices(_unit_quats(gaussians.quats)) * gaussians.log_scales.exp()[:, None, :]
    return jacobian @ rotation @ axes


def project_reference(gaussians: Gaussians, camera: Camera, options: RenderOptions) -> Splats:
    """Project Gaussians as EWA splatting does and sort them by camera z, ties by row.

    With p = W·mean + t = (x, y, z): centre (fx·x/z + cx, fy·y/z + cy); covariance
    M Mᵀ + 0.3·I with M = J W R(q) diag(exp(log_scales)) and the projection's Jacobian J
    = [[fx/z, 0, -fx·x/z²], [0, fy/z, -fy·y/z²]], in which x/z and y/z are clamped to the image plus
    a margin. All rows stay, those before the near plane with opacity 0, so that shapes do not depend
    on data and function transforms apply.

    The determinant is that of M Mᵀ, |row₁ × row₂|², plus 0.3·trace + 0.09: unlike xx·yy - xy² it
    cancels nothing, even for needles.

    Args:
        gaussians: N Gaussians.
        camera: From where.
        options: Footprint and degree are read.

    Returns:
        N splats, front to back.
    """
    means = gaussians.means
    pose = camera.world_to_camera.to(means)
    rotation, translation = pose[:3, :3], pose[:3, 3]
    seen = means @ rotation.T + translation
    valid = seen[:, 2] > NEAR_PLANE
    x, y = seen[:, 0], seen[:, 1]
    z = torch.where(valid, seen[:, 2], torch.ones_like(x))
    centers = torch.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], dim=1)

    across, down = _image_axes(gaussians, rotation, (x, y, z), camera).unbind(dim=1)
    xx, xy, yy = (across * across).sum(1), (across * down).sum(1), (down * down).sum(1)
    before = torch.linalg.cross(across, down).square().sum(1)
    after = before + LOW_PASS * (xx + yy) + LOW_PASS**2
    xx, yy = xx + LOW_PASS, yy + LOW_PASS

    opacities = torch.sigmoid(gaussians.logit_opacities)
    if options.footprint is Footprint.ANTIALIASED:
        opacities = opacities * _opacity_compensation(before, after)
    ahead = torch.tensor([0.0, 0.0, 1.0], dtype=means.dtype, device=means.device)
    rays = torch.where(valid[:, None], means - camera.center.to(means), ahead)
    order = torch.argsort(z.detach(), stable=True)
    return Splats(
        index=order,
        means=centers[order],
        covariances=torch.stack([xx, xy, yy], dim=1)[order],
        conics=torch.stack([yy / after, -xy / after, xx / after], dim=1)[order],
        opacities=torch.where(valid, opacities, torch.zeros_like(z))[order],
        colors=view_colors(gaussians, rays, options.sh_degree)[order],
        depths=z[order],
    )
