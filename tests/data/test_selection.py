"""Few views that see a scene from all around."""

from __future__ import annotations

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.data import CaptureOptions, load_capture
from splatopt.data.selection import camera_centers, farthest_points, sparse_split
from train.toys import make_toy_capture


def line(*places: float) -> torch.Tensor:
    return torch.tensor([[place, 0.0, 0.0] for place in places], dtype=torch.float64)


def test_each_next_point_is_the_farthest_from_those_chosen():
    assert farthest_points(line(0, 1, 2, 3, 10), 4, 2) == [2, 4, 0, 1]


def test_ties_go_to_the_first():
    assert farthest_points(line(-1, 0, 1), 3, 1) == [1, 0, 2]


def test_points_at_one_place_are_chosen_once_each():
    assert sorted(farthest_points(line(5, 5, 5, 5), 4, 2)) == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(5))
def test_no_choice_of_as_many_leaves_a_gap_less_than_half_as_wide(seed):
    """Gonzalez' bound: the widest gap is at most twice the best possible one."""
    from itertools import combinations

    points = torch.rand(9, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    distances = torch.cdist(points, points)

    def gap(chosen):
        return float(distances[list(chosen)].min(dim=0).values.max())

    best = min(gap(chosen) for chosen in combinations(range(9), 3))
    assert gap(farthest_points(points, 3, 0)) <= 2 * best + 1e-12


@pytest.mark.parametrize("count", [0, 4])
def test_as_many_as_there_are_points_at_most(count):
    with pytest.raises(ValueError, match="between 1 and the 3 positions"):
        farthest_points(line(0, 1, 2), count, 0)


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    return load_capture(make_toy_capture(tmp_path_factory.mktemp("capture") / "toy"), CaptureOptions())


def test_a_sparse_split_holds_out_the_rest(capture):
    split = sparse_split(capture, 3)
    assert split.name == "sparse-3-of-10"
    assert len(split.train) == 3
    assert sorted(split.train + split.test) == list(range(10))
    centers = camera_centers(capture.cameras)
    first = int((centers - centers.mean(dim=0)).norm(dim=1).argmin())
    assert set(split.train) == set(farthest_points(centers, 3, first))


def test_a_capture_with_test_views_of_its_own_keeps_them(capture):
    from dataclasses import replace

    from splatopt.data import Split

    own = replace(capture, split=Split("blender", (0, 2, 4, 6, 8), (1, 3), is_own=True))
    split = sparse_split(own, 5)
    assert split.train == (0, 2, 4, 6, 8)
    assert split.test == (1, 3)
    assert set(sparse_split(own, 2).train) < {0, 2, 4, 6, 8}


@pytest.mark.parametrize("count", [-1, 10])
def test_at_least_one_view_is_held_out(capture, count):
    with pytest.raises(InputError, match="between 1 and 9"):
        sparse_split(capture, count)
