"""Camera paths look where they should, from where they should."""

from __future__ import annotations

import math

import pytest
import torch

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.data.camera_paths import attention, orbit, spiral
from splatopt.runs.pictures import file_names


def looking(center: tuple[float, float, float], target: tuple[float, float, float], name: str = "") -> Camera:
    """A camera whose image's up is the world's z."""
    eye, point = torch.tensor(center, dtype=torch.float64), torch.tensor(target, dtype=torch.float64)
    forward = (point - eye) / (point - eye).norm()
    right = torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    right = right / right.norm()
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    pose[:3, 3] = -pose[:3, :3] @ eye
    return Camera(pose, 100.0, 100.0, 32.0, 24.0, 64, 48, name)


TARGET = (1.0, -2.0, 0.5)


def ring(count: int = 8, radius: float = 3.0, height: float = 1.0) -> list[Camera]:
    angles = [2 * math.pi * i / count for i in range(count)]
    x, y, z = TARGET
    return [looking((x + radius * math.cos(a), y + radius * math.sin(a), z + height), TARGET) for a in angles]


def pixel(camera: Camera, point: tuple[float, float, float]) -> tuple[float, float]:
    x, y, z = camera.world_to_camera[:3, :3] @ torch.tensor(point, dtype=torch.float64) + camera.world_to_camera[:3, 3]
    assert z > 0, "the point lies ahead"
    return float(camera.fx * x / z + camera.cx), float(camera.fy * y / z + camera.cy)


def assert_rigid(camera: Camera) -> None:
    rotation = camera.world_to_camera[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(rotation).item() == pytest.approx(1.0)


def test_attention_is_where_the_axes_meet():
    assert attention(ring()).tolist() == pytest.approx(TARGET, abs=1e-4)


def test_attention_of_a_room_seen_from_inside_lies_ahead():
    directions = [(math.cos(angle), math.sin(angle)) for angle in (0.1, 0.2, 0.3)]
    outward = [looking((x, y, 0.0), (5 * x, 5 * y, 0.0)) for x, y in directions]
    point = attention(outward)
    for camera in outward:
        assert (camera.world_to_camera[:3, :3] @ point + camera.world_to_camera[:3, 3])[2] > 0


def test_an_orbit_keeps_distance_height_and_aim():
    path = orbit(ring(), 12)
    assert len(path) == 12
    for camera in path:
        assert_rigid(camera)
        assert pixel(camera, TARGET) == pytest.approx((32.0, 24.0), abs=1e-2)
        offset = camera.center - torch.tensor(TARGET, dtype=torch.float64)
        assert offset[:2].norm().item() == pytest.approx(3.0, abs=1e-3)
        assert offset[2].item() == pytest.approx(1.0, abs=1e-3)
        above = pixel(camera, (TARGET[0], TARGET[1], TARGET[2] + 0.1))
        assert above[1] < 24.0, "up stays up"
    gaps = [(a.center - b.center).norm().item() for a, b in zip(path, [*path[1:], path[0]], strict=True)]
    assert gaps == pytest.approx([gaps[0]] * 12)


def test_a_spiral_stays_among_the_cameras_and_keeps_its_aim():
    facing = [looking((x, -4.0, z), (0.0, 0.0, 0.0)) for x in (-1.0, 0.0, 1.0) for z in (-0.5, 0.0, 0.5)]
    path = spiral(facing, 20)
    for camera in path:
        assert_rigid(camera)
        assert pixel(camera, tuple(attention(facing).tolist())) == pytest.approx((32.0, 24.0), abs=1e-6)
        assert camera.center[0].abs() <= 1.0
        assert camera.center[2].abs() <= 0.5
    assert torch.stack([camera.center for camera in path])[:, 0].std() > 0.2


@pytest.mark.parametrize("path", [orbit, spiral])
def test_one_camera_is_enough(path):
    for camera in path([looking((0.0, -3.0, 0.0), (0.0, 0.0, 0.0))], 3):
        assert_rigid(camera)
        assert torch.isfinite(camera.world_to_camera).all()


@pytest.mark.parametrize("path", [orbit, spiral])
def test_cameras_side_by_side_with_parallel_axes(path):
    for camera in path([looking((x, -3.0, 0.0), (x, 0.0, 0.0)) for x in (-1.0, 0.0, 1.0)], 5):
        assert_rigid(camera)


def test_no_frames_are_refused():
    with pytest.raises(InputError, match="--frames must be at least 1, got 0"):
        orbit(ring(), 0)


def test_file_names_are_safe_and_unique():
    names = ["a/b.jpg", "a_b.png", "../../etc/passwd", "", "..", "Ünï 1.jpg", "c:\\x\\y.jpg"]
    files = file_names([looking((0.0, -1.0, 0.0), (0.0, 0.0, 0.0), name) for name in names])
    assert files[0] == "a_b.png"
    assert files[1] == "a_b-0001.png"
    assert len(set(files)) == len(names)
    for file in files:
        assert "/" not in file
        assert "\\" not in file
        assert file.endswith(".png")
        assert not file.startswith(".")
