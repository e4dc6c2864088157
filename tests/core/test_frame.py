"""The training frame: chosen by the cameras, exact there and back, and blind to a capture's units and place."""

from __future__ import annotations

import math

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.core.frame import USUAL_DISTANCE, WORLD, Frame


def poses(count: int = 9, seed: int = 0) -> list[torch.Tensor]:
    """Cameras at random places, turned at random."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = turn * torch.linalg.det(turn).sign()
        pose[:3, 3] = torch.randn(3, generator=generator, dtype=torch.float64) * 4
        found.append(pose)
    return found


def centers(of: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([-pose[:3, :3].T @ pose[:3, 3] for pose in of])


def moved(of: list[torch.Tensor], scale: float, shift: torch.Tensor) -> list[torch.Tensor]:
    """The same cameras in a world that is ``scale`` times as large and shifted."""
    found = []
    for pose in of:
        other = pose.clone()
        other[:3, 3] = scale * pose[:3, 3] - pose[:3, :3] @ shift
        found.append(other)
    return found


def test_half_of_the_cameras_stand_within_the_usual_distance():
    cameras = poses()
    frame = Frame.around(cameras)
    local = centers([frame.pose(pose) for pose in cameras])
    assert local.quantile(0.5, dim=0).abs().max() < 1e-12
    assert local.norm(dim=1).quantile(0.5) == pytest.approx(USUAL_DISTANCE, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (5e5, 4.6e6, 300.0)])
def test_neither_units_nor_place_show_in_the_frame(scale, shift):
    cameras, moved_by = poses(), torch.tensor(shift, dtype=torch.float64)
    points = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    others = moved(cameras, scale, moved_by)
    frame, other = Frame.around(cameras), Frame.around(others)
    tolerance = 1e-12 * (1 + float(moved_by.norm()) / scale)
    for mine, theirs in zip(cameras, others, strict=True):
        torch.testing.assert_close(frame.pose(mine), other.pose(theirs), rtol=0, atol=tolerance)
    torch.testing.assert_close(
        frame.to_local(points), other.to_local(scale * points + moved_by), rtol=0, atol=tolerance
    )


def test_a_camera_sees_the_same_picture():
    cameras = poses()
    frame = Frame.around(cameras)
    points = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for pose in cameras:
        local = frame.pose(pose)
        seen = points @ pose[:3, :3].T + pose[:3, 3]
        again = frame.to_local(points) @ local[:3, :3].T + local[:3, 3]
        torch.testing.assert_close(seen, again * frame.unit)


def test_there_and_back():
    frame = Frame((5e5, 4.6e6, 300.0), 12.5)
    points = torch.randn(20, 3, dtype=torch.float64) * 100 + torch.tensor([5e5, 4.6e6, 300.0], dtype=torch.float64)
    torch.testing.assert_close(frame.to_world(frame.to_local(points)), points, rtol=1e-15, atol=0)
    assert frame.to_local(points.float()).dtype == torch.float64


def test_one_far_camera_does_not_decide():
    cameras = poses(count=9)
    far = [*cameras[:-1], cameras[-1].clone()]
    far[-1][:3, 3] *= 1e6
    assert Frame.around(far).unit == pytest.approx(Frame.around(cameras).unit, rel=0.6)


def test_cameras_in_one_place_take_the_points_for_their_size():
    pose = poses(count=1)[0]
    center = centers([pose])[0]
    points = center + torch.tensor([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 5.0]], dtype=torch.float64)
    frame = Frame.around([pose, pose], points)
    assert frame.unit == pytest.approx(2 / USUAL_DISTANCE)
    assert Frame.around([pose, pose]).unit == 1
    assert Frame.around([pose, pose], points[:0]).unit == 1


def test_a_frame_in_a_text_keeps_every_bit():
    frame = Frame((0.1, -1 / 3, 4.6e6), math.pi)
    assert Frame.parse(frame.text) == frame
    assert WORLD.is_world
    assert not frame.is_world


@pytest.mark.parametrize(
    "text", ["", "0x1p0 0x1p0 0x1p0", "x y z w", "nan 0 0 0x1p0", "0 0 0 -0x1p0", "0 0 0 inf", "0 0 0 0"]
)
def test_what_is_no_frame_is_refused(text):
    with pytest.raises(InputError, match="training frame"):
        Frame.parse(text)


def test_precision_is_the_spacing_of_float32_there():
    frame = Frame((5e5, 4.6e6, 300.0), 1.0)
    place = torch.tensor(4.6e6)
    assert frame.spacing == pytest.approx(float(torch.nextafter(place, torch.tensor(torch.inf)) - place), rel=1.0)
    assert frame.is_far
    assert not Frame((5.0, 4.0, 3.0), 1.0).is_far
    assert not Frame((5e5, 4.6e6, 300.0), 1e6).is_far


def test_two_cameras_have_a_size():
    pose = torch.eye(4, dtype=torch.float64)
    other = pose.clone()
    other[0, 3] = -1000.0
    frame = Frame.around([pose, other])
    assert frame.origin == (500.0, 0.0, 0.0)
    assert frame.unit == pytest.approx(500 / USUAL_DISTANCE)


@pytest.mark.parametrize("center", [(0.0, 0.0, 0.0), (10.0, 20.0, 30.0), (5e5, 4.6e6, 300.0)])
def test_rounding_is_no_size_without_points_either(center):
    spot, generator = poses(6), torch.Generator().manual_seed(3)
    for pose in spot:
        noise = 1e-17 * torch.randn(3, dtype=torch.float64, generator=generator)
        pose[:3, 3] = -pose[:3, :3] @ (torch.tensor(center, dtype=torch.float64) + noise)
    assert Frame.around(spot).unit == 1


@pytest.mark.parametrize("center", [(0.0, 0.0, 0.0), (1.0, 2.0, 3.0)])
def test_rounding_is_no_size(center):
    """Cameras that turn on the spot come out of an inverse a little apart."""
    generator = torch.Generator().manual_seed(3)
    points = torch.randn(200, 3, dtype=torch.float64, generator=generator) * 5 + torch.tensor(center)
    spot = []
    for pose in poses(12):
        noise = 1e-11 * torch.randn(3, dtype=torch.float64, generator=generator)
        turned = pose.clone()
        turned[:3, 3] = -turned[:3, :3] @ (torch.tensor(center, dtype=torch.float64) + noise)
        spot.append(turned)
    frame = Frame.around(spot, points)
    assert frame.to_local(points).norm(dim=1).quantile(0.5) == pytest.approx(USUAL_DISTANCE, rel=1e-6)
