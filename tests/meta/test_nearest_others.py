"""The nearest others: the native search, and scipy's where that is missing, against all distances."""

from __future__ import annotations

import math

import pytest
import torch

from splatopt.core import native
from splatopt.core.checks import InputError
from splatopt.meta.neighbours import nearest_others


def clusters(count: int) -> torch.Tensor:
    """Groups of very different density, as a scene has them."""
    generator = torch.Generator().manual_seed(count)
    spread = torch.exp(2 * torch.randn(count, 1, generator=generator)) * 0.01
    centres = torch.randn(count // 20 + 1, 3, generator=generator)
    return centres[torch.arange(count) % len(centres)] + spread * torch.randn(count, 3, generator=generator)


def by_all_distances(points: torch.Tensor, count: int) -> torch.Tensor:
    """Rows by distance, in float32, and by number where points are equally far."""
    away = points[:, None] - points[None]
    squared = away[..., 0] * away[..., 0] + away[..., 1] * away[..., 1] + away[..., 2] * away[..., 2]
    return squared.fill_diagonal_(torch.inf).sort(dim=1, stable=True).indices[:, :count]


@pytest.mark.parametrize("total", [2, 5, 16, 17, 33, 130, 2000])
@pytest.mark.parametrize("count", [1, 4, 16])
def test_they_are_the_nearest(total, count):
    count = min(count, total - 1)
    points = clusters(total)
    expected = by_all_distances(points, count)
    assert torch.equal(nearest_others(points, count, threads=1), expected)
    assert torch.equal(nearest_others(points, count, threads=3), expected)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set_finds_the_same(isa):
    try:
        workers = native.workers(1, isa)
    except InputError as missing:
        pytest.skip(str(missing))
    points = clusters(500)
    rows = torch.empty(500, 5, dtype=torch.int64)
    workers.nearest_others(points, rows)
    assert torch.equal(rows, by_all_distances(points, 5))


def test_ties_go_to_the_smallest_row():
    """On a lattice with points at one place, all distances are exact and most are ties."""
    points = torch.randint(0, 4, (400, 3), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(nearest_others(points, 6), by_all_distances(points, 6))


def test_many_points_at_one_place_are_others_and_take_no_time():
    found = nearest_others(torch.zeros(200_000, 3), 4, threads=1)
    assert torch.equal(
        found[:6], torch.tensor([[1, 2, 3, 4], [0, 2, 3, 4], [0, 1, 3, 4], [0, 1, 2, 4]] + 2 * [[0, 1, 2, 3]])
    )
    assert (found[6:] == torch.arange(4)).all()


def test_coordinates_that_are_not_finite_count_as_zero_and_huge_ones_are_cut_off():
    points = clusters(60)
    points[::7] *= 1e30
    points[3], points[5] = math.nan, -math.inf
    mended = torch.nan_to_num(points, 0.0, 0.0, 0.0).clamp(-1e18, 1e18)
    assert torch.equal(nearest_others(points, 4), by_all_distances(mended, 4))


def test_float64_points_are_searched_as_float32():
    points = clusters(100).double()
    assert torch.equal(nearest_others(points, 4), by_all_distances(points.float(), 4))


def test_without_the_native_module_scipy_searches(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    points = clusters(300)
    assert torch.equal(nearest_others(points, 4), by_all_distances(points.double(), 4))
    together = nearest_others(torch.zeros(12, 3), 4)
    assert together.shape == (12, 4)
    assert (together != torch.arange(12)[:, None]).all()


def test_no_neighbours_and_too_few_points():
    assert nearest_others(clusters(5), 0).shape == (5, 0)
    with pytest.raises(InputError, match="needs at least 5 Gaussians, got 4"):
        nearest_others(clusters(4), 4)


@pytest.mark.parametrize(("points", "rows"), [((6, 2), (6, 1)), ((6, 3), (5, 1)), ((6, 3), (6, 6)), ((6, 3), (6, 0))])
def test_the_native_search_refuses_shapes_that_do_not_fit(points, rows):
    with pytest.raises(ValueError, match="points must be"):
        native.workers(1).nearest_others(torch.zeros(points), torch.empty(rows, dtype=torch.int64))
