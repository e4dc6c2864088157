"""The pinhole camera that every renderer and capture speaks of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splatopt.core.checks import InputError, quoted


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with OpenCV axes: x right, y down, z forward.

    A world point p projects to ``(fx·x/z + cx, fy·y/z + cy)`` pixels, where
    ``(x, y, z, 1) = world_to_camera @ (p, 1)``. The centre of the pixel in column j and
    row i lies at ``(j + 0.5, i + 0.5)``.

    Attributes:
        world_to_camera: Rigid transform, (4, 4), float64, world units.
        fx: Focal length along x, pixels.
        fy: Focal length along y, pixels.
        cx: Principal point, pixels from the left edge.
        cy: Principal point, pixels from the upper edge.
        width: Image width, pixels.
        height: Image height, pixels.
        name: What the capture calls this view, usually its file name.
    """

    world_to_camera: Tensor
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    name: str = ""

    def __post_init__(self) -> None:
        """Refuse poses and intrinsics that no image can have."""
        who = f"camera {quoted(self.name)}" if self.name else "camera"
        if tuple(self.world_to_camera.shape) != (4, 4):
            raise InputError(f"{who}: the pose must be a 4x4 matrix, got shape {tuple(self.world_to_camera.shape)}")
        if not torch.isfinite(self.world_to_camera).all():
            raise InputError(f"{who}: the pose holds a NaN or an infinite number; remove this view or mend its pose")
        if self.width < 1 or self.height < 1:
            raise InputError(f"{who}: the image size must be at least 1x1, got {self.width}x{self.height}")
        if not (0 < self.fx < float("inf") and 0 < self.fy < float("inf")):
            raise InputError(f"{who}: focal lengths must be positive, got fx={self.fx} and fy={self.fy}")

    @property
    def center(self) -> Tensor:
        """Position of the camera in the world, (3,), world units."""
        rotation, translation = self.world_to_camera[:3, :3], self.world_to_camera[:3, 3]
        return -rotation.T @ translation

    def resized(self, width: int, height: int) -> Camera:
        """Return the camera that sees the same view in ``width`` x ``height`` pixels."""
        across, down = width / self.width, height / self.height
        return replace(
            self,
            fx=self.fx * across,
            fy=self.fy * down,
            cx=self.cx * across,
            cy=self.cy * down,
            width=width,
            height=height,
        )
