"""The bound on growth: what it holds, what it leaves, and that it follows edits and checkpoints."""

from __future__ import annotations

import math

import pytest
import torch

import splatopt.meta  # noqa: F401 - registers learned
from optim.coupled import Coupled
from splatopt.core.checks import InputError
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.state import OptimizerState
from splatopt.optim.growth import GrowthBound, check_growth


def cloud() -> dict[str, torch.Tensor]:
    scales = torch.tensor([[0.0, -1.0, -2.0], [3.0, 3.0, 3.0]], dtype=torch.float64)
    return {"log_scales": scales, "means": torch.full((2, 3), 9.0, dtype=torch.float64)}


def test_all_axes_keep_to_a_multiple_of_the_longest_one_at_the_start() -> None:
    tensors = cloud()
    bound = GrowthBound(tensors, 4.0)
    tensors["log_scales"] += torch.tensor([[1.0, 3.0, -1.0], [2.0, 0.5, 0.0]])
    bound.hold(tensors)
    upper = math.log(4)
    expected = torch.tensor([[1.0, upper, -3.0], [3 + upper, 3.5, 3.0]], dtype=torch.float64)
    assert torch.equal(tensors["log_scales"], expected)
    assert torch.equal(tensors["means"], cloud()["means"])


def test_without_a_bound_and_without_scales_nothing_is_held() -> None:
    for tensors, growth in ((cloud(), 0.0), ({"weights": torch.ones(3)}, 2.0)):
        bound = GrowthBound(tensors, growth)
        for value in tensors.values():
            value.add_(100)
        kept = {name: value.clone() for name, value in tensors.items()}
        bound.hold(tensors)
        assert all(torch.equal(tensors[name], kept[name]) for name in tensors)
        assert bound.tensors() == {}


def test_rows_that_an_edit_brings_begin_at_their_own_size() -> None:
    tensors = cloud()
    bound = GrowthBound(tensors, math.e)
    edit = SceneEdit(torch.tensor([1, 1]), torch.tensor([False, True]))
    edited = {name: edit.gather(value) for name, value in tensors.items()}
    edited["log_scales"][1] = -5.0
    bound.edit_rows(edit, edited)
    assert bound.tensors()["growth.largest"].tolist() == [4.0, -4.0]


def test_saved_bounds_are_taken_up_and_those_of_another_scene_refused() -> None:
    tensors = cloud()
    first = GrowthBound(tensors, 2.0)
    tensors["log_scales"] += 1
    second = GrowthBound(tensors, 2.0)
    second.load(OptimizerState(first.tensors(), {}))
    assert torch.equal(second.tensors()["growth.largest"], first.tensors()["growth.largest"])
    with pytest.raises(InputError, match="largest must be"):
        second.load(OptimizerState({"growth.largest": torch.zeros(5, dtype=torch.float64)}, {}))
    third = GrowthBound(tensors, 2.0)
    third.load(OptimizerState({}, {}))
    assert third.tensors()["growth.largest"][1] == 4.0 + math.log(2), "a run of an older version begins where it is"


@pytest.mark.parametrize("growth", [-1.0, 0.5, math.inf, math.nan])
def test_a_growth_that_is_none_is_refused(growth: float) -> None:
    with pytest.raises(InputError, match="max_growth"):
        check_growth(growth)


@pytest.mark.parametrize("name", ["block-gn", "learned"])
def test_optimizers_keep_to_it_and_go_on_with_it(name: str) -> None:
    """Scales that want to be e times as large come as far as 1.1 times, before and after a checkpoint."""

    def scene() -> Coupled:
        objective = Coupled(rows=8, dtype=torch.float32)
        objective.targets["log_scales"] = objective.values["log_scales"] + 1
        objective.values["quats"] = objective.values["quats"].contiguous()
        return objective

    entry = find_optimizer(name)
    options = entry.options(max_growth=1.1)
    objective = scene()
    start = objective.values["log_scales"].clone()
    upper = start.amax(dim=1, keepdim=True) + math.log(1.1) + 1e-6
    optimizer = entry.optimizer(objective, options, torch.Generator().manual_seed(0))
    for step in range(60):
        optimizer.step(None, Progress(step, 120))
    state = optimizer.state()
    assert isinstance(state, OptimizerState)
    again = entry.optimizer(objective, options, torch.Generator().manual_seed(0))
    again.load_state(state)
    for step in range(60, 120):
        again.step(None, Progress(step, 120))
    reached = objective.values["log_scales"]
    assert (reached <= upper).all()
    assert ((reached > upper - 1e-3).any(dim=1)[:-1]).sum() >= 4, "the bound must have been met"
