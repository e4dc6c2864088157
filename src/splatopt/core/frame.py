"""The training frame: where and how large a capture is while it is trained.

A capture comes in metres or millimetres, at the origin or at UTM coordinates. It is trained in a frame of one size, in
which the cameras stand around the origin:

    x_local = (x - origin) / unit

``origin`` is the median of the cameras' centres in each axis, and ``unit`` is such that half of them stand within 3.5
local units of it, where captures usually have them. Medians, so that no single camera decides. Lengths that are
fixed, such as the near plane, are lengths in this frame: a scene trains alike wherever it lies and whatever its unit.
What is written for others is in the capture's own frame again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from splatopt.core.checks import InputError

FRAME_KEY = "frame"
"""Where a run's file says in which frame the run is trained."""

USUAL_DISTANCE = 3.5
"""Median distance of cameras from their middle in the training frame, local units."""

_MAX_SPACING = 1e-4
"""Of positions in a scene file, local units."""

ONE_PLACE = 1e-6
"""Cameras that are spread over a smaller share of the scene's size than this stand in one place: what lies between them
is rounding, and no baseline."""

_MAX_POINTS = 1_000_000
"""Points that are looked at."""

_ROUNDING = 1e-12
"""Cameras that are spread over a smaller share of their distance from the origin stand in one place as well: float64
hardly tells them apart."""


def in_one_place(spread: float, size: float = USUAL_DISTANCE, away: float = 0.0) -> bool:
    """Return whether cameras stand in one place, so that nothing is measured by the distances between them.

    Args:
        spread: How far they stand from each other or from their middle.
        size: The scene's, in the same unit: the median distance of its points from the cameras, and without points that
            of the training frame.
        away: The cameras' distance from the origin.
    """
    return spread <= max(ONE_PLACE * size, _ROUNDING * away)


@dataclass(frozen=True)
class Frame:
    """A shift and a uniform scale from a capture's own frame to the one that it is trained in.

    Attributes:
        origin: Where the local origin lies, world units.
        unit: World units in a local one.
    """

    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    unit: float = 1.0

    @classmethod
    def around(cls, poses: Sequence[Tensor], points: Tensor | None = None) -> Frame:
        """Return the training frame of cameras.

        Args:
            poses: ``world_to_camera`` of each camera, (4, 4).
            points: The capture's points, (p, 3); where all cameras stand in one place, their median distance from there
                is the size. Without points the unit is then the world's own.
        """
        stacked = torch.stack([pose.double() for pose in poses])
        centers = -(stacked[:, :3, :3].transpose(1, 2) @ stacked[:, :3, 3:])[..., 0]
        origin = centers.quantile(0.5, dim=0)
        distance = float((centers - origin).norm(dim=1).quantile(0.5))
        reach = USUAL_DISTANCE
        if points is not None and len(points):
            reach = float((points[:_MAX_POINTS].double() - origin).norm(dim=1).quantile(0.5))
        if in_one_place(distance, reach, float(origin.norm())):
            distance = reach
        x, y, z = origin.tolist()
        return cls((x, y, z), distance / USUAL_DISTANCE if distance > 0 else 1.0)

    @classmethod
    def parse(cls, text: str) -> Frame:
        """Return the frame that ``text`` names; raises InputError where it names none."""
        try:
            x, y, z, unit = (float.fromhex(part) for part in text.split())
        except (ValueError, OverflowError) as error:
            raise InputError(f"a training frame must be four hexadecimal floats, got {text!r}") from error
        frame = cls((x, y, z), unit)
        if not (torch.isfinite(torch.tensor([x, y, z, unit])).all() and unit > 0):
            raise InputError(f"a training frame must be finite and its unit positive, got {text!r}")
        return frame

    @property
    def text(self) -> str:
        """The frame in a text that keeps every bit."""
        return " ".join(value.hex() for value in (*self.origin, self.unit))

    @property
    def is_world(self) -> bool:
        """Whether it is the capture's own."""
        return self == WORLD

    def to_local(self, positions: Tensor) -> Tensor:
        """Return positions (n, 3), world units, in local units; computed in float64, in which they are returned."""
        return (positions.double() - self._origin().to(positions.device)) / self.unit

    def to_world(self, positions: Tensor) -> Tensor:
        """Return positions (n, 3), local units, in world units; computed in float64, in which they are returned."""
        return positions.double() * self.unit + self._origin().to(positions.device)

    def pose(self, world_to_camera: Tensor) -> Tensor:
        """Return the (4, 4) float64 pose, from the local frame, of the camera that sees the same picture.

        With x = origin + unit·x_local, R x + t is unit times R x_local + (R origin + t) / unit, and a pinhole camera
        sees no difference between a point and a multiple of it.
        """
        pose = world_to_camera.double().clone()
        pose[:3, 3] = (pose[:3, :3] @ self._origin().to(pose.device) + pose[:3, 3]) / self.unit
        return pose

    def pose_to_world(self, world_to_camera: Tensor) -> Tensor:
        """Return the (4, 4) float64 pose, from the world, of a camera with a pose from here; undoes :meth:`pose`."""
        pose = world_to_camera.double().clone()
        pose[:3, 3] = self.unit * pose[:3, 3] - pose[:3, :3] @ self._origin().to(pose.device)
        return pose

    @property
    def spacing(self) -> float:
        """Spacing of float32's numbers at the frame's origin in the world, to which a scene file holds positions."""
        return float(torch.finfo(torch.float32).eps) * max(abs(value) for value in self.origin)

    @property
    def is_far(self) -> bool:
        """Whether that spacing is too coarse for a scene of this size."""
        return self.spacing > _MAX_SPACING * self.unit

    def _origin(self) -> Tensor:
        return torch.tensor(self.origin, dtype=torch.float64)


WORLD = Frame()
"""The frame that is the capture's own."""
