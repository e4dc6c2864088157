"""Nearest neighbours against scipy's k-d tree and against all distances."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial import cKDTree

from kernels.interpreter import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)

from splatopt.core.checks import InputError
from splatopt.kernels import neighbours
from splatopt.kernels.neighbours import nearest_neighbours


@pytest.fixture(autouse=True)
def small_tree(monkeypatch):
    """A tree of several groups and leaves over a few points."""
    monkeypatch.setattr(neighbours, "LEAF", 16)
    monkeypatch.setattr(neighbours, "GROUP", 4)


def cloud(count: int) -> torch.Tensor:
    """Clusters of very different density, and points far out, as a scene has them."""
    generator = torch.Generator().manual_seed(count)
    spread = torch.exp(2 * torch.randn(count, 1, generator=generator)) * 0.01
    centre = torch.randn(count // 20 + 1, 3, generator=generator)[torch.arange(count) % (count // 20 + 1)]
    points = centre + spread * torch.randn(count, 3, generator=generator)
    points[::50] *= 1000
    return points


def all_distances(points: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by sorting all distances, in float32; a stable sort leaves ties by index."""
    away = points[:, None] - points[None]
    squared = away[:, :, 0] * away[:, :, 0] + away[:, :, 1] * away[:, :, 1] + away[:, :, 2] * away[:, :, 2]
    squared.fill_diagonal_(torch.inf)
    found = squared.sort(dim=1, stable=True)
    return found.indices[:, :count], found.values[:, :count]


@pytest.mark.parametrize(("total", "count"), [(110, 3), (70, 8), (40, 16), (17, 16), (2, 1)])
def test_neighbours_are_those_of_a_kd_tree(device, total, count):
    points = cloud(total)
    index, squared = nearest_neighbours(points.to(device), count)
    distance, expected = cKDTree(points.double().numpy()).query(points.double().numpy(), k=count + 1)
    # Float32 may exchange points that are equally far to seven digits; their distances tell.
    exact = torch.as_tensor(distance)[:, 1:]
    assert ((squared.double().cpu().sqrt() - exact).abs() <= 1e-6 * exact + 1e-6 * points.abs().max() * 1e-3).all()
    same = (index.cpu() == torch.as_tensor(expected)[:, 1:]).double().mean()
    assert same > 0.97
    assert (index.cpu() != torch.arange(total)[:, None]).all()


def test_ties_go_to_the_least_index(device):
    """On a lattice of small numbers with points at one place, all distances are exact and most are ties."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randint(0, 4, (80, 3), generator=generator).float()
    index, squared = nearest_neighbours(points.to(device), 5)
    expected_index, expected_squared = all_distances(points, 5)
    assert torch.equal(squared.cpu(), expected_squared)
    assert torch.equal(index.cpu(), expected_index)
    assert (squared == 0).any()


@pytest.mark.parametrize("shape", ["one place", "a line", "far apart"])
def test_degenerate_clouds(device, shape):
    points = torch.zeros(40, 3)
    if shape == "a line":
        points[:, 1] = torch.arange(40.0)
    elif shape == "far apart":
        points[:, 0] = 1e18
        points[7] = -1e18
    index, squared = nearest_neighbours(points.to(device), 4)
    expected_index, expected_squared = all_distances(points, 4)
    assert torch.equal(squared.cpu(), expected_squared)
    assert torch.equal(index.cpu(), expected_index)


def test_the_order_of_the_points_does_not_matter(device):
    points = cloud(60)
    shuffle = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    _, squared = nearest_neighbours(points.to(device), 3)
    _, shuffled = nearest_neighbours(points[shuffle].contiguous().to(device), 3)
    assert torch.equal(squared.cpu()[shuffle], shuffled.cpu())


def test_the_comparison_sees_a_box_that_is_too_small(device, monkeypatch):
    """With boxes that shrink towards 0 leaves are passed over, and neighbours missed."""
    boxes = neighbours._boxes
    points = cloud(70)
    expected = all_distances(points, 3)[1]
    assert torch.equal(nearest_neighbours(points.to(device), 3)[1].cpu(), expected)

    def shrunk(low: torch.Tensor, high: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = boxes(low, high, size)
        return (low + high) / 2, (low + high) / 2

    monkeypatch.setattr(neighbours, "_boxes", shrunk)
    assert not torch.equal(nearest_neighbours(points.to(device), 3)[1].cpu(), expected)


@pytest.mark.parametrize(
    ("points", "count", "message"),
    [
        (torch.zeros(5, 3), 5, "5 nearest neighbours need at least 6 points, got 5"),
        (torch.zeros(0, 3), 3, "at least 4 points, got 0"),
        (torch.zeros(5, 3), 0, "1 to 64, got 0"),
        (torch.zeros(90, 3), 65, "1 to 64, got 65"),
        (torch.full((9, 3), torch.nan), 3, "finite positions"),
        (torch.full((9, 3), -2e18), 3, "within ±1e\\+18"),
    ],
)
def test_what_cannot_be_searched_is_refused(device, points, count, message):
    with pytest.raises(InputError, match=message):
        nearest_neighbours(points.to(device), count)
