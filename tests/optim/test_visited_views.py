"""What the number of different views leaves of the higher bands' rate."""

from __future__ import annotations

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.core.state import OptimizerState
from splatopt.optim.visited_views import VisitedViews


def test_each_view_counts_once_and_no_more_than_all_of_the_rate_is_taken():
    visited = VisitedViews(8)
    assert visited.color_share() == 1.0, "before any view, and where batches show none"
    shares = []
    for views in ((3, 5), (5, 3), (7,), tuple(range(20))):
        visited.visit(views)
        shares.append(visited.color_share())
    assert shares == [0.25, 0.25, 0.375, 1.0]


def test_without_a_number_of_views_the_rate_is_whole_and_nothing_is_kept():
    visited = VisitedViews(0)
    visited.visit((1, 2))
    assert visited.color_share() == 1.0
    assert not visited.tensors()


def test_visited_views_are_kept_and_older_states_begin_with_none():
    visited = VisitedViews(8)
    visited.visit((9, 2, 4))
    saved = visited.tensors()
    assert saved["visited_views"].tolist() == [2, 4, 9]
    again = VisitedViews(8)
    again.load(OptimizerState(saved, {}))
    assert again.color_share() == 0.375
    again.visit((2, 5))
    assert again.color_share() == 0.5
    again.load(OptimizerState({}, {}))
    assert again.color_share() == 1.0
    off = VisitedViews(0)
    off.load(OptimizerState(saved, {}))
    assert off.color_share() == 1.0


@pytest.mark.parametrize("odd", [torch.tensor([1.5, 2.0]), torch.tensor([[1, 2]])])
def test_what_are_no_views_is_refused(odd):
    with pytest.raises(InputError, match="must be a row of int64, got .*start a new run"):
        VisitedViews(8).load(OptimizerState({"visited_views": odd}, {}))
