"""Running averages: their weights, and optimizers whose average is left in place of the last iterate."""

from __future__ import annotations

import pytest
import torch

from optim.quadratic import Quadratic
from splatopt.core.checks import InputError
from splatopt.core.objective import Oracle
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.state import OptimizerState
from splatopt.optim.averaging import Averaged, RunningAverage
from splatopt.optim.bridge import bridge


def adam(objective: Quadratic):
    entry = find_optimizer("adam-tuned")
    return entry.optimizer(objective, entry.options(), torch.Generator().manual_seed(3))


def take(optimizer, first: int, count: int) -> None:
    for step in range(first, first + count):
        optimizer.step(None, Progress(step, 100))


def copies(tensors) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


@pytest.mark.parametrize("power", [0, 1, 2])
def test_iterates_are_weighted_by_rising_products_of_their_number(power):
    # (k+1)/(k+t) gives θₜ the weight t(t+1)…(t+k-1), like tᵏ: 1, t and t(t+1) for k = 0, 1, 2.
    generator = torch.Generator().manual_seed(0)
    iterates = [torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(30)]
    average = RunningAverage({"means": torch.zeros(4, 3, dtype=torch.float64)}, power)
    for iterate in iterates:
        average.take_in({"means": iterate})
    weights = [[1, t, t * (t + 1)][power] for t in range(1, 31)]
    expected = sum(w * iterate for w, iterate in zip(weights, iterates, strict=True)) / sum(weights)
    torch.testing.assert_close(average.values["means"], expected, rtol=1e-5, atol=1e-6)


def test_rows_of_one_age_and_of_several_are_averaged_alike():
    generator = torch.Generator().manual_seed(1)
    parameters = {"means": torch.randn(5, 3, generator=generator), "sh_rest": torch.randn(5, 2, 3, generator=generator)}
    together, apart = RunningAverage(copies(parameters), 7), RunningAverage(copies(parameters), 7)
    for step in range(20):
        if step == 6:  # the last row begins anew
            edit = SceneEdit(source=torch.arange(5), fresh=torch.arange(5) == 4)
            apart.edit_rows(edit, parameters)
        iterate = {name: torch.randn(value.shape, generator=generator) for name, value in parameters.items()}
        together.take_in(iterate)
        apart.take_in(iterate)
        for name in parameters:
            torch.testing.assert_close(apart.values[name][:4], together.values[name][:4], rtol=1e-6, atol=1e-6)
    assert apart.tensors()["average.ages"].tolist() == [20, 20, 20, 20, 14]
    assert not torch.allclose(apart.values["means"][4], together.values["means"][4])


def test_versions_change_places_without_a_copy_and_come_back_after_an_error():
    parameters = {"means": torch.zeros(2, 3)}
    average = RunningAverage(parameters, 1)
    tensor, place = parameters["means"], parameters["means"].data_ptr()
    with pytest.raises(RuntimeError, match="midway"), average.stepping(parameters):
        assert parameters["means"].data_ptr() != place
        parameters["means"] += 1
        raise RuntimeError("midway")
    assert parameters["means"] is tensor
    assert tensor.data_ptr() == place
    assert not tensor.any()
    assert average.values["means"].all()


def test_steps_are_those_of_the_optimizer_alone_and_the_scene_is_their_average():
    alone, averaged = Quadratic(), Quadratic()
    one, other = adam(alone), Averaged(adam(averaged), 3)
    expected = RunningAverage(alone.parameters, 3)
    for step in range(20):
        take(one, step, 1)
        expected.take_in(alone.parameters)
        take(other, step, 1)
    for name, value in averaged.parameters.items():
        assert torch.equal(other.state().tensors[f"average.{name}"], alone.parameters[name])
        assert torch.equal(value, expected.values[name])


class Noisy(Quadratic):
    """Its gradient is off by noise, as from a few views."""

    def __init__(self) -> None:
        super().__init__(rows=50)
        self.generator = torch.Generator().manual_seed(1)

    def gradient(self, batch):
        evaluation = super().gradient(batch)
        for value in evaluation.gradient.values():
            value.add_(torch.randn(value.shape, generator=self.generator))
        return evaluation


def test_what_noise_scatters_is_averaged_away():
    entry = find_optimizer("adam-searched")
    options = entry.options(final_factor=1.0, means_final_factor=1.0)
    last, mean = Noisy(), Noisy()
    take(entry.optimizer(last, options), 0, 300)
    take(Averaged(entry.optimizer(mean, options), 3), 0, 300)
    assert mean.loss() < 0.5 * last.loss()


def test_saved_state_continues_bit_exactly():
    straight = Quadratic()
    optimizer = Averaged(adam(straight), 8)
    take(optimizer, 0, 7)
    saved = optimizer.state()
    saved = OptimizerState(copies(saved.tensors), dict(saved.scalars))
    resumed = Quadratic()
    for name, value in resumed.parameters.items():
        value.copy_(straight.parameters[name])
    second = Averaged(adam(resumed), 8)
    second.load_state(saved)
    take(optimizer, 7, 7)
    take(second, 7, 7)
    for name, value in straight.parameters.items():
        assert torch.equal(value, resumed.parameters[name]), name
    lacking = {name: value for name, value in saved.tensors.items() if name != "average.means"}
    with pytest.raises(InputError, match=r"average\.means must be \(8, 3\).*got nothing"):
        second.load_state(OptimizerState(lacking, saved.scalars))


def test_row_edits_keep_both_versions_and_fresh_rows_begin_where_they_are():
    objective = Quadratic(rows=8)
    optimizer = Averaged(adam(objective), 8)
    take(optimizer, 0, 10)
    means, iterate = objective.parameters["means"].clone(), optimizer.state().tensors["average.means"].clone()
    edit = SceneEdit(torch.tensor([4, 0, 0, 2]), torch.tensor([False, False, True, False]))
    objective.edit_rows(edit)
    optimizer.edit_rows(edit)
    kept = optimizer.state().tensors["average.means"]
    assert torch.equal(objective.parameters["means"], means[edit.source])
    assert torch.equal(kept[:2], iterate[[4, 0]])
    assert torch.equal(kept[2], means[0])
    assert optimizer.state().tensors["average.ages"].tolist() == [10, 10, 0, 10]
    before = objective.loss()
    take(optimizer, 10, 60)
    assert objective.loss() < before


def test_the_inner_optimizer_is_asked_for_what_it_needs():
    objective = Quadratic()
    entry = find_optimizer("lm")
    inner = entry.optimizer(objective, entry.options(), torch.Generator().manual_seed(0))
    optimizer = Averaged(inner, 2)
    assert optimizer.needs == inner.needs
    assert Oracle.JVP in optimizer.needs
    assert optimizer.batch_size == inner.batch_size
    assert optimizer.memory_needed((0,)) == inner.memory_needed((0,))
    own = sum(value.numel() * value.element_size() for value in objective.parameters.values())
    assert optimizer.state_bytes() == inner.state_bytes() + own + 4 * 8
    before = objective.loss()
    optimizer.step((0,), Progress(0, 5))
    assert objective.loss() < before


def test_a_torch_optimizer_steps_from_the_last_iterate_too():
    def run(power: float | None) -> tuple[list[float], Quadratic]:
        objective = Quadratic(dtype=torch.float64)
        kind = bridge(lambda groups, options, generator: torch.optim.SGD(groups, lr=0.1))
        inner = kind(objective, None, None)
        optimizer = inner if power is None else Averaged(inner, power)
        return [optimizer.step(None, Progress(step, 6)).loss for step in range(6)], objective

    (alone, _), (averaged, objective) = run(None), run(3.0)
    assert averaged == pytest.approx(alone, rel=1e-12)
    assert objective.loss() < alone[0]
