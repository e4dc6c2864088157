"""What every kernel knows of a view: camera, background and the numbers of the rendering rule."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
import triton.language as tl
from torch import Tensor

from splatopt.core.camera import Camera

ROTATION = tl.constexpr(0)
CENTER = tl.constexpr(9)
FX = tl.constexpr(12)
FY = tl.constexpr(13)
CX = tl.constexpr(14)
CY = tl.constexpr(15)
BACKGROUND = tl.constexpr(16)
WIDTH = tl.constexpr(19)
HEIGHT = tl.constexpr(20)
NEAR_PLANE = tl.constexpr(21)
LOW_PASS = tl.constexpr(22)
MAX_ALPHA = tl.constexpr(23)
MIN_ALPHA = tl.constexpr(24)
MIN_TRANSMITTANCE = tl.constexpr(25)
FRUSTUM_MARGIN = tl.constexpr(26)


@dataclass(frozen=True)
class RenderingRule:
    """The numbers of the rendering rule, handed over by the renderer; see ``raster/constants.py``.

    Attributes:
        near_plane: World units.
        low_pass: Pixels².
        max_alpha: Clamp of α.
        min_alpha: Pairs below are skipped.
        min_transmittance: A ray ends before it falls under this.
        frustum_margin: Share of the half image plane.
    """

    near_plane: float
    low_pass: float
    max_alpha: float
    min_alpha: float
    min_transmittance: float
    frustum_margin: float


def pack_view(
    camera: Camera, background: tuple[float, float, float], rule: RenderingRule, device: torch.device
) -> Tensor:
    """Return (27,) float64 on ``device``: rotation 9, centre 3, intrinsics 4, background 3, size 2, rule 6.

    In memory and not as arguments, because Triton passes numbers as float32 and compiles anew for some.
    """
    pose = camera.world_to_camera.double().cpu()
    numbers = [
        *pose[:3, :3].reshape(-1).tolist(),
        *camera.center.double().tolist(),
        *(camera.fx, camera.fy, camera.cx, camera.cy),
        *background,
        *(camera.width, camera.height),
        *astuple(rule),
    ]
    return torch.tensor(numbers, dtype=torch.float64, device=device)
