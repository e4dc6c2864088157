"""What a reader of one format hands over, before images are opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splatopt.core.checks import InputError, quoted
from splatopt.data.lens import Lens

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".JPG", ".JPEG", ".PNG", ".webp", ".tif", ".tiff", ".bmp"),
    *(".avif", ".heic", ".HEIC"),
)
"""Endings that are tried where a capture names an image without one."""

MAX_DISTANCE = 1e12
"""Positions farther from the origin are not believed, world units: their squares leave float32."""

_ROTATION_TOLERANCE = 1e-2
_MIN_SCALE, _MAX_SCALE = 1e-6, 1e6
_SAME_POSE = 1e-6


@dataclass(frozen=True)
class Points:
    """Sparse points of a capture.

    Attributes:
        positions: (P, 3) float64, world units.
        colors: (P, 3) uint8, red, green, blue.
        file: Name of the file that they are from, where it lies beside the poses; empty for those of a COLMAP model.
    """

    positions: Tensor
    colors: Tensor
    file: str = ""

    def __post_init__(self) -> None:
        """Check shapes and types."""
        count = self.positions.shape[0]
        for name, tensor, dtype in (
            ("positions", self.positions, torch.float64),
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
        mask: Where its mask should lie, whose pixels of 0 do not count; None where the capture has none for it.
    """

    name: str
    path: Path
    world_to_camera: Tensor
    lens: Lens
    part: str = ""
    mask: Path | None = None


@dataclass(frozen=True)
class Finding:
    """Something in a capture besides its poses and photographs, and what becomes of it.

    Attributes:
        what: What it is and where, such as ``5 masks (mask_path)``.
        used: Whether it is used.
        how: What for; or, where it is not used, why. Completes "``what``: used, …" and "``what``: not used, …".
    """

    what: str
    used: bool
    how: str

    def __str__(self) -> str:
        """Return the sentence that people read."""
        return f"{self.what}: {'used' if self.used else 'not used'}, {self.how}"


@dataclass(frozen=True)
class Source:
    """Everything that a reader found.

    Attributes:
        kind: ``colmap``, ``blender``, ``nerfstudio``, ``instant-ngp``, ``llff``, ``polycam``, ``record3d``,
            ``procedural``, or what a plug-in's reader says.
        images: The views, in the order in which the capture counts them.
        points: Sparse points, or None where the capture has none.
        warnings: One sentence each.
        split: Name of the capture's own split, where it says which views are which.
        found: What else lies in the capture, used or not.
    """

    kind: str
    images: tuple[PosedImage, ...]
    points: Points | None
    warnings: tuple[str, ...] = ()
    split: str = "own"
    found: tuple[Finding, ...] = ()


def finite_points(positions: np.ndarray, colors: np.ndarray, warnings: list[str]) -> Points:
    """Return the points whose positions are finite and not beyond MAX_DISTANCE; the others are counted in ``warnings``.

    Args:
        positions: (P, 3).
        colors: (P, 3) uint8.
        warnings: Gets one sentence more if points were left out.
    """
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(positions, dtype=np.float32)
    finite = np.asarray(np.isfinite(positions).all(axis=1))
    with np.errstate(invalid="ignore"):
        good = finite & np.asarray((np.abs(narrow) <= MAX_DISTANCE).all(axis=1))
    if not finite.all():
        warnings.append(f"{int((~finite).sum())} of {len(good)} points have a position that is not finite; left out")
    if not good[finite].all():
        far = int((finite & ~good).sum())
        warnings.append(
            f"{far} of {len(good)} points lie more than {MAX_DISTANCE:g} world units from the origin; left out"
        )
    return Points(
        torch.from_numpy(np.ascontiguousarray(positions[good], dtype=np.float64)),
        torch.from_numpy(np.array(colors[good], dtype=np.uint8).reshape(-1, 3)),
    )


def check_translation(translation: np.ndarray, where: str) -> None:
    """Raise InputError where a camera's translation, (3,), is farther away than anything that can be rendered."""
    distance = float(np.abs(translation).max())
    if distance > MAX_DISTANCE:
        raise InputError(
            f"{where}: the camera stands {distance:.3g} world units from the origin, expected at most "
            f"{MAX_DISTANCE:g}; "
            "remove this view or mend its pose"
        )


def registered_once(images: Sequence[PosedImage], where: str, warnings: list[str]) -> list[PosedImage]:
    """Return the views without those that say again what another says of the same photograph.

    A photograph that is both trained on and held out is held out alone.

    Args:
        images: Views of one capture.
        where: What names them, for the messages.
        warnings: Gets a sentence where a view was left out, or was both trained on and held out.

    Raises:
        InputError: A photograph has two poses or two lenses: one of them is wrong, and which is not known.
    """
    kept: dict[tuple[str, str], PosedImage] = {}
    again: list[PosedImage] = []
    for image in images:
        key = (os.path.normpath(image.path), image.part)
        if (before := kept.setdefault(key, image)) is not image:
            _check_agree(before, image, where)
            again.append(image)
    if again:
        warnings.append(
            f"{where} registers {len(again)} photographs more than once with the same pose, such as "
            f"{quoted(again[0].name)}; each is used once"
        )
    return _on_one_side(list(kept.values()), where, warnings)


def _on_one_side(images: list[PosedImage], where: str, warnings: list[str]) -> list[PosedImage]:
    """Return the views with each photograph trained on or held out, not both; held out wins.

    Where nothing would be left to train on, the capture's own split says nothing, and the views are of no part.
    """
    trained = {os.path.normpath(image.path): image for image in images if image.part != "test"}
    held_out = {os.path.normpath(image.path): image for image in images if image.part == "test"}
    both = [file for file in trained if file in held_out]
    if not both:
        return images
    for file in both:
        _check_agree(trained[file], held_out[file], where)
    what = f"{len(both)} photographs are both trained on and held out, such as {quoted(trained[both[0]].name)}"
    if len(both) < len(trained):
        warnings.append(f"{what}; they are held out alone")
        return [image for image in images if image.part == "test" or os.path.normpath(image.path) not in held_out]
    warnings.append(f"{what}, which leaves none to train on; test views are chosen anew")
    return [replace(image, part="") for image in {**held_out, **trained}.values()]


def _check_agree(first: PosedImage, second: PosedImage, where: str) -> None:
    """Raise InputError unless two views of one photograph have the same pose and the same lens."""
    size = 1 + float(first.world_to_camera[:3, 3].abs().max())
    apart = float((first.world_to_camera - second.world_to_camera).abs().max())
    if apart > _SAME_POSE * size or first.lens != second.lens:
        what = "poses" if apart > _SAME_POSE * size else "cameras"
        raise InputError(
            f"{where}: {quoted(second.name)} is registered twice, with two {what}, and which is right cannot be "
            "known; remove one of them"
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
    check_translation(matrix[:3, 3], where)
    linear = matrix[:3, :3]
    scale = float(np.linalg.norm(linear[:, 0])) if np.abs(linear).max() < 2 * _MAX_SCALE else np.inf
    if not _MIN_SCALE < scale < _MAX_SCALE:
        raise InputError(f"{where}: the pose must be a rotation and a shift, got one that scales by {scale:.3g}")
    determinant = float(np.linalg.det(linear / scale))
    scale *= abs(determinant) ** (1 / 3)
    if determinant <= 0 or not np.abs(linear.T @ linear / scale**2 - np.eye(3)).max() <= _ROTATION_TOLERANCE:
        raise InputError(f"{where}: the pose must be a rotation and a shift, got a matrix that shears or mirrors")
    if not np.allclose(matrix[3], [0, 0, 0, 1], rtol=0, atol=1e-3):
        raise InputError(
            f"{where}: the last row of the pose must be 0 0 0 1, got {matrix[3].tolist()}; is it transposed?"
        )
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
