"""Starting clouds: sizes from neighbours, colours, cubes from cameras."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raster.cases import look_from, make_camera
from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.core.constants import SH_C0
from splatopt.data import load_capture
from splatopt.raster.reference_projection import view_colors
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.initialization import (
    FromPoints,
    FromScene,
    Random,
    cube_of_interest,
    neighbour_distances,
    parse_initialization,
    start_from_points,
    start_in_cube,
    start_random,
)
from splatopt.scene.ply import save_ply
from train.toys import make_toy_capture


def some_points(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    colors = torch.randint(0, 256, (count, 3), generator=generator, dtype=torch.uint8)
    return torch.randn(count, 3, generator=generator), colors


def test_sizes_equal_brute_force():
    positions, colors = some_points(60)
    distances = torch.cdist(positions.double(), positions.double())
    nearest = distances.sort(dim=1).values[:, 1:4]
    expected = nearest.square().mean(dim=1).sqrt().log()
    cloud = start_from_points(positions, colors)
    for axis in range(3):
        torch.testing.assert_close(cloud.log_scales[:, axis].double(), expected, rtol=1e-5, atol=1e-6)


def test_everything_else_is_as_3dgs_starts():
    positions, colors = some_points(30)
    cloud = start_from_points(positions, colors, sh_degree=2)
    assert torch.equal(cloud.means, positions)
    assert torch.equal(cloud.quats, torch.tensor([1.0, 0, 0, 0]).expand(30, 4))
    torch.testing.assert_close(torch.sigmoid(cloud.logit_opacities), torch.full((30,), 0.1))
    torch.testing.assert_close(cloud.sh_dc * SH_C0 + 0.5, colors / 255)
    assert cloud.sh_rest.shape == (30, 8, 3)
    assert not cloud.sh_rest.any()
    torch.testing.assert_close(view_colors(cloud, positions, None), colors / 255, rtol=0, atol=1e-6)
    assert cloud.means.data_ptr() != positions.data_ptr()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_degree_is_as_asked(degree):
    assert start_from_points(*some_points(10), sh_degree=degree).sh_degree == degree


def test_few_points_use_the_neighbours_there_are():
    line = torch.tensor([[0.0, 0, 0], [3.0, 0, 0], [0, 4.0, 0]])
    expected = torch.tensor([(9 + 16) / 2, (9 + 25) / 2, (16 + 25) / 2]).sqrt()
    torch.testing.assert_close(neighbour_distances(line), expected)
    torch.testing.assert_close(neighbour_distances(line[:2]), torch.tensor([3.0, 3.0]))
    torch.testing.assert_close(neighbour_distances(line[:1]), torch.tensor([0.1]))
    assert neighbour_distances(line[:0]).shape == (0,)


def test_points_that_coincide_keep_a_size():
    positions = torch.cat([torch.zeros(10, 3), torch.ones(1, 3)])
    cloud = start_from_points(positions, torch.zeros(11, 3, dtype=torch.uint8))
    torch.testing.assert_close(cloud.log_scales[0], torch.full((3,), 0.5 * math.log(1e-7)))
    torch.testing.assert_close(cloud.log_scales[10], torch.full((3,), 0.5 * math.log(3.0)))
    cloud.check_finite("start")


def test_no_points_point_to_the_random_start():
    with pytest.raises(InputError, match="--init random"):
        start_from_points(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8))


def test_non_finite_points_are_counted():
    positions, colors = some_points(5)
    positions[1, 2] = float("nan")
    positions[4] = float("inf")
    with pytest.raises(InputError, match="2 of 5 points"):
        start_from_points(positions, colors)


def same(one: GaussianCloud, other: GaussianCloud) -> bool:
    return all(torch.equal(tensor, getattr(other, name)) for name, tensor in one.tensors.items())


def test_cube_is_filled_evenly_and_follows_the_generator():
    center = torch.tensor([1.0, -2.0, 3.0])
    cloud = start_in_cube(4000, center, 1.3, generator=torch.Generator().manual_seed(1))
    inside = (cloud.means - center) / 1.3
    assert float(inside.abs().max()) <= 1
    assert float(inside.abs().max()) > 0.99
    # Uniform on [-1, 1]: mean 0 ± 1/√(3·4000), variance 1/3.
    assert float(inside.mean(dim=0).abs().max()) < 4 / math.sqrt(3 * 4000)
    torch.testing.assert_close(inside.var(dim=0), torch.full((3,), 1 / 3), rtol=0.1, atol=0)
    colors = cloud.sh_dc * SH_C0 + 0.5
    assert float(colors.min()) >= -1e-6
    assert float(colors.max()) <= 1 + 1e-6
    torch.testing.assert_close(colors.mean(dim=0), torch.full((3,), 0.5), rtol=0, atol=0.02)
    torch.testing.assert_close(cloud.log_scales[:, 0], neighbour_distances(cloud.means).log())
    assert same(cloud, start_in_cube(4000, center, 1.3, generator=torch.Generator().manual_seed(1)))
    assert not same(cloud, start_in_cube(4000, center, 1.3, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("count", [0, -3])
def test_cube_wants_at_least_one(count):
    with pytest.raises(InputError, match="at least 1 Gaussian"):
        start_in_cube(count, torch.zeros(3), 1.0)


def test_cube_wants_a_size():
    with pytest.raises(ValueError, match="half_size must be a positive number"):
        start_in_cube(10, torch.zeros(3), 0.0)


def ring(target: tuple[float, float, float], radius: float, outward: bool = False) -> list[Camera]:
    """Cameras of 0.6911 rad on a ring about ``target``, looking at it, or away from it."""
    focal = 50 / math.tan(0.6911 / 2)
    cameras = []
    for index in range(8):
        angle = 2 * math.pi * index / 8
        forward = torch.tensor([math.sin(angle), 0.5, math.cos(angle)], dtype=torch.float64)
        forward = forward / forward.norm()
        right = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), forward)
        right = right / right.norm()
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
        eye = torch.tensor(target, dtype=torch.float64) + (radius if outward else -radius) * forward
        pose[:3, 3] = -pose[:3, :3] @ eye
        cameras.append(Camera(pose, focal, focal, 50.0, 50.0, 100, 100))
    return cameras


def test_cube_of_a_blender_ring_is_that_of_3dgs():
    center, half_size = cube_of_interest(ring((0.3, -0.2, 0.1), 4.031))
    torch.testing.assert_close(center, torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64))
    assert half_size == pytest.approx(1.3, abs=0.02)
    cloud = start_random(ring((0.3, -0.2, 0.1), 4.031), 500, sh_degree=1, generator=torch.Generator().manual_seed(0))
    assert len(cloud) == 500
    assert cloud.sh_degree == 1
    expected = start_in_cube(500, center, half_size, 1, torch.Generator().manual_seed(0))
    assert same(cloud, expected)


def test_cube_of_cameras_that_look_outward_holds_the_cameras():
    cameras = ring((0.0, 0.0, 0.0), 1.0, outward=True)
    center, half_size = cube_of_interest(cameras)
    eyes = torch.stack([camera.center for camera in cameras])
    torch.testing.assert_close(center, eyes.mean(dim=0))
    assert half_size == pytest.approx(2 * float((eyes - center).norm(dim=1).max()))


def test_cube_of_parallel_axes_and_of_one_camera():
    def beside(x: float) -> Camera:
        return Camera(look_from((x, 0.0, -4.0)), 50.0, 50.0, 24.0, 16.0, 48, 32)

    center, half_size = cube_of_interest([beside(0.0), beside(1.0), beside(2.0)])
    torch.testing.assert_close(center, torch.tensor([1.0, 0.0, -4.0], dtype=torch.float64))
    assert half_size == pytest.approx(2.0)
    alone = make_camera(48, 32)
    center, half_size = cube_of_interest([alone])
    torch.testing.assert_close(center, alone.center)
    assert half_size == 1.0


# ---------------------------------------------------------------------- what a run is told


@pytest.mark.parametrize(
    ("init", "found", "has_bands"),
    [
        ("sfm", FromPoints(), False),
        ("random", Random(50), False),
        ("runs/a/scene.ply", FromScene(Path("runs/a/scene.ply")), True),
    ],
)
def test_what_init_stands_for(init, found, has_bands):
    assert parse_initialization(init, 50) == found
    assert found.has_bands is has_bands


@pytest.mark.parametrize("init", ["", "points", "scene.obj", "RANDOM"])
def test_other_words_are_refused(init):
    with pytest.raises(InputError, match=r"--init must be sfm, random or the path of a \.ply file, got"):
        parse_initialization(init, 50)


def test_each_makes_its_cloud(tmp_path):
    make_toy_capture(tmp_path / "toy")
    capture, generator = load_capture(tmp_path / "toy"), torch.Generator().manual_seed(3)
    points = FromPoints().cloud(capture, 1, generator)
    assert same(points, start_from_points(capture.points.positions, capture.points.colors, sh_degree=1))
    drawn = Random(40).cloud(capture, 2, generator)
    assert same(drawn, start_random(capture.cameras, 40, 2, torch.Generator().manual_seed(3)))
    save_ply(points, tmp_path / "scene.ply")
    assert same(FromScene(tmp_path / "scene.ply").cloud(capture, 1, generator), points)
    assert FromScene(tmp_path / "scene.ply").cloud(capture, 3, generator).sh_degree == 3
    with pytest.raises(InputError, match="holds no points to start from; start with --init random"):
        FromPoints().cloud(replace(capture, points=None), 1, generator)
