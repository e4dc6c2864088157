"""Views are drawn without repetition, and go on where they were."""

from __future__ import annotations

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.train.sampler import ViewSampler


def sampler(seed: int = 0, views: tuple[int, ...] = (2, 3, 5, 7, 11)) -> ViewSampler:
    return ViewSampler(views, torch.Generator().manual_seed(seed))


def test_orders_are_permutations_and_differ():
    views = sampler()
    orders = [tuple(view for _ in range(5) for view in views.draw(1)) for _ in range(20)]
    assert all(sorted(order) == [2, 3, 5, 7, 11] for order in orders)
    assert len(set(orders)) > 10


def test_batches_reach_across_orders():
    single, batched = sampler(4), sampler(4)
    one_by_one = [view for _ in range(12) for view in single.draw(1)]
    together = [view for _ in range(4) for view in batched.draw(3)]
    assert one_by_one == together


def test_a_batch_larger_than_the_views_repeats_them():
    assert sorted(sampler(views=(1, 2)).draw(4)) == [1, 1, 2, 2]


def test_far_views_are_one_of_the_order_and_those_farthest_from_it():
    positions = torch.tensor([[float(place), 0.0, 0.0] for place in (0, 1, 2, 3, 10)])
    views = ViewSampler((2, 3, 5, 7, 11), torch.Generator().manual_seed(0), positions)
    shuffled = sampler()
    firsts = [view for _ in range(5) for view in shuffled.draw(1)]
    draws = [views.draw(3) for _ in range(5)]
    assert [draw[0] for draw in draws] == firsts
    expected = {2: (2, 11, 7), 3: (3, 11, 7), 5: (5, 11, 2), 7: (7, 11, 2), 11: (11, 2, 7)}
    assert draws == [expected[first] for first in firsts]
    assert sorted(views.draw(9)) == [2, 3, 5, 7, 11]


def test_distinct_views_never_repeat_and_all_come_round():
    views = sampler(3)
    batches = [views.draw_distinct(3) for _ in range(10)]
    assert all(len(set(batch)) == 3 for batch in batches)
    counts = [sum(batch.count(view) for batch in batches) for view in (2, 3, 5, 7, 11)]
    assert counts == [6] * 5, "whole orders are drawn, none is lost"


@pytest.mark.parametrize("count", [0, 5, 9])
def test_all_views_come_in_their_own_order_and_draw_nothing(count):
    views = sampler()
    first = views.draw(2)
    pending = views.state()
    assert views.draw_distinct(count) == (2, 3, 5, 7, 11)
    assert torch.equal(views.state(), pending)
    assert sorted((*first, *views.draw(3))) == [2, 3, 5, 7, 11]


def test_the_seed_decides():
    assert sampler(1).draw(5) == sampler(1).draw(5)
    assert {sampler(seed).draw(5) for seed in range(20)} != {sampler(0).draw(5)}


def test_state_continues():
    generator = torch.Generator().manual_seed(0)
    views = ViewSampler((2, 3, 5, 7, 11), generator)
    views.draw(3)
    pending, random = views.state().clone(), generator.get_state()
    expected = views.draw(9)
    other = torch.Generator()
    other.set_state(random)
    resumed = ViewSampler((2, 3, 5, 7, 11), other)
    resumed.load_state(pending)
    assert resumed.draw(9) == expected


def test_shuffling_forgets_the_order_at_hand():
    views = sampler()
    views.draw(3)
    views.shuffle()
    assert views.state().numel() == 0
    assert sorted(views.draw(5)) == [2, 3, 5, 7, 11]


def test_shuffling_makes_another_order_even_where_none_was_begun():
    """A checkpoint of step 0, or of an order's end, holds no view still to be drawn."""
    usual, shuffled, again = sampler(views=tuple(range(20))), *(sampler(views=tuple(range(20))) for _ in range(2))
    shuffled.shuffle()
    again.shuffle()
    assert shuffled.upcoming(20) != usual.upcoming(20)
    assert shuffled.draw(40) == again.draw(40)


def test_a_state_of_another_capture_is_refused():
    with pytest.raises(InputError, match="more training views than the 5"):
        sampler().load_state(torch.tensor([5]))


def test_no_view_is_refused():
    with pytest.raises(InputError, match="no view to train on"):
        ViewSampler((), torch.Generator())
