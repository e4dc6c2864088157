"""What the number of different views leaves of the higher bands' rate."""

from __future__ import annotations

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.core.state import OptimizerState
from splatopt.optim.met_views import MetViews


def test_each_view_counts_once_and_no_more_than_all_of_the_rate_is_taken():
    met = MetViews(8)
    assert met.color_share() == 1.0, "before any view, and where batches show none"
    shares = []
    for views in ((3, 5), (5, 3), (7,), tuple(range(20))):
        met.meet(views)
        shares.append(met.color_share())
    assert shares == [0.25, 0.25, 0.375, 1.0]


def test_without_a_number_of_views_the_rate_is_whole_and_nothing_is_kept():
    met = MetViews(0)
    met.meet((1, 2))
    assert met.color_share() == 1.0
    assert not met.tensors()


def test_met_views_are_kept_and_those_of_older_states_are_met_anew():
    met = MetViews(8)
    met.meet((9, 2, 4))
    saved = met.tensors()
    assert saved["met_views"].tolist() == [2, 4, 9]
    again = MetViews(8)
    again.load(OptimizerState(saved, {}))
    assert again.color_share() == 0.375
    again.meet((2, 5))
    assert again.color_share() == 0.5
    again.load(OptimizerState({}, {}))
    assert again.color_share() == 1.0
    off = MetViews(0)
    off.load(OptimizerState(saved, {}))
    assert off.color_share() == 1.0


@pytest.mark.parametrize("odd", [torch.tensor([1.5, 2.0]), torch.tensor([[1, 2]])])
def test_what_are_no_views_is_refused(odd):
    with pytest.raises(InputError, match="must be a row of int64, got .*start a new run"):
        MetViews(8).load(OptimizerState({"met_views": odd}, {}))
