"""From a configuration to what is fitted: the target, the field, the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from splatopt.core.checks import InputError
from splatopt.data import Capture, CaptureOptions, load_capture
from splatopt.data.camera_paths import attention
from splatopt.data.fingerprint import fingerprint_capture, fingerprint_image, fingerprint_mesh
from splatopt.data.images import UnreadableImageError, read_pixels
from splatopt.data.mesh import Mesh, load_mesh
from splatopt.fields.image import ImageTask
from splatopt.fields.occupancy import OccupancyTask, sample_points
from splatopt.fields.radiance import FEATURES, Bounds, RadianceField, RadianceTask
from splatopt.fields.registry import make_field
from splatopt.fields.task import Task
from splatopt.fit.config import FitConfig
from splatopt.fit.options import TaskKind

MAX_HELD_OUT = 100_000
"""Points that occupancy is scored on, at most."""

_SLOW_PAIRS = 2_000_000_000


@dataclass(frozen=True)
class OpenedTask:
    """A task whose target was read.

    Attributes:
        task: The field, at its start, bound to the target.
        fingerprint: The target's.
        warnings: One sentence each.
    """

    task: Task
    fingerprint: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def open_task(config: FitConfig, generator: torch.Generator) -> OpenedTask:
    """Load the target and bind a field at its start to it.

    Args:
        config: Resolved.
        generator: Draws the field's start first, then whatever the task draws.

    Raises:
        InputError: The target cannot be used.
    """
    match config.data.task:
        case TaskKind.IMAGE:
            image = _image_task(config, generator)
            return OpenedTask(image, fingerprint_image(image.image))
        case TaskKind.OCCUPANCY:
            mesh = load_mesh(Path(config.data.target))
            occupancy = _occupancy_task(config, mesh, generator)
            return OpenedTask(occupancy, fingerprint_mesh(mesh), _mesh_warnings(config, mesh))
        case TaskKind.NERF:
            capture = load_capture(
                Path(config.data.target),
                CaptureOptions(max_side=config.data.max_side or 0, test_every=config.data.test_every),
            )
            # Near its cameras float32 loses nothing, wherever the capture lies.
            radiance = _radiance_task(config, capture.localised(), generator)
            return OpenedTask(radiance, fingerprint_capture(capture), capture.warnings)
    raise ValueError("the task is not chosen yet; call resolved()")


def load_image(path: Path, max_side: int | None) -> torch.Tensor:
    """Return an image file as (H, W, 3) float32 in [0, 1], shrunk until its longer side has ``max_side`` pixels.

    It is turned as its EXIF orientation says, and laid over white where it is see-through.

    Raises:
        InputError: The file is missing, truncated or no image.
    """
    import numpy as np
    from PIL import Image

    try:
        pixels = read_pixels(path, (1.0, 1.0, 1.0), upright=True)
    except UnreadableImageError as error:
        what = "there is no such file" if not path.is_file() else "it is truncated or no image"
        raise InputError(
            f"{path} cannot be fitted: {what}; give an image, a mesh such as .obj or .ply, or the folder of a capture"
        ) from error
    height, width = pixels.shape[:2]
    if max_side is not None and max(height, width) > max_side:
        shrink = max_side / max(height, width)
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        pixels = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels).float() / 255


def _image_task(config: FitConfig, generator: torch.Generator) -> ImageTask:
    image = load_image(Path(config.data.target), config.data.max_side)
    field = make_field(config.network.field, config.network.architecture(2, 3), generator, **config.network.constants)
    return ImageTask(field, image)


def _occupancy_task(config: FitConfig, mesh: Mesh, generator: torch.Generator) -> OccupancyTask:
    field = make_field(config.network.field, config.network.architecture(3, 1), generator, **config.network.constants)
    training = sample_points(mesh, config.data.points, generator)
    held_out = sample_points(mesh, min(config.data.points, MAX_HELD_OUT), generator)
    return OccupancyTask(field, training, held_out)


def _mesh_warnings(config: FitConfig, mesh: Mesh) -> tuple[str, ...]:
    if mesh.watertight:
        return ()
    pairs = len(mesh.faces) * (config.data.points + min(config.data.points, MAX_HELD_OUT))
    slow = "; that took points times faces, a coarser mesh or fewer --points is quicker" if pairs > _SLOW_PAIRS else ""
    return (f"the mesh is not watertight, so winding numbers decided what lies inside{slow}",)


def _radiance_task(config: FitConfig, capture: Capture, generator: torch.Generator) -> RadianceTask:
    field = make_field(
        config.network.field, config.network.architecture(3, 1 + FEATURES), generator, **config.network.constants
    )
    return RadianceTask(
        RadianceField(field, generator),
        capture.cameras,
        capture.images,
        scene_bounds(capture),
        train=capture.split.train,
        test=_spread(capture.split.test, config.scoring.score_views),
        samples=config.data.samples,
        background=capture.background,
    )


def _spread(views: tuple[int, ...], max_views: int) -> tuple[int, ...]:
    """At most so many views, evenly spread; all for 0."""
    if max_views == 0 or len(views) <= max_views:
        return views
    return tuple(views[index * len(views) // max_views] for index in range(max_views))


def scene_bounds(capture: Capture) -> Bounds:
    """Return where along its rays the scene of a capture lies.

    With points: near and far are the 1 % and 99 % quantiles of their depths in the training views, with a tenth to
    spare. Without: the cameras look at one object at half their distance from it on either side, as in Blender
    captures. The box is centred where the cameras look.
    """
    cameras = [capture.cameras[view] for view in capture.split.train]
    center = attention(cameras)
    if capture.points is not None and len(capture.points):
        depths = []
        for camera in cameras:
            pose = camera.world_to_camera.double()
            local = capture.points.positions.double() @ pose[:3, :3].T + pose[:3, 3]
            x = local[:, 0] / local[:, 2] * camera.fx + camera.cx
            y = local[:, 1] / local[:, 2] * camera.fy + camera.cy
            seen = (local[:, 2] > 0) & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
            depths.append(local[seen].norm(dim=1))
        everything = torch.cat(depths).sort().values
        if len(everything):
            near, far = (float(everything[int(share * (len(everything) - 1))]) for share in (0.01, 0.99))
            return Bounds(center.float(), _radius_factors(cameras, center, far * 1.1), near * 0.9, far * 1.1)
    distance = float(torch.stack([(camera.center.double() - center).norm() for camera in cameras]).median())
    return Bounds(center.float(), distance / 2, distance / 2, distance * 1.5)


def _radius_factors(cameras: list, center: torch.Tensor, far: float) -> float:
    """How far from ``center`` a sample can lie along the axis of a camera, world units."""
    ends = [camera.center.double() + far * camera.world_to_camera[2, :3].double() for camera in cameras]
    return float(torch.stack([(end - center).norm() for end in ends]).median())
