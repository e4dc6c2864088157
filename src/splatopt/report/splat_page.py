"""A scene as one page that a browser shows from disk, without a network: rows packed, and a WebGL viewer beside them.

A Gaussian takes eight words: its mean as float32; ``sh_dc``, opacity and ``log_scales`` as float16; x, y, z of its unit
quaternion with w ≥ 0 as 16-bit fractions. ``sh_rest`` takes a byte for each coefficient, a fraction of the largest one,
filled up to sixteen bytes a Gaussian. Both are gzipped, and written as base64.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.raster.constants import NEAR_PLANE
from splatopt.raster.types import Footprint, RenderOptions
from splatopt.report.page import HEAD, escape, scripted_policy
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.ply import warn_of_ends, write_whole
from splatopt.scene.similarity import Similarity, robust_up

_STYLE = """
html, body { margin: 0; height: 100%; overflow: hidden; background: #000; }
canvas { display: block; width: 100%; height: 100%; touch-action: none; outline: none; cursor: grab; }
canvas:active { cursor: grabbing; }
footer { position: fixed; left: 0; right: 0; bottom: 0; padding: 8px 12px; color: #fff; text-shadow: 0 0 4px #000;
  font: 13px/1.4 system-ui, sans-serif; text-align: center; opacity: 0.75; pointer-events: none; }
@media (pointer: coarse), print { footer { display: none; } }
noscript p { color: #fff; position: fixed; top: 0; padding: 12px; }
"""
_TEXEL_BYTES = 16
_PIXELS = 720
_VISIBLE = 0.1
"""Opacity of what a view is framed by."""


@dataclass(frozen=True)
class StartView:
    """Where a page begins.

    Attributes:
        camera: In the scene's frame.
        up: What is up, unit length.
        distance: Of the point that the view turns about, along the camera's axis.
    """

    camera: Camera
    up: Float[Tensor, 3]
    distance: float

    @classmethod
    def of(cls, cloud: GaussianCloud, cameras: Sequence[Camera]) -> StartView:
        """Begin where the first of some cameras stands, and turn about the middle of what it sees."""
        camera = cameras[0]
        pose = camera.world_to_camera
        x, y, z = (cloud.means.detach().cpu().double() @ pose[:3, :3].T + pose[:3, 3]).unbind(dim=1)
        across, down = camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy
        seen = (z > NEAR_PLANE) & (across > 0) & (across < camera.width) & (down > 0) & (down < camera.height)
        seen &= cloud.logit_opacities.detach().cpu().sigmoid() > _VISIBLE
        return cls(camera, robust_up(list(cameras)), float(z[seen].median()) if seen.any() else 1.0)

    @classmethod
    def around(cls, cloud: GaussianCloud) -> StartView:
        """Begin before the middle of a scene of which no cameras are known, y down, so that half of it is well seen."""
        means = cloud.means.detach().cpu().double()
        middle = means.median(dim=0).values
        distance = 4 * float((means - middle).norm(dim=1).median()) or 1.0
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, 3] = torch.tensor([0.0, 0.0, distance]) - middle
        half = _PIXELS / 2
        camera = Camera(pose, _PIXELS, _PIXELS, half, half, _PIXELS, _PIXELS)
        return cls(camera, torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64), distance)


def write_splat_page(
    path: Path,
    cloud: GaussianCloud,
    view: StartView,
    options: RenderOptions,
    title: str,
    warnings: list[str] | None = None,
) -> None:
    """Write a page that shows a scene.

    Args:
        path: The file.
        cloud: The scene, of a size at which the near plane is where it is rendered with.
        view: Where the page begins.
        options: How the scene is rendered.
        title: Plain text.
        warnings: Gets a sentence for what a page cannot hold.

    Raises:
        InputError: It cannot be written.
    """
    if options.sh_degree is not None and options.sh_degree < cloud.sh_degree:
        cloud = cloud.with_sh_degree(options.sh_degree)
    cloud = cloud.map(lambda tensor: tensor.detach().cpu())
    harmonics, scale = _harmonics(cloud)
    if warnings is not None:
        warn_of_ends(cloud, {"sh_rest": (-scale, scale, "view-dependent colours")}, "a page", warnings)
    script = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
    about = _about(cloud, view, options, scale)
    page = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    text = f"{HEAD}{page}".format(
        policy=scripted_policy(_STYLE, script, "worker-src blob:; "),
        title=escape(title),
        style=_STYLE,
        count=f"{len(cloud):,}",
        about=json.dumps(about, allow_nan=False).replace("<", "\\u003c"),
        rows=_packed(_rows(cloud)),
        harmonics=_packed(harmonics),
        script=script,
    )
    write_whole(path, lambda stream: stream.write(text.encode()))


def _about(cloud: GaussianCloud, view: StartView, options: RenderOptions, scale: float) -> dict[str, object]:
    """Return what the page's program is told beside the rows."""
    camera = view.camera
    return {
        "count": len(cloud),
        "degree": cloud.sh_degree,
        "harmonicScale": scale,
        "background": options.background,
        "antialiased": options.footprint is Footprint.ANTIALIASED,
        "near": NEAR_PLANE,
        "camera": {
            "turn": camera.world_to_camera[:3, :3].flatten().tolist(),
            "eye": camera.center.tolist(),
            "up": view.up.tolist(),
            "distance": view.distance,
            **{name: getattr(camera, name) for name in ("fx", "fy", "cx", "cy", "width", "height")},
        },
    }


def centered_view(cloud: GaussianCloud, view: StartView) -> tuple[GaussianCloud, StartView]:
    """Return both moved and resized until the camera stands before the point that it turns about as cameras do."""
    scale, middle = 3.5 / view.distance, view.camera.center + view.distance * view.camera.world_to_camera[2, :3]
    moves = Similarity(torch.eye(3, dtype=torch.float64), scale, -scale * middle)
    return moves.cloud(cloud), replace(view, camera=moves.camera(view.camera), distance=3.5)


def _rows(cloud: GaussianCloud) -> np.ndarray:
    """Return eight words for each Gaussian."""
    quats = torch.nn.functional.normalize(cloud.quats.double(), dim=1)
    quats = torch.where(quats[:, :1] < 0, -quats, quats)
    halves = torch.cat([cloud.sh_dc, cloud.logit_opacities.sigmoid()[:, None], cloud.log_scales], dim=1)
    table = np.zeros(len(cloud), [("mean", "<f4", 3), ("halves", "<f2", 7), ("quat", "<i2", 3)])
    table["mean"] = cloud.means.float().numpy()
    table["halves"] = halves.clamp(-60000, 60000).numpy()
    table["quat"] = (quats[:, 1:] * 32767).round().numpy()
    return np.frombuffer(table.tobytes(), np.uint8)


def _harmonics(cloud: GaussianCloud) -> tuple[np.ndarray, float]:
    """Return a byte for each coefficient of the degrees above 0, and what 127 stands for.

    Coefficients beyond four times what all but a hundredth of the rows stay below are cut, so that a few odd rows do
    not coarsen all others.
    """
    rest = cloud.sh_rest.reshape(len(cloud), -1).float()
    if not rest.shape[1]:
        return np.zeros(0, np.uint8), 1.0
    largest = rest.abs().amax(dim=1).numpy()
    scale = min(float(largest.max()), 4 * float(np.quantile(largest, 0.99))) or float(largest.max()) or 1.0
    table = np.zeros((len(cloud), -(-rest.shape[1] // _TEXEL_BYTES) * _TEXEL_BYTES), np.int8)
    table[:, : rest.shape[1]] = (rest * (127 / scale)).round().clamp(-127, 127).numpy()
    return table.view(np.uint8).reshape(-1), scale


def _packed(numbers: np.ndarray) -> str:
    return base64.b64encode(gzip.compress(numbers.tobytes(), compresslevel=6, mtime=0)).decode("ascii")
