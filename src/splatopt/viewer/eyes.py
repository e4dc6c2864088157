"""Cameras on the page: those of the capture, and the one that somebody at the page looks through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from PIL import Image
from scipy.spatial.transform import Rotation

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.data import Capture
from splatopt.data.camera_paths import attention
from splatopt.data.images import read_small
from splatopt.report.pictures import spread

MAX_FRUSTA = 100
"""Cameras of a capture that are drawn at most."""

THUMBNAIL_SIDE = 96
"""Longer side of the image on a camera, pixels."""

_MIN_FOV, _MAX_FOV = math.radians(1), math.radians(170)
_MAX_ASPECT = 8.0
_MAX_SIDE = 2048
_MIN_LENGTH, _MAX_LENGTH = 1e-6, 1e6
"""Of a quaternion that is a rotation; a browser's have length 1."""

_MAX_DISTANCE = 1e30
"""Of a camera from the origin along each axis, units of the world; a float32 holds it."""


@dataclass(frozen=True)
class Eye:
    """Where somebody at the page looks from, with OpenCV axes.

    Attributes:
        wxyz: Rotation from the camera to the world.
        position: In the world.
        fov: Vertical field of view, radians.
        aspect: Width over height.
    """

    wxyz: tuple[float, float, float, float]
    position: tuple[float, float, float]
    fov: float
    aspect: float

    @property
    def is_usable(self) -> bool:
        """Whether it is a camera at all: what comes from a browser is anybody's."""
        numbers = (*self.wxyz, *self.position, self.fov, self.aspect)
        if not all(math.isfinite(one) for one in numbers) or self.fov <= 0 or self.aspect <= 0:
            return False
        is_rotation = _MIN_LENGTH <= math.hypot(*self.wxyz) <= _MAX_LENGTH
        return is_rotation and all(abs(one) <= _MAX_DISTANCE for one in self.position)

    def camera(self, height: int) -> Camera:
        """Return the camera of images that are so high, pixels; their width is bounded."""
        fov, aspect = min(max(self.fov, _MIN_FOV), _MAX_FOV), min(max(self.aspect, 1 / _MAX_ASPECT), _MAX_ASPECT)
        width = max(1, min(_MAX_SIDE, round(height * aspect)))
        focal = height / 2 / math.tan(fov / 2)
        return Camera(pose_of(self.wxyz, self.position), focal, focal, width / 2, height / 2, width, height, "viewed")


def pose_of(wxyz: Sequence[float], position: Sequence[float]) -> torch.Tensor:
    """Return world_to_camera, (4, 4) float64, of a camera with this rotation to the world and this position."""
    w, x, y, z = wxyz
    rotation = torch.from_numpy(Rotation.from_quat([x, y, z, w]).as_matrix().T.copy())
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation
    pose[:3, 3] = -rotation @ torch.tensor(position, dtype=torch.float64)
    return pose


def eye_of(camera: Camera) -> Eye:
    """Return where a capture's camera looks from; undoes :meth:`Eye.camera` up to an off-centre principal point."""
    x, y, z, w = Rotation.from_matrix(camera.world_to_camera[:3, :3].T.numpy()).as_quat().tolist()
    a, b, c = camera.center.tolist()
    return Eye((w, x, y, z), (a, b, c), 2 * math.atan(camera.height / 2 / camera.fy), camera.width / camera.height)


def mean_up(cameras: Sequence[Camera]) -> Float64[np.ndarray, 3]:
    """Return the direction that is up in the images on average, unit length; y points down in a camera."""
    downs = np.stack([camera.world_to_camera[1, :3].double().numpy() for camera in cameras])
    up = -downs.mean(axis=0)
    if np.linalg.norm(up) < 1e-6:
        up = -downs[0]
    return up / np.linalg.norm(up)


def looked_at(cameras: Sequence[Camera], camera: Camera) -> Float64[np.ndarray, 3]:
    """Return the point on a camera's axis that is nearest to what all look at; in front of it in any case."""
    center, forward = camera.center.double(), camera.world_to_camera[2, :3].double()
    ahead = float((attention(cameras) - center) @ forward)
    return (center + (ahead if ahead > 1e-3 else 1.0) * forward).numpy()


def drawn_views(capture: Capture, max_views: int = MAX_FRUSTA) -> list[int]:
    """Return the views whose cameras are drawn: the held-out ones first, then those trained on, each evenly spread."""
    held_out = spread(capture.split.test, max_views)
    return held_out + spread(capture.split.train, max_views - len(held_out))


def frustum_size(cameras: Sequence[Camera]) -> float:
    """Return a length for the cameras' drawings: a share of their median distance from what they look at."""
    target = attention(cameras)
    distances = [float((camera.center.double() - target).norm()) for camera in cameras]
    return 0.06 * float(np.median(distances)) or 0.1


def thumbnail(capture: Capture, view: int, side: int = THUMBNAIL_SIDE) -> np.ndarray | None:
    """Return a view's image with its longer side shrunk to ``side``, (h, w, 3) uint8; None where it cannot be read.

    It is read from the file at a fraction of its size where the format allows that, with the lens's distortion left as
    it is.
    """
    source = capture.images.sources[view]
    try:
        pixels = read_small(source.path, side, capture.images.background)
    except (InputError, OSError):
        return None
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image)
