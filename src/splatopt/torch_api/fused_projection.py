"""Projection alone, as gsplat's function of that name gives it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.torch_api import arguments
from splatopt.torch_api.covariances import full_covariances
from splatopt.torch_api.plain_rows import PinholeCameras, PlainGaussians
from splatopt.torch_api.projection import project


def fully_fused_projection(
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor | None,
    scales: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,  # noqa: N803 - gsplat's name
    width: int,
    height: int,
    eps2d: float = 0.3,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    packed: bool = False,
    sparse_grad: bool = False,
    calc_compensations: bool = False,
    camera_model: Literal["pinhole", "ortho", "fisheye", "ftheta"] = "pinhole",
    opacities: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Project N Gaussians onto the images of C cameras, in gsplat 1.5's signature and with its results.

    Centres are K (W μ + t), conics xx, xy and yy of (J W Σ Wᵀ Jᵀ + eps2d)⁻¹, J the projection's derivative, and
    compensations √(det before / after eps2d). Differentiable in means, covars (xx, xy, xz, yy, yz, zz, (N, 6)), quats,
    scales and viewmats; units are those of ``rasterization``. Bounds end where α falls to 1/255, or without opacities
    at 3.33 standard deviations. ``sparse_grad`` and cameras other than pinholes are refused.

    Returns:
        Radii (C, N, 2) int32, centres (C, N, 2), depths (C, N), conics (C, N, 3), compensations (C, N) or None; zeros
        where a row is left out. Packed: batch, camera and row numbers, (rows,), and these as (rows, …).

    Raises:
        InputError: What is asked for is not supported, or shapes do not fit.
    """
    arguments.refuse_unsupported({"sparse_grad": sparse_grad})
    arguments.check_camera_model(camera_model)
    arguments.check_size(width, height)
    cameras = PinholeCameras(viewmats, Ks, width, height, near_plane, far_plane, radius_clip, low_pass=eps2d)
    cameras = replace(cameras, antialiased=calc_compensations and opacities is not None)
    rows = project(_gaussians(cameras, means, covars, (quats, scales), opacities), cameras)
    ids: tuple[Tensor, ...] = ()
    if packed:
        index = rows.drawn.reshape(-1).nonzero().squeeze(1)
        rows, ids = rows.take(index), (torch.zeros_like(index), index // means.shape[0], index % means.shape[0])
    return *ids, rows.radii, rows.means2d, rows.depths, rows.conics, rows.compensations if calc_compensations else None


def _gaussians(
    cameras: PinholeCameras,
    means: Tensor,
    covars: Tensor | None,
    shapes: tuple[Tensor | None, Tensor | None],
    opacities: Tensor | None,
) -> PlainGaussians:
    """Return the Gaussians, of which types and shapes are checked; opaque where nobody says how much they are."""
    rows = means.shape[0]
    if covars is not None:
        if covars.shape != (rows, 6):
            raise InputError(f"covars must be ({rows}, 6), got {tuple(covars.shape)}")
        shapes, covars = (None, None), full_covariances(covars)
    tensors: dict[str, Tensor | None] = {"means": means, "quats": shapes[0], "scales": shapes[1], "covars": covars}
    tensors |= {"opacities": opacities, "viewmats": cameras.viewmats, "Ks": cameras.intrinsics}
    arguments.check_tensors(tensors)
    arguments.check_shapes(tensors)
    return PlainGaussians(means, *shapes, means.new_ones(rows) if opacities is None else opacities, covars)
