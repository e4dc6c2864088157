"""What a reader of one format hands over, before images are opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.data.lens import Lens

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".JPG", ".JPEG", ".PNG", ".webp", ".tif", ".tiff", ".bmp")
"""Endings that are tried where a capture names an image without one."""

_ROTATION_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Points:
    """Sparse points of a capture.

    Attributes:
        positions: (P, 3) float32, world units.
        colors: (P, 3) uint8, red, green, blue.
    """

    positions: Tensor
    colors: Tensor

    def __post_init__(self) -> None:
        """Check shapes and types."""
        count = self.positions.shape[0]
        for name, tensor, dtype in (
            ("positions", self.positions, torch.float32),
            ("colors", self.colors, torch.uint8),
        ):
            if tuple(tensor.shape) != (count, 3) or tensor.dtype != dtype:
                raise ValueError(f"{name} must be ({count}, 3) {dtype}, got {tuple(tensor.shape)} {tensor.dtype}")

    def __len__(self) -> int:
        """Number of points."""
        return self.positions.shape[0]


@dataclass(frozen=True)
class PosedImage:
    """One view as its capture describes it.

    Attributes:
        name: The capture's own name of the image; views are sorted by it.
        path: Where the image should lie.
        world_to_camera: (4, 4) float64, OpenCV axes.
        lens: Intrinsics of the image as it lies on disk.
        part: ``train`` or ``test`` where the capture says so itself, else empty.
    """

    name: str
    path: Path
    world_to_camera: Tensor
    lens: Lens
    part: str = ""


@dataclass(frozen=True)
class Source:
    """Everything that a reader found.

    Attributes:
        kind: ``colmap``, ``blender``, ``nerfstudio``, ``instant-ngp`` or ``procedural``.
        images: The views, in the order in which the capture counts them.
        points: Sparse points, or None where the capture has none.
        warnings: One sentence each.
    """

    kind: str
    images: tuple[PosedImage, ...]
    points: Points | None
    warnings: tuple[str, ...] = ()


def finite_points(positions: np.ndarray, colors: np.ndarray, warnings: list[str]) -> Points:
    """Return the points whose positions are finite in float32; the others are counted in ``warnings``.

    Args:
        positions: (P, 3).
        colors: (P, 3) uint8.
        warnings: Gets one sentence more if points were left out.
    """
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(positions, dtype=np.float32)
    good = np.asarray(np.isfinite(narrow).all(axis=1))
    if not good.all():
        warnings.append(f"{int((~good).sum())} of {len(good)} points have a position that is not finite; left out")
    return Points(
        torch.from_numpy(np.ascontiguousarray(narrow[good])),
        torch.from_numpy(np.array(colors[good], dtype=np.uint8).reshape(-1, 3)),
    )


def rigid(matrix: np.ndarray, where: str) -> np.ndarray:
    """Return a 4x4 pose with its scale and rounding errors taken out of the rotation.

    The rotation becomes the nearest one in the Frobenius norm (polar decomposition).

    Args:
        matrix: Camera to world or world to camera, (4, 4).
        where: File and view, for the message.

    Raises:
        InputError: A number is NaN or infinite, or the matrix is no rotation, scale and shift.
    """
    if not np.isfinite(matrix).all():
        raise InputError(f"{where}: the pose holds a NaN or an infinite number; remove this view or mend its pose")
    linear = matrix[:3, :3]
    determinant = float(np.linalg.det(linear))
    scale = abs(determinant) ** (1 / 3)
    if determinant <= 0 or np.abs(linear.T @ linear / scale**2 - np.eye(3)).max() > _ROTATION_TOLERANCE:
        raise InputError(f"{where}: the pose must be a rotation and a shift, got a matrix that shears or mirrors")
    left, _, right = np.linalg.svd(linear)
    clean = np.eye(4)
    clean[:3, :3] = left @ right
    clean[:3, 3] = matrix[:3, 3]
    return clean


def opengl_to_world_to_camera(camera_to_world: np.ndarray, where: str) -> Tensor:
    """Turn a camera-to-world pose with OpenGL axes into ``world_to_camera`` with OpenCV axes.

    OpenGL (Blender, nerfstudio, instant-ngp): x right, y up, z backward. The world stays as it is.

    Args:
        camera_to_world: (4, 4).
        where: File and view, for the message.

    Returns:
        (4, 4) float64.
    """
    clean = rigid(camera_to_world, where)
    rotation = clean[:3, :3] * np.array([1.0, -1.0, -1.0])
    pose = np.eye(4)
    pose[:3, :3] = rotation.T
    pose[:3, 3] = -rotation.T @ clean[:3, 3]
    return torch.from_numpy(pose)
