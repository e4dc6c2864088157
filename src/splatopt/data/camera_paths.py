"""Camera paths around a captured scene."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError

_AXES_RIDGE = 1e-6
"""Added to the normal equations of the point of attention, so that parallel axes have a solution."""

_SAME_PLACE, _AHEAD = 1e-12, 1e-6
"""Shares of the distance from the origin, and of the cameras' spread, that are none."""

_TRIED = 72
"""Cameras of an orbit that are held against the capture's."""

_MAX_GAP = 0.75
"""Distance of a camera on an orbit from the nearest of the capture, in distances from the subject."""

_MAX_TURN = 45.0
"""Angle between what both look at, degrees."""


def orbit(cameras: Sequence[Camera], frames: int) -> list[Camera]:
    """Return cameras on a circle around the point that ``cameras`` look at.

    The circle is level with respect to the cameras' mean up direction, at their median distance and
    height. For captures that were walked around.

    Args:
        cameras: The capture's, at least one; the first gives size and focal length.
        frames: Number of cameras on the full turn.
    """
    check_path(cameras, frames)
    up, target = _mean_up(cameras), attention(cameras)
    offsets = torch.stack([camera.center.double() for camera in cameras]) - target
    heights = offsets @ up
    level = offsets - heights[:, None] * up
    radius = level.norm(dim=1).median()
    across = level[level.norm(dim=1).argmax()]
    if across.norm() < 1e-9:
        across = _any_normal(up)
    across = across / across.norm()
    along = torch.linalg.cross(up, across)
    path = []
    for frame in range(frames):
        angle = 2 * math.pi * frame / frames
        offset = radius * (math.cos(angle) * across + math.sin(angle) * along) + heights.median() * up
        path.append(looking(cameras[0], target + offset, target, up, f"orbit-{frame:04d}"))
    return path


def spiral(cameras: Sequence[Camera], frames: int) -> list[Camera]:
    """Return cameras that sway around the mean pose of ``cameras`` while looking at what they look at.

    Two turns, each sideways radius half the cameras' spread in that direction, as in LLFF
    (Mildenhall et al. 2019). For captures that face one way.

    Args:
        cameras: The capture's, at least one; the first gives size and focal length.
        frames: Number of cameras.
    """
    check_path(cameras, frames)
    up, target = _mean_up(cameras), attention(cameras)
    centers = torch.stack([camera.center.double() for camera in cameras])
    middle = centers.mean(dim=0)
    forward = target - middle
    if forward.norm() < 1e-9:
        forward = _forwards(cameras)[0]
        target = middle + forward
    forward = forward / forward.norm()
    right = torch.linalg.cross(forward, up)
    right = right / right.norm() if right.norm() > 1e-9 else _any_normal(forward)
    above = torch.linalg.cross(right, forward)
    spread = (centers - middle) @ torch.stack([right, above, forward], dim=1)
    radii = 0.5 * spread.abs().quantile(0.9, dim=0)
    path = []
    for frame in range(frames):
        angle = 4 * math.pi * frame / frames
        offset = (
            radii[0] * math.cos(angle) * right
            + radii[1] * math.sin(angle) * above
            + 0.5 * radii[2] * math.sin(angle / 2) * forward
        )
        path.append(looking(cameras[0], middle + offset, target, above, f"spiral-{frame:04d}"))
    return path


def attention(cameras: Sequence[Camera]) -> Tensor:
    """Return the point nearest to all optical axes, argmin Σ‖(I - dᵢdᵢᵀ)(p - cᵢ)‖², (3,) float64.

    Where it lies behind most cameras, as in a room seen from inside, the mean point one unit of the
    cameras' spread ahead of them is returned in its place.
    """
    centers = torch.stack([camera.center.double() for camera in cameras])
    forwards = _forwards(cameras)
    middle = centers.mean(dim=0)
    across = torch.eye(3, dtype=torch.float64) - forwards[:, :, None] * forwards[:, None, :]
    matrix = across.sum(dim=0) + _AXES_RIDGE * len(cameras) * torch.eye(3, dtype=torch.float64)
    right_side = (across @ (centers - middle)[:, :, None]).sum(dim=0).squeeze(1)
    point = middle + torch.linalg.solve(matrix, right_side)
    ahead = ((point - centers) * forwards).sum(dim=1)
    spread = float((centers - middle).norm(dim=1).max())
    # Cameras in one place, up to rounding, leave the distance free.
    spread = spread if spread > _SAME_PLACE * float(middle.norm()) else 1.0
    return point if ahead.median() > _AHEAD * spread else (centers + spread * forwards).mean(dim=0)


def surround(cameras: Sequence[Camera]) -> bool:
    """Return whether ``cameras`` stand all around what they look at, so that an orbit shows what they saw.

    They do where every camera of the orbit has one of them at most 0.75 of its own distance from the subject away
    (the distance of one at the middle of a gap of 90° from its ends) that looks the same way to within 45°.
    """
    path, target = orbit(cameras, _TRIED), attention(cameras)
    centers, around = (torch.stack([camera.center.double() for camera in group]) for group in (cameras, path))
    reach = (around - target).norm(dim=1)
    is_near = torch.cdist(around, centers) <= _MAX_GAP * reach[:, None]
    looks_alike = _forwards(path) @ _forwards(cameras).T >= math.cos(math.radians(_MAX_TURN))
    return bool((is_near & looks_alike).any(dim=1).all())


def check_path(cameras: Sequence[Camera], frames: int) -> None:
    """Raise unless there are cameras to go by and frames to show: InputError for the latter."""
    if not cameras:
        raise ValueError("a camera path needs at least one camera, got none")
    if frames < 1:
        raise InputError(f"--frames must be at least 1, got {frames}")


def looking(camera: Camera, center: Tensor, target: Tensor, up: Tensor, name: str) -> Camera:
    """Return ``camera`` moved to ``center``, turned to ``target``, with ``up`` upwards in the image."""
    forward = target - center
    if forward.norm() < 1e-9:
        forward = _any_normal(up)
    forward = forward / forward.norm()
    right = torch.linalg.cross(forward, up)
    right = right / right.norm() if right.norm() > 1e-9 else _any_normal(forward)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation
    pose[:3, 3] = -rotation @ center
    return replace(camera, world_to_camera=pose, name=name)


def _forwards(cameras: Sequence[Camera]) -> Tensor:
    """Viewing directions, (V, 3), unit length."""
    return torch.stack([camera.world_to_camera[2, :3].double() for camera in cameras])


def _mean_up(cameras: Sequence[Camera]) -> Tensor:
    """Mean of what is up in the images, (3,), unit length; y points down in a camera."""
    up = -torch.stack([camera.world_to_camera[1, :3].double() for camera in cameras]).mean(dim=0)
    if up.norm() < 1e-6:
        up = -cameras[0].world_to_camera[1, :3].double()
    return up / up.norm()


def _any_normal(direction: Tensor) -> Tensor:
    """A unit vector at right angles to ``direction``."""
    axis = torch.zeros(3, dtype=torch.float64)
    axis[direction.abs().argmin()] = 1
    normal = torch.linalg.cross(direction, axis)
    return normal / normal.norm()
