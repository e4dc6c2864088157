"""Row edits: gathers, and states that start anew where asked."""

from __future__ import annotations

import pytest
import torch

from splatopt.core.rows import RowEdit


def test_gather_copies_rows_in_order():
    rows = torch.arange(12.0).reshape(4, 3)
    edit = RowEdit(torch.tensor([2, 2, 0]), torch.tensor([False, True, False]))
    assert torch.equal(edit.gather(rows), rows[[2, 2, 0]])


def test_gather_state_zeroes_what_is_fresh_and_leaves_the_old_alone():
    state = torch.arange(1.0, 13.0).reshape(4, 3)
    before = state.clone()
    edit = RowEdit(torch.tensor([2, 2, 0]), torch.tensor([False, True, False]))
    expected = torch.tensor([[7.0, 8, 9], [0, 0, 0], [1, 2, 3]])
    assert torch.equal(edit.gather_state(state), expected)
    assert torch.equal(state, before)


def test_gather_state_of_one_number_a_row():
    edit = RowEdit(torch.tensor([1, 0]), torch.tensor([True, False]))
    assert edit.gather_state(torch.tensor([3, 4])).tolist() == [0, 3]


def test_keep_prunes_and_keeps_states():
    edit = RowEdit.keep(torch.tensor([True, False, True, True]))
    assert edit.source.tolist() == [0, 2, 3]
    assert edit.fresh.tolist() == [False, False, False]
    assert edit.gather_state(torch.tensor([5.0, 6, 7, 8])).tolist() == [5, 7, 8]


def test_keep_nothing_and_keep_one():
    assert RowEdit.keep(torch.zeros(3, dtype=torch.bool)).gather(torch.ones(3, 2)).shape == (0, 2)
    assert RowEdit.keep(torch.tensor([True])).gather(torch.ones(1, 2)).shape == (1, 2)


@pytest.mark.parametrize(
    ("source", "fresh", "named"),
    [
        (torch.tensor([0, 1], dtype=torch.int32), torch.tensor([True, False]), "source"),
        (torch.tensor([[0, 1]]), torch.tensor([[True, False]]), "source"),
        (torch.tensor([0, 1]), torch.tensor([1, 0]), "fresh"),
        (torch.tensor([0, 1]), torch.tensor([True]), "fresh"),
    ],
)
def test_columns_that_do_not_fit_are_named(source, fresh, named):
    with pytest.raises(ValueError, match=f"{named} must be"):
        RowEdit(source, fresh)
