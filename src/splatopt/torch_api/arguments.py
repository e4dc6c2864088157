"""What ``rasterization`` is given: what it cannot do is refused by name, and shapes are checked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.torch_api.harmonics import check_degree

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
RASTERIZE_MODES = ("classic", "antialiased")
TILE_SIZE = 16
MAX_SIDE = 32768

UNSUPPORTED = {
    "sparse_grad": "gradients are dense",
    "distributed": "one process renders",
    "with_ut": "there is no unscented transform",
    "with_eval3d": "Gaussians are evaluated on the image",
    "radial_coeffs": "undistort the images first",
    "tangential_coeffs": "undistort the images first",
    "thin_prism_coeffs": "undistort the images first",
    "ftheta_coeffs": "undistort the images first",
    "viewmats_rs": "shutters are global",
}
"""Arguments of gsplat's that must be left at what they are without being given, and why."""


def refuse_unsupported(given: Mapping[str, object]) -> None:
    """Raise InputError where one of ``UNSUPPORTED`` is asked for."""
    for name, why in UNSUPPORTED.items():
        if given.get(name) is not None and given[name] is not False:
            raise InputError(f"splatopt's rasterization does not support {name}: {why}; leave it out")


def check_choices(camera_model: str, rolling_shutter: object, tile_size: int, modes: tuple[str, str]) -> None:
    """Raise InputError unless the camera is a pinhole, the shutter global, the tile ours and the modes known.

    Args:
        camera_model: gsplat's name.
        rolling_shutter: gsplat's enumeration, its member's name, or None.
        tile_size: Pixels.
        modes: ``render_mode`` and ``rasterize_mode``.
    """
    check_camera_model(camera_model)
    if getattr(rolling_shutter, "name", rolling_shutter) not in (None, "GLOBAL"):
        raise InputError("splatopt's rasterization does not support rolling_shutter: shutters are global; leave it out")
    if tile_size != TILE_SIZE:
        raise InputError(f"tile_size must be {TILE_SIZE}, got {tile_size}")
    for name, value, known in zip(
        ("render_mode", "rasterize_mode"), modes, (RENDER_MODES, RASTERIZE_MODES), strict=True
    ):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def check_camera_model(name: str) -> None:
    """Raise InputError unless the camera is a pinhole."""
    if name != "pinhole":
        raise InputError(f"splatopt's rasterization has camera_model 'pinhole' alone, got {name!r}; undistort first")


def check_size(width: int, height: int) -> None:
    """Raise InputError unless the image's sides are 1 to MAX_SIDE pixels."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise InputError(f"width and height must be 1 to {MAX_SIDE} pixels, got {width} and {height}")


def check_tensors(tensors: Mapping[str, Tensor | None]) -> None:
    """Raise InputError unless all are of one float type, 32 or 64 bits, on the CPU."""
    kind = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            raise InputError(
                f"splatopt's rasterization needs tensors on the CPU, got {name} on {tensor.device}; use gsplat there"
            )
        if tensor.dtype not in (torch.float32, torch.float64):
            raise InputError(f"{name} must be float32 or float64, got {tensor.dtype}")
        kind = kind or tensor.dtype
        if tensor.dtype != kind:
            raise InputError(f"all tensors must be of one float type: {name} is {tensor.dtype}, others are {kind}")


def check_shapes(tensors: Mapping[str, Tensor | None]) -> None:
    """Raise InputError unless the Gaussians are (N, …) and the cameras (C, …)."""
    rows, views = (_first_side(tensors[name]) for name in ("means", "viewmats"))
    expected = {
        "means": (rows, 3),
        "quats": (rows, 4),
        "scales": (rows, 3),
        "opacities": (rows,),
        "covars": (rows, 3, 3),
        "viewmats": (views, 4, 4),
        "Ks": (views, 3, 3),
    }
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is not None and tensor.shape != shape:
            raise InputError(
                f"{name} must be {shape}, got {tuple(tensor.shape)}; there are no batches of scenes, only of cameras"
            )
    if tensors["covars"] is None and (tensors["quats"] is None or tensors["scales"] is None):
        raise InputError("rasterization needs quats and scales, or covars")
    intrinsics, poses = tensors["Ks"], tensors["viewmats"]
    if poses is not None and not (np.abs(np.linalg.det(poses.detach()[:, :3, :3].numpy())) > 0).all():
        raise InputError("viewmats must be finite and invertible, world to camera")
    if intrinsics is not None and intrinsics.requires_grad:
        raise InputError("Ks cannot be differentiated, as in gsplat: give them without requires_grad")


def _first_side(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.ndim == 0 else tensor.shape[0]


def check_colors(colors: Tensor, sh_degree: int | None, rows: int, views: int) -> None:
    """Raise InputError unless colours are (N, D) or (C, N, D), or with a degree (N, K, 3) or (C, N, K, 3)."""
    lead = colors.shape[:-1] if sh_degree is None else colors.shape[:-2]
    if tuple(lead) not in ((rows,), (views, rows)) or colors.shape[-1] == 0:
        wanted = "(N, D) or (C, N, D)" if sh_degree is None else "(N, K, 3) or (C, N, K, 3)"
        raise InputError(f"colors must be {wanted} of N = {rows} and C = {views}, got {tuple(colors.shape)}")
    if sh_degree is not None:
        check_degree(sh_degree, colors)
