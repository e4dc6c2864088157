"""A scene file beside a capture, as commands open the two where there is no run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError, say, short
from splatopt.data import Capture, CaptureOptions, load_capture
from splatopt.data.capture import Shrunk
from splatopt.data.packed_scenes import SCENE_ENDINGS
from splatopt.raster.render import find_backend, open_backend
from splatopt.raster.types import Footprint, RenderOptions
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.photometric import PhotometricObjective
from splatopt.scene.scene_files import load_scene

_MAX_VIEWS, _MAX_ROWS = 64, 10_000
_MIN_SEEN = 0.1
"""Share of a scene's Gaussians that the cameras see, below which the two hardly belong together."""


@dataclass(frozen=True)
class SceneOptions:
    """Of a scene file, which does not say as a run does how its capture is read and how it is rendered."""

    images: str | None = None
    """Photographs of this folder beside images, such as images_4; those that the capture names when None."""

    downscale: int = 1
    """Photographs this many times smaller. Unit: factor."""

    max_side: int | None = None
    """Shrink photographs until their longer side has at most so many pixels; 0 keeps all pixels. When None, 1600
    without --downscale, and all with it. Unit: pixels. Source: 3DGS."""

    skip_missing: bool = False
    """Leave out photographs that are missing or damaged, instead of stopping."""

    test_every: int = 8
    """Every so many-th view by name is a test view, where the capture itself names none. Unit: views."""

    background: tuple[float, float, float] | None = None
    """Colour behind the scene, and behind see-through photographs; when None, black for photographs as in 3DGS, and
    white where any is see-through. Unit: RGB in [0, 1]."""

    footprint: Footprint = Footprint.CLASSIC
    """Classic splats, or antialiased ones, for scenes that were trained so."""


@dataclass(frozen=True)
class OpenedScene:
    """A scene file and its capture.

    Attributes:
        objective: The scene bound to the capture's views, both in the capture's training frame.
        capture: The capture in that frame.
    """

    objective: PhotometricObjective
    capture: Capture


def is_scene_file(path: Path) -> bool:
    """Whether a path names a scene file and no run's folder."""
    return path.is_file() or (path.suffix.lower() in SCENE_ENDINGS and not path.is_dir())


def open_scene(
    path: Path, capture: Path, options: SceneOptions, renderer: str | None, device: str | None
) -> OpenedScene:
    """Open a scene file, given in the frame of a capture, beside that capture; prints warnings.

    Args:
        path: The scene.
        capture: Folder of the capture.
        options: How both are looked at.
        renderer: What renders; the fastest here when None.
        device: Where; what suits the renderer when None.

    Raises:
        InputError: One of them cannot be read, or the capture's cameras see nothing of the scene.
    """
    backend = find_backend(renderer or "auto", device or "auto")
    warnings: list[str] = []
    cloud = load_scene(path, warnings)
    wanted = CaptureOptions(
        images=options.images,
        downscale=options.downscale,
        max_side=options.max_side,
        background=options.background or CaptureOptions.background,
        skip_missing=options.skip_missing,
        test_every=options.test_every,
    )
    posed = load_capture(capture, wanted).localised()
    cloud = cloud.in_local(posed.frame)
    seen = seen_share(cloud, posed.cameras)
    if not seen:
        raise InputError(
            f"the cameras of {short(capture)} see none of the {len(cloud):,} Gaussians of {short(path)}; give the "
            "capture that the scene was made from, in whose frame it is"
        )
    if seen < _MIN_SEEN:
        warnings.append(f"the cameras of {short(capture)} see only {seen:.1%} of the Gaussians of {short(path)}")
    for shrunk in (one for one in posed.found if isinstance(one, Shrunk)):
        say(f"splatopt: {shrunk}", file=sys.stderr)
    for warning in (*posed.warnings, *warnings):
        say(f"splatopt: warning: {warning}", file=sys.stderr)
    rendered = RenderOptions(options.background or posed.background, options.footprint)
    cloud = cloud.to(backend.device)
    opened = PhotometricObjective(cloud, posed.cameras, posed.images, open_backend(backend), rendered)
    return OpenedScene(opened, posed)


def seen_share(cloud: GaussianCloud, cameras: Sequence[Camera]) -> float:
    """Return the share of a cloud's centres that lie within the image of one of ``cameras``, of some of each."""
    means = cloud.means[:: max(1, len(cloud) // _MAX_ROWS)].double()
    seen = torch.zeros(len(means), dtype=torch.bool)
    for camera in cameras[:: max(1, len(cameras) // _MAX_VIEWS)]:
        x, y, z = (means @ camera.world_to_camera[:3, :3].T + camera.world_to_camera[:3, 3]).unbind(dim=1)
        across, down = camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy
        seen |= (z > 0) & (across >= 0) & (across <= camera.width) & (down >= 0) & (down <= camera.height)
    return float(seen.double().mean())


def check_no_scene_options(options: SceneOptions, capture: Path | None, given: str) -> None:
    """Raise InputError where what belongs to a scene file was given for a run, which keeps its own.

    Args:
        options: Those of a scene file.
        capture: The capture that was given.
        given: How the command is told of it.
    """
    if capture is not None or options != SceneOptions():
        raise InputError(
            f"{given} and the options of a scene file go with a scene such as scene.ply; a run is looked at on the "
            "capture that it was trained on, as it was trained"
        )
