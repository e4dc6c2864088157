"""Scene edits: gathers, written values, states that start anew or are scaled, and two edits as one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.scene_edit import SceneEdit, Written, apply_edit


def test_gather_copies_rows_in_order():
    rows = torch.arange(12.0).reshape(4, 3)
    edit = SceneEdit(torch.tensor([2, 2, 0]), torch.tensor([False, True, False]))
    assert torch.equal(edit.gather(rows), rows[[2, 2, 0]])
    assert len(edit) == 3


def test_gather_state_zeroes_what_is_fresh_and_leaves_the_old_alone():
    state = torch.arange(1.0, 13.0).reshape(4, 3)
    before = state.clone()
    edit = SceneEdit(torch.tensor([2, 2, 0]), torch.tensor([False, True, False]))
    expected = torch.tensor([[7.0, 8, 9], [0, 0, 0], [1, 2, 3]])
    assert torch.equal(edit.gather_state(state), expected)
    assert torch.equal(state, before)


def test_gather_state_of_one_number_a_row():
    edit = SceneEdit(torch.tensor([1, 0]), torch.tensor([True, False]))
    assert edit.gather_state(torch.tensor([3, 4])).tolist() == [0, 3]


def test_keep_prunes_and_keeps_states():
    edit = SceneEdit.keep(torch.tensor([True, False, True, True]))
    assert edit.source.tolist() == [0, 2, 3]
    assert edit.fresh.tolist() == [False, False, False]
    assert edit.gather_state(torch.tensor([5.0, 6, 7, 8])).tolist() == [5, 7, 8]


def test_keep_nothing_and_keep_one():
    assert SceneEdit.keep(torch.zeros(3, dtype=torch.bool)).gather(torch.ones(3, 2)).shape == (0, 2)
    assert SceneEdit.keep(torch.tensor([True])).gather(torch.ones(1, 2)).shape == (1, 2)


def test_values_are_written_over_the_gathered_rows():
    edit = SceneEdit(
        torch.tensor([2, 0, 0]),
        torch.zeros(3, dtype=torch.bool),
        {"a": Written(torch.tensor([2]), torch.tensor([9.0]))},
    )
    old = torch.tensor([1.0, 2, 3])
    assert edit.parameter("a", old).tolist() == [3, 1, 9]
    assert edit.parameter("b", old).tolist() == [3, 1, 1]
    assert old.tolist() == [1, 2, 3]


def test_a_reset_clears_one_parameters_momentum_and_a_factor_scales_by_degree():
    edit = SceneEdit.in_place(
        3,
        resets={"a": torch.tensor([True, False, False])},
        factors={"a": torch.tensor([1.0, 0.5, 1.0]), "b": torch.tensor([2.0, 1.0, 1.0])},
    )
    state = torch.tensor([8.0, 8.0, 8.0])
    assert edit.parameter_state("a", state, degree=1).tolist() == [0, 4, 8]
    assert edit.parameter_state("a", state, degree=2).tolist() == [0, 2, 8]
    assert edit.parameter_state("a", state, degree=2, resettable=False).tolist() == [8, 2, 8]
    assert edit.parameter_state("a", state, degree=0, resettable=False).tolist() == [8, 8, 8]
    assert edit.parameter_state("b", state, degree=1).tolist() == [16, 8, 8]
    assert edit.parameter_state("c", state, degree=1).tolist() == [8, 8, 8]
    assert edit.parameter("a", state).tolist() == [8, 8, 8]


NO = torch.tensor([False, False])


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ((torch.tensor([0, 1], dtype=torch.int32), NO), "source"),
        ((torch.tensor([[0, 1]]), NO), "source"),
        ((torch.tensor([0, 1]), torch.tensor([1, 0])), "fresh"),
        ((torch.tensor([0, 1]), torch.tensor([True])), "fresh"),
        ((torch.tensor([0, 1]), NO, {}, {"a": torch.tensor([True])}), r"resets\['a'\]"),
        ((torch.tensor([0, 1]), NO, {}, {}, {"a": torch.tensor([1, 2])}), r"factors\['a'\]"),
        ((torch.tensor([0, 1]), NO, {}, {}, {"a": torch.tensor([1.0, 0.0])}), r"factors\['a'\]"),
        ((torch.tensor([0, -1]), NO), "source"),
    ],
)
def test_columns_that_do_not_fit_are_named(columns, named):
    with pytest.raises(ValueError, match=f"{named} must be"):
        SceneEdit(*columns)


def test_written_values_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="rows must be"):
        Written(torch.tensor([0.0]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="values must have 2 rows"):
        Written(torch.tensor([0, 1]), torch.tensor([1.0]))


class Follower:
    """Notes the order in which it was told, and how many rows the objective had then."""

    def __init__(self, told: list[str], name: str) -> None:
        self.told, self.name = told, name

    def edit_rows(self, edit: SceneEdit) -> None:
        self.told.append(self.name)


def test_an_edit_reaches_the_objective_first_and_the_followers_in_order():
    told: list[str] = []
    objective, optimizer, strategy = (Follower(told, name) for name in ("objective", "optimizer", "strategy"))
    apply_edit(SceneEdit.in_place(2), objective, optimizer, strategy, check_memory=lambda rows: told.append(f"{rows}"))
    assert told == ["2", "objective", "optimizer", "strategy"]


def test_an_edit_that_does_not_fit_into_memory_changes_nothing():
    told: list[str] = []

    def refuse(rows: int) -> None:
        raise InputError(f"{rows} rows do not fit")

    with pytest.raises(InputError, match="2 rows do not fit"):
        apply_edit(SceneEdit.in_place(2), Follower(told, "objective"), check_memory=refuse)
    assert told == []


# ---------------------------------------------------------------------- two edits as one

NAMES = ("a", "b")


@st.composite
def edits(draw: st.DrawFn, count: int, maximum: int = 9) -> SceneEdit:
    """Any edit of ``count`` rows; factors are powers of two, which multiply without rounding."""
    size = draw(st.integers(0, maximum)) if count else 0
    columns = {name: draw(st.booleans()) for name in ("values a", "values b", "resets a", "factors a", "factors b")}
    source = torch.tensor(
        draw(st.lists(st.integers(0, max(0, count - 1)), min_size=size, max_size=size)), dtype=torch.int64
    )

    def flags() -> Tensor:
        return torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.bool)

    def written() -> Written:
        rows = flags().nonzero().squeeze(1)
        value = draw(st.integers(-50, 50))
        return Written(rows, torch.arange(len(rows), dtype=torch.float32) + value)

    def factor() -> Tensor:
        power = draw(st.lists(st.integers(-2, 2), min_size=size, max_size=size))
        return 2.0 ** torch.tensor(power, dtype=torch.float32)

    return SceneEdit(
        source,
        flags(),
        {name: written() for name in NAMES if columns[f"values {name}"]},
        {"a": flags()} if columns["resets a"] else {},
        {name: factor() for name in NAMES if columns[f"factors {name}"]},
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_two_edits_in_turn_are_their_composition(data):
    rows = data.draw(st.integers(0, 7))
    first = data.draw(edits(rows))
    second = data.draw(edits(len(first)))
    together = first.then(second)
    assert len(together) == len(second)
    old = torch.arange(1.0, rows + 1)
    assert torch.equal(together.gather_state(old), second.gather_state(first.gather_state(old)))
    for name in (*NAMES, "c"):
        assert torch.equal(together.parameter(name, old), second.parameter(name, first.parameter(name, old)))
        for degree in (0, 1, 2, 4):
            for resettable in (True, False):
                in_turn = first.parameter_state(name, old, degree, resettable)
                in_turn = second.parameter_state(name, in_turn, degree, resettable)
                assert torch.equal(together.parameter_state(name, old, degree, resettable), in_turn)
