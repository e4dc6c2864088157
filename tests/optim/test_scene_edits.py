"""Every optimizer under random edits, against one whose state was carried over row by row."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optim.quadratic import Quadratic
from optim.test_contract import HORIZON, copy_of, every_form, make, quadratic
from splatopt.core.optimizer import Optimizer, Progress
from splatopt.core.scene_edit import SceneEdit, Written, apply_edit
from splatopt.core.state import OptimizerState
from splatopt.meta.loss_watch import LossWatch
from splatopt.optim.averaging import Averaged

DEGREES = {"momentum": 1, "exp_avg": 1, "slow": 1, "exp_avg_sq": 2, "curvature": 2, "diagonal": 2}
"""Of which degree in the gradient the saved states are; what is not named here is of none."""

CLEARED = ("momentum", "exp_avg", "exp_avg_sq", "slow")
"""What the reset of one parameter clears."""

NOT_BY_ROW = ("near", "visited_views")
"""Saved tensors that are found anew, or that know no rows."""

WATCHED = tuple(LossWatch().scalars())
"""Numbers of the losses that learned watches."""


@st.composite
def edits(draw: st.DrawFn, objective: Quadratic) -> SceneEdit:
    """Any edit of the objective's rows; six are left at least, which learned needs, and factors are powers of two."""
    parameters = objective.parameters
    count = len(parameters["means"])
    size = draw(st.integers(6, 9))
    source = torch.tensor(draw(st.lists(st.integers(0, count - 1), min_size=size, max_size=size)))

    def flags() -> Tensor:
        return torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)))

    rows = flags().nonzero().squeeze(1)
    shift = draw(st.sampled_from([-0.25, 0.5]))
    names = draw(st.sets(st.sampled_from(sorted(parameters))))
    values = {name: Written(rows, parameters[name][source[rows]] + shift) for name in names}
    powers = draw(st.lists(st.integers(-1, 1), min_size=size, max_size=size))
    scaled = draw(st.sets(st.sampled_from(sorted(parameters))))
    factors = {name: 2.0 ** torch.tensor(powers, dtype=torch.float32) for name in scaled}
    resets = {name: flags() for name in draw(st.sets(st.sampled_from(sorted(parameters)), max_size=2))}
    return SceneEdit(source, flags(), values, resets, factors)


def row_by_row(optimizer: Optimizer, edit: SceneEdit) -> dict[str, Tensor]:
    """What an optimizer's saved tensors become, one row after the other; the objective has been edited already."""
    saved, parameters = optimizer.state().tensors, optimizer.objective.parameters
    count = len(edit)
    found = {}
    for key, old in saved.items():
        if key in NOT_BY_ROW:
            continue
        kind, _, name = key.partition(".")
        new = torch.zeros((count, *old.shape[1:]), dtype=old.dtype)
        for row in range(count):
            new[row] = moved(key, old, row, edit, optimizer)
            if kind == "average" and anew(edit, row):
                new[row] = 0 if name == "ages" else parameters[name][row]
            elif edit.fresh[row]:
                new[row] = 0
            if key == "growth.largest" and edit.fresh[row]:
                new[row] = parameters["log_scales"][row].max() + math.log(optimizer.options.max_growth)
            if kind in CLEARED and name in edit.resets and edit.resets[name][row]:
                new[row] = 0
        found[key] = new
    return found


def anew(edit: SceneEdit, row: int) -> bool:
    return bool(edit.fresh[row]) or any(row in written.rows.tolist() for written in edit.values.values())


def moved(key: str, old: Tensor, row: int, edit: SceneEdit, optimizer: Optimizer) -> Tensor:
    """A row of a state, times the factors that belong to it."""
    kind, _, name = key.partition(".")
    copied = old[edit.source[row]].clone()
    if kind == "blocks":
        objective = optimizer.objective
        names = [name for name in objective.block_names for _ in range(objective.parameters[name][0].numel())]
        factors = [float(edit.factors[name][row]) if name in edit.factors else 1.0 for name in names]
        for i in range(len(names)):
            for j in range(i + 1):
                copied[i * (i + 1) // 2 + j] *= factors[i] * factors[j]
    elif name in edit.factors:
        copied *= float(edit.factors[name][row]) ** degree(kind, optimizer)
    return copied


def degree(kind: str, optimizer: Optimizer) -> int:
    squares = type(optimizer).__name__ == "Esgd" or getattr(optimizer.options, "moment", None) == "squares"
    return 4 if kind == "curvature" and squares else DEGREES.get(kind, 0)


def unwatched(optimizer: Optimizer) -> dict[str, float | int]:
    """Return a state's numbers but for those that an edit of most rows has begin anew."""
    return {name: value for name, value in optimizer.state().scalars.items() if name not in WATCHED}


def check_edits(name: str, data: st.DataObject, averaged: bool = False) -> None:
    """Edit a run at random, carry its state over row by row beside it, and let both go on."""

    def made(objective: Quadratic) -> Optimizer:
        return Averaged(make(name, objective), 8.0) if averaged else make(name, objective)

    objective = quadratic(name, rows=6)
    optimizer = made(objective)
    step = 0
    for _ in range(data.draw(st.integers(1, 3))):
        for _ in range(data.draw(st.integers(0, 2))):
            optimizer.step(None, Progress(step, HORIZON))
            step += 1
        edit = data.draw(edits(objective))
        before = unwatched(optimizer)
        objective.edit_rows(edit)
        expected = row_by_row(optimizer, edit)
        optimizer.edit_rows(edit)
        state = optimizer.state()
        assert unwatched(optimizer) == before
        for key, value in expected.items():
            assert torch.equal(state.tensors[key], value), key
    other = quadratic(name, rows=6)
    other.values, other.targets, other.curvature = (
        {key: value.clone() for key, value in part.items()}
        for part in (objective.values, objective.targets, objective.curvature)
    )
    second = made(other)
    carried = copy_of(optimizer.state())
    second.load_state(OptimizerState({**carried.tensors, **expected}, carried.scalars))
    if optimizer.generator is not None and second.generator is not None:
        second.generator.set_state(optimizer.generator.get_state())
    for one in (optimizer, second):
        one.step(None, Progress(step, HORIZON))
    for key, value in objective.parameters.items():
        assert torch.equal(value, other.parameters[key]), key


@every_form
@settings(max_examples=4, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_edits_are_as_row_by_row(name, data):
    check_edits(name, data)


@pytest.mark.slow
@every_form
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_many_random_edits_are_as_row_by_row(name, data):
    check_edits(name, data)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_edits_of_an_average_are_as_row_by_row(data):
    check_edits("adam", data, averaged=True)


@every_form
def test_an_edit_of_two_is_the_two_in_turn(name):
    """A clone that is pruned again, and its twin that stays, whichever way it is told."""
    source = torch.tensor([0, 1, 2, 3, 4, 5, 5])
    first = SceneEdit(source, torch.zeros(7, dtype=torch.bool), factors={"means": HALF})
    second = SceneEdit.keep(source != 1)
    results = []
    for sequence in ((first, second), (first.then(second),)):
        objective = quadratic(name, rows=6)
        optimizer = make(name, objective)
        for step in range(3):
            optimizer.step(None, Progress(step, HORIZON))
        for edit in sequence:
            apply_edit(edit, objective, optimizer)
        optimizer.step(None, Progress(3, HORIZON))
        results.append((objective.parameters, optimizer.state()))
    (one, state), (other, state_of_other) = results
    for key, value in one.items():
        assert torch.equal(value, other[key]), key
    for key, value in state.tensors.items():
        assert torch.equal(value, state_of_other.tensors[key]), key


HALF = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5])


@pytest.mark.parametrize("name", ["block-gn", "learned"])
def test_a_reset_of_opacities_leaves_all_else(name):
    objective = quadratic(f"{name} on a cloud", rows=5)
    optimizer = make(name, objective)
    for step in range(3):
        optimizer.step(None, Progress(step, HORIZON))
    before = copy_of(optimizer.state())
    edit = SceneEdit.in_place(5, resets={"logit_opacities": torch.tensor([True, False, True, False, False])})
    apply_edit(edit, objective, optimizer)
    for key, value in optimizer.state().tensors.items():
        expected = before.tensors[key].clone()
        if key in ("momentum.logit_opacities", "exp_avg.logit_opacities", "slow.logit_opacities"):
            assert expected.any()
        if key.endswith(".logit_opacities") and key.partition(".")[0] in CLEARED:
            expected[[0, 2]] = 0
        assert torch.equal(value, expected), key


def test_an_edit_of_a_parameter_that_there_is_not_is_refused():
    objective = quadratic("adam", rows=3)
    optimizer = make("adam", objective)
    reset = SceneEdit.in_place(3, resets={"opacities": torch.tensor([True, False, False])})
    with pytest.raises(ValueError, match="an edit is of opacities, and the parameters are means"):
        optimizer.edit_rows(reset)
