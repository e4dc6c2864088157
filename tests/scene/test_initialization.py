"""Starting clouds: sizes from neighbours, colours, cubes from cameras."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.core.constants import SH_C0
from splatopt.data import load_capture
from splatopt.raster.reference_projection import view_colors
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.initialization import (
    FromPoints,
    FromScene,
    Random,
    neighbour_distances,
    parse_initialization,
    points_file,
    start_from_points,
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
    with pytest.raises(InputError, match=r"--init must be sfm, random or the path of a scene file, got"):
        parse_initialization(init, 50)


def test_each_makes_its_cloud(tmp_path):
    make_toy_capture(tmp_path / "toy")
    capture, generator = load_capture(tmp_path / "toy"), torch.Generator().manual_seed(3)
    points = FromPoints().cloud(capture, 1, generator)
    assert same(points, start_from_points(capture.points.positions, capture.points.colors, sh_degree=1))
    drawn = Random(40).cloud(capture, 2, generator)
    assert same(drawn, start_random(capture, 40, 2, torch.Generator().manual_seed(3)))
    save_ply(points, tmp_path / "scene.ply")
    assert same(FromScene(tmp_path / "scene.ply").cloud(capture, 1, generator), points)
    assert FromScene(tmp_path / "scene.ply").cloud(capture, 3, generator).sh_degree == 3
    with pytest.raises(InputError, match="holds no points to start from; start with --init random"):
        FromPoints().cloud(replace(capture, points=None), 1, generator)


def test_the_file_of_the_points_is_named_where_they_are_begun_from(tmp_path):
    make_toy_capture(tmp_path / "toy")
    capture = load_capture(tmp_path / "toy")
    beside = replace(capture, points=replace(capture.points, file="sparse_pc.ply"))
    assert points_file(FromPoints(), beside) == "sparse_pc.ply"
    assert points_file(FromPoints(), capture) == ""
    assert points_file(FromPoints(), replace(capture, points=None)) == ""
    assert points_file(Random(3), beside) == ""
