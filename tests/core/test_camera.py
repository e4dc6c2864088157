"""The camera: its conventions and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from raster.cases import make_camera
from splatopt.core.camera import Camera
from splatopt.core.checks import InputError


def project(camera: Camera, point: torch.Tensor) -> tuple[float, float]:
    """The class's own formula."""
    x, y, z, _ = camera.world_to_camera @ torch.cat([point, torch.ones(1, dtype=torch.float64)])
    return float(camera.fx * x / z + camera.cx), float(camera.fy * y / z + camera.cy)


def test_center_maps_to_the_origin_of_the_camera():
    camera = make_camera(37, 23)
    at_eye = camera.world_to_camera[:3, :3] @ camera.center + camera.world_to_camera[:3, 3]
    torch.testing.assert_close(at_eye, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(camera.center, torch.tensor([0.7, -0.3, -4.0], dtype=torch.float64))


def test_resized_sees_the_same_view():
    camera = make_camera(37, 23)
    smaller = camera.resized(12, 46)
    assert (smaller.width, smaller.height, smaller.name) == (12, 46, camera.name)
    point = torch.tensor([0.2, -0.4, 0.9], dtype=torch.float64)
    x, y = project(camera, point)
    assert project(smaller, point) == pytest.approx((x * 12 / 37, y * 2))
    assert smaller.resized(37, 23).fx == pytest.approx(camera.fx)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pose_that_is_not_finite_is_refused_by_name(value):
    camera = make_camera(4, 4)
    pose = camera.world_to_camera.clone()
    pose[1, 2] = value
    with pytest.raises(InputError, match=r"camera 'DSC_7\.jpg': the pose holds a NaN"):
        dataclasses.replace(camera, world_to_camera=pose, name="DSC_7.jpg")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world_to_camera": torch.eye(3)}, "4x4"),
        ({"width": 0}, "at least 1x1, got 0x4"),
        ({"height": -2}, "at least 1x1, got 4x-2"),
        ({"fx": 0.0}, "focal lengths must be positive"),
        ({"fy": float("nan")}, "focal lengths must be positive"),
        ({"fx": float("inf")}, "focal lengths must be positive"),
    ],
)
def test_what_no_image_can_have_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(make_camera(4, 4), **changes)
