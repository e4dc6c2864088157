"""Tours stay by the cameras, look as they do and move smoothly; orbits are for cameras that surround the scene."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.test_camera_paths import TARGET, assert_rigid, looking, ring
from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.data.camera_paths import surround
from splatopt.data.camera_tour import tour


def arc(count: int = 12, degrees: float = 150.0, radius: float = 3.0) -> list[Camera]:
    """Cameras on an arc around the target, at changing heights."""
    angles = [math.radians(degrees) * i / (count - 1) for i in range(count)]
    x, y, z = TARGET
    return [
        looking((x + radius * math.cos(a), y + radius * math.sin(a), z + 1 + 0.3 * (i % 2)), TARGET)
        for i, a in enumerate(angles)
    ]


def patch(side: int = 5) -> list[Camera]:
    """Cameras on a patch that face one way."""
    places = [(0.5 * i, -4.0, 0.5 * j) for i in range(side) for j in range(side)]
    return [looking((x, y, z), (x, 4.0, z)) for x, y, z in places]


def walk(count: int = 40) -> list[Camera]:
    """Cameras along a corridor with a corner, each looking ahead."""
    half = count // 2
    straight = [looking((0.4 * i, 0.0, 1.5), (0.4 * i + 1, 0.0, 1.5)) for i in range(half)]
    return straight + [looking((0.4 * half, 0.4 * i, 1.5), (0.4 * half, 0.4 * i + 1, 1.5)) for i in range(half)]


def outward(count: int = 8) -> list[Camera]:
    """Cameras on a ring that look away from its middle."""
    angles = [2 * math.pi * i / count for i in range(count)]
    return [looking((math.cos(a), math.sin(a), 0.0), (9 * math.cos(a), 9 * math.sin(a), 0.0)) for a in angles]


def centers(cameras: list[Camera]) -> torch.Tensor:
    return torch.stack([camera.center for camera in cameras])


def forwards(cameras: list[Camera]) -> torch.Tensor:
    return torch.stack([camera.world_to_camera[2, :3] for camera in cameras])


def around(values: torch.Tensor) -> torch.Tensor:
    """First differences of a round trip."""
    return torch.roll(values, -1, dims=0) - values


@pytest.mark.parametrize(
    ("cameras", "expected"),
    [
        (ring(8), True),
        (ring(5), True),
        (ring(4), True),
        (ring(3), False),
        (arc(), False),
        (arc(degrees=300), True),
        (arc(degrees=240), False),
        (patch(), False),
        (walk(), False),
        (outward(), False),
        (ring(1), False),
    ],
)
def test_only_cameras_all_around_surround(cameras, expected):
    assert surround(cameras) is expected


@pytest.mark.parametrize(
    ("cameras", "reach", "left_out"),
    [(arc(), 0.45, 0.8), (patch(), 0.4, 0.5), (walk(), 0.3, 1.2), (ring(8), 1.15, 0.4)],
)
def test_a_tour_stays_by_the_cameras_and_looks_as_they_do(cameras, reach, left_out):
    path = tour(cameras, 120)
    assert len(path) == 120
    assert [path[0].name, path[-1].name] == ["tour-0000", "tour-0119"]
    apart = torch.cdist(centers(path), centers(cameras))
    assert apart.min(dim=1).values.max() < reach, "it strays from the cameras"
    assert apart.min(dim=0).values.max() < left_out, "it leaves a camera out"
    cosines = forwards(path) @ forwards(cameras).T
    cosines[apart > 2 * reach] = -1
    assert cosines.max(dim=1).values.min() > math.cos(math.radians(46)), "the walk turns by 90° between two cameras"
    for camera in path:
        assert_rigid(camera)
        assert camera.world_to_camera[1, 2] < -0.7, "up stays up"


@pytest.mark.parametrize("cameras", [arc(), patch(), walk(), ring(8)])
def test_a_tour_moves_smoothly(cameras):
    path = tour(cameras, 120)
    places = torch.cat([centers(path), forwards(path)], dim=1)
    steps = around(places)
    lengths = steps.norm(dim=1)
    assert lengths.max() < 1.6 * lengths.median(), "no leap"
    assert around(steps).norm(dim=1).max() < 0.5 * lengths.median(), "no jolt, where it turns back neither"


def test_a_tour_keeps_the_subject_in_the_picture():
    for camera in tour(arc(6, degrees=100), 60):
        x, y, z = camera.world_to_camera[:3, :3] @ (torch.tensor(TARGET).double() - camera.center)
        assert z > 0
        assert abs(x / z) < 0.05
        assert abs(y / z) < 0.05


def test_a_camera_far_away_is_left_aside():
    far = looking((5000.0, 0.0, 0.0), TARGET)
    reach = centers(tour([*arc(), far], 60)).norm(dim=1).max()
    assert reach < 6


@pytest.mark.parametrize(
    "cameras",
    [
        [looking((0.0, -3.0, 0.0), (0.0, 0.0, 0.0))],
        [looking((x, -3.0, 0.0), (x, 0.0, 0.0)) for x in (-1.0, 1.0)],
        [looking((1.0, 2.0, 3.0), (1 + math.cos(a), 2 + math.sin(a), 3.0)) for a in (0.0, 1.5, 3.0, 4.5)],
        [looking((0.0, 0.0, 0.0), (x, 0.0, 0.0)) for x in (-1.0, 1.0)],
        [looking((0.0, -3.0, 0.0), (0.0, 0.0, 0.0))] * 5,
    ],
)
@pytest.mark.parametrize("frames", [1, 2, 30])
def test_few_cameras_and_those_in_one_place_are_enough(cameras, frames):
    path = tour(cameras, frames)
    assert len(path) == frames
    for camera in path:
        assert_rigid(camera)
        assert (camera.center - cameras[0].center).norm() <= 2 + 1e-9


def test_a_tour_goes_through_some_of_many_cameras():
    cameras = arc(600)
    assert torch.cdist(centers(tour(cameras, 60)), centers(cameras)).min(dim=1).values.max() < 0.4


@given(
    scale=st.floats(-4, 3).map(lambda power: 10**power),
    shift=st.tuples(st.floats(-5e6, 5e6), st.floats(-5e6, 5e6), st.floats(-1e3, 1e3)),
)
@settings(max_examples=8, deadline=None)
def test_units_and_place_do_not_show_in_a_tour(scale, shift):
    by = torch.tensor(shift, dtype=torch.float64)
    drawn = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    cameras = [looking((x, y - 5, z), (x / 3, 0.0, z / 3)) for x, y, z in drawn]
    moved = []
    for camera in cameras:
        pose = camera.world_to_camera.clone()
        pose[:3, 3] = scale * pose[:3, 3] - pose[:3, :3] @ by
        moved.append(Camera(pose, camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height))
    assert surround(moved) == surround(cameras)
    tolerance = 1e-8 * (1 + float(by.norm()) / scale)
    if tolerance < 1e-2:
        there = (centers(tour(moved, 20)) - by) / scale
        torch.testing.assert_close(there, centers(tour(cameras, 20)), rtol=0, atol=tolerance)


def test_no_frames_are_refused():
    with pytest.raises(InputError, match="--frames must be at least 1, got 0"):
        tour(arc(), 0)
