"""gsplat's ``rasterization`` on a CPU, differentiable in all that gsplat's is, by PyTorch's own autograd."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.torch_api import arguments
from splatopt.torch_api.arguments import TILE_SIZE
from splatopt.torch_api.blending import BlendPlan, blend
from splatopt.torch_api.plain_rows import Harmonics, PinholeCameras, PlainGaussians, ProjectedRows, take_rows
from splatopt.torch_api.projection import project

Meta = dict[str, Any]


def rasterization(
    means: Tensor,
    quats: Tensor | None,
    scales: Tensor | None,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,  # noqa: N803 - gsplat's name
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = TILE_SIZE,
    backgrounds: Tensor | None = None,
    render_mode: Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"] = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: Literal["classic", "antialiased"] = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: Literal["pinhole", "ortho", "fisheye", "ftheta"] = "pinhole",
    segmented: bool = False,
    covars: Tensor | None = None,
    with_ut: bool = False,
    with_eval3d: bool = False,
    radial_coeffs: Tensor | None = None,
    tangential_coeffs: Tensor | None = None,
    thin_prism_coeffs: Tensor | None = None,
    ftheta_coeffs: object = None,
    rolling_shutter: object = None,
    viewmats_rs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Meta]:
    """Render N Gaussians from C cameras, in gsplat 1.5's signature and with its results, on CPU tensors.

    Differentiable in means, quats, scales, covars, opacities, colors, viewmats and backgrounds, through colours, depths
    and alphas. Float32 runs in C++ (covars project in PyTorch), float64 in plain PyTorch over all pairs of pixels and
    Gaussians, for ``gradcheck``. The rendering rule is that of :mod:`splatopt.raster`; docs/torch_api.md has a table of
    the arguments.

    Args:
        means: Centres, (N, 3).
        quats: Rotations wxyz of any length, (N, 4); unused with ``covars``.
        scales: Standard deviations along the axes, (N, 3); unused with ``covars``.
        opacities: (N,), 0 to 1.
        colors: (N, D) or (C, N, D); with ``sh_degree`` coefficients, (N, K, 3) or (C, N, K, 3).
        viewmats: World to camera, (C, 4, 4).
        Ks: Pinhole matrices, (C, 3, 3), pixels; not differentiable.
        width: Pixels.
        height: Pixels.
        near_plane: What lies nearer along z is not drawn, world units.
        far_plane: What lies further along z is not drawn, world units.
        radius_clip: What reaches no further than so many pixels is not drawn.
        eps2d: Added to the diagonal of the projected covariances, pixels².
        sh_degree: 0 to 3: ``colors`` are coefficients, of which those up to this degree are used.
        packed: Whether ``meta`` has the drawn rows alone, (rows, …), or all, (C, N, …) with zeros.
        tile_size: 16.
        backgrounds: (C, D); depths have none.
        render_mode: D is Σ w z, ED that over alpha; they follow the colours as one channel more.
        sparse_grad: Refused.
        absgrad: Whether ``meta["means2d"].absgrad`` is set by a backward pass, Σ over pixels of |∂L_pixel/∂centre|.
        rasterize_mode: antialiased compensates opacities for ``eps2d``.
        channel_chunk: Unused: any number of channels is blended, four at a time.
        distributed: Refused.
        camera_model: "pinhole".
        segmented: Unused: it chooses how gsplat sorts.
        covars: (N, 3, 3), in the place of ``quats`` and ``scales``.
        with_ut: Refused.
        with_eval3d: Refused.
        radial_coeffs: Refused.
        tangential_coeffs: Refused.
        thin_prism_coeffs: Refused.
        ftheta_coeffs: Refused.
        rolling_shutter: Global alone.
        viewmats_rs: Refused.

    Returns:
        Colours (C, H, W, channels), alphas (C, H, W, 1), and what was found on the way: radii, means2d, depths, conics,
        opacities, tiles_per_gauss; batch_ids, camera_ids and gaussian_ids (None unless packed); width, height,
        tile_size, tile_width, tile_height, n_batches, n_cameras.

    Raises:
        InputError: What is asked for is not supported, or shapes do not fit.
    """
    refused: dict[str, object] = {"sparse_grad": sparse_grad, "distributed": distributed, "viewmats_rs": viewmats_rs}
    refused |= {"with_ut": with_ut, "with_eval3d": with_eval3d, "ftheta_coeffs": ftheta_coeffs}
    refused |= {"radial_coeffs": radial_coeffs, "tangential_coeffs": tangential_coeffs}
    arguments.refuse_unsupported({**refused, "thin_prism_coeffs": thin_prism_coeffs})
    arguments.check_choices(camera_model, rolling_shutter, tile_size, (render_mode, rasterize_mode))
    arguments.check_size(width, height)
    if covars is not None:
        quats = scales = None
    tensors: dict[str, Tensor | None] = {"means": means, "quats": quats, "scales": scales, "covars": covars}
    tensors |= {"opacities": opacities, "viewmats": viewmats, "Ks": Ks}
    arguments.check_tensors({**tensors, "colors": colors, "backgrounds": backgrounds})
    arguments.check_shapes(tensors)
    arguments.check_colors(colors, sh_degree, means.shape[0], viewmats.shape[0])
    cameras = PinholeCameras(viewmats, Ks, width, height, near_plane, far_plane, radius_clip, low_pass=eps2d)
    cameras = replace(cameras, antialiased=rasterize_mode == "antialiased")
    # Depths alone are blended without colours.
    harmonics = None if sh_degree is None or render_mode in ("D", "ED") else Harmonics(sh_degree, colors)
    projected = project(PlainGaussians(means, quats, scales, opacities, covars, harmonics), cameras)
    seen = _SeenRows(projected, cameras, packed)
    drawn_opacities = seen.of_each(opacities)
    if cameras.antialiased:
        drawn_opacities = drawn_opacities * seen.projected.compensations
    channels = seen.channels(colors, render_mode)
    images, alphas = blend(seen.projected, drawn_opacities, channels, seen.plan(absgrad))
    images = _over_backgrounds(images, alphas, backgrounds, render_mode)
    if render_mode in ("ED", "RGB+ED"):
        images = torch.cat([images[..., :-1], images[..., -1:] / alphas.clamp_min(1e-10)], dim=-1)
    return images, alphas, seen.meta(drawn_opacities)


def _over_backgrounds(images: Tensor, alphas: Tensor, backgrounds: Tensor | None, render_mode: str) -> Tensor:
    """Return Σ w c + T_end · background; the channel of depths has none."""
    if backgrounds is None or render_mode in ("D", "ED"):
        return images
    wanted = images.shape[0], images.shape[-1] - (render_mode != "RGB")
    if backgrounds.shape != wanted:
        raise InputError(f"backgrounds must be {wanted}, got {tuple(backgrounds.shape)}")
    if render_mode != "RGB":
        backgrounds = torch.cat([backgrounds, backgrounds.new_zeros(wanted[0], 1)], dim=1)
    return torch.addcmul(images, 1 - alphas, backgrounds[:, None, None, :])


class _SeenRows:
    """Rows as C cameras see them: all of them, or packed, those alone that are drawn."""

    def __init__(self, projected: ProjectedRows, cameras: PinholeCameras, packed: bool) -> None:
        self.drawn, self.projected, self.cameras, self.packed = projected.drawn, projected, cameras, packed
        self.views, self.rows = self.drawn.shape
        self.bounds = tuple(self.rows * view for view in range(self.views + 1))
        if packed:
            self.index = self.drawn.reshape(-1).nonzero().squeeze(1)
            self.projected = projected.take(self.index)
            self.bounds = (0, *self.drawn.sum(dim=1).cumsum(0).tolist())

    def of_each(self, values: Tensor, *ends: int) -> Tensor:
        """Return values of the Gaussians (N, …), or of each camera's (C, N, …), for the rows that are there."""
        # An axis of one camera is put before them, where to expand would cost a sum in the backward pass.
        one_camera = self.views == 1 and values.ndim == 1 + len(ends)
        values = values[None] if one_camera else values.expand(self.views, self.rows, *ends)
        return take_rows(values.reshape(-1, *ends), self.index) if self.packed else values

    def channels(self, colors: Tensor, render_mode: str) -> Tensor:
        """Return what is blended, (…, D): colours, those of harmonics or given ones, depths or both."""
        depths = self.projected.depths[..., None]
        if render_mode in ("D", "ED"):
            return depths
        shown = self.projected.colors
        if shown is None:
            shown = self.of_each(colors, colors.shape[-1])
        return shown if render_mode == "RGB" else torch.cat([shown, depths], dim=-1)

    def plan(self, absgrad: bool) -> BlendPlan:
        """Return which rows go into which image."""
        return BlendPlan(self.bounds, self.cameras.width, self.cameras.height, absgrad)

    def meta(self, opacities: Tensor) -> Meta:
        """Return gsplat's dictionary; what only its own kernels read is left out."""
        of_row: Meta = {"batch_ids": None, "camera_ids": None, "gaussian_ids": None}
        if self.packed:
            of_row["batch_ids"], of_row["camera_ids"] = torch.zeros(2, len(self.index), dtype=torch.int64).unbind()
            of_row["gaussian_ids"] = self.index.clone()  # a graph has the index itself
            if self.views > 1:
                of_row["camera_ids"], of_row["gaussian_ids"] = self.index // self.rows, self.index % self.rows
        projected, width, height = self.projected, self.cameras.width, self.cameras.height
        return {
            **of_row,
            "radii": projected.radii,
            "means2d": projected.means2d,
            "depths": projected.depths,
            "conics": projected.conics,
            "opacities": opacities,
            "tiles_per_gauss": projected.tiles,
            "width": width,
            "height": height,
            "tile_size": TILE_SIZE,
            "tile_width": -(-width // TILE_SIZE),
            "tile_height": -(-height // TILE_SIZE),
            "n_batches": 1,
            "n_cameras": self.views,
        }
