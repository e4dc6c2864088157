"""The optimizer `learned`: its steps, falling back on Adam, and going on."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from optim.quadratic import Quadratic
from splatopt.core.checks import InputError
from splatopt.core.objective import Evaluation
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.core.scene_edit import SceneEdit, Written
from splatopt.core.state import OptimizerState
from splatopt.meta import learned as learned_module
from splatopt.meta.inner import InnerRates
from splatopt.meta.learned import Learned, LearnedOptions
from splatopt.meta.weights import load_weights, save_weights
from splatopt.optim.averaging import RunningAverage
from splatopt.optim.first_order import Adam, SearchedAdamOptions

INSIDE = SearchedAdamOptions(
    final_factor=1.0, means_final_factor=1.0, patience=InnerRates().patience, fall=InnerRates().fall
)


def gaussians(**changed):
    return Quadratic(**({"spread": 3.0, "gaussians": True} | changed))


def take(optimizer, count, first=0):
    for step in range(first, first + count):
        optimizer.step(None, Progress(step, 1000))


def assert_follow(one, other, **tolerance):
    for name, value in one.parameters.items():
        torch.testing.assert_close(value, other.parameters[name], **tolerance)


def test_untrained_weights_step_as_adam_at_the_searched_rates(untrained):
    one, other = gaussians(), gaussians()
    take(Learned(one, LearnedOptions(untrained, averaged=False, max_growth=0)), 50)
    take(Adam(other, INSIDE), 50)
    assert_follow(one, other, rtol=1e-5, atol=1e-6)


def test_trained_weights_step_otherwise(untrained, trained):
    one, other = gaussians(), gaussians()
    take(Learned(one, LearnedOptions(trained)), 3)
    take(Learned(other, LearnedOptions(untrained)), 3)
    assert not torch.allclose(one.parameters["means"], other.parameters["means"])


def test_a_network_that_gives_no_numbers_steps_as_adam(untrained):
    one, other = gaussians(), gaussians()
    optimizer = Learned(one, LearnedOptions(untrained, averaged=False, max_growth=0))
    with torch.no_grad():
        optimizer.weights.network.sizes.bias[0] = math.nan
    take(optimizer, 20)
    take(Adam(other, INSIDE), 20)
    assert_follow(one, other, rtol=1e-5, atol=1e-6)


def test_the_scene_is_the_running_average_of_the_steps(trained):
    one, other = gaussians(), gaussians()
    plain, averaged = Learned(one, LearnedOptions(trained, averaged=False)), Learned(other, LearnedOptions(trained))
    expected = RunningAverage(one.parameters, InnerRates().average_power)
    for step in range(40):
        take(plain, 1, step)
        expected.take_in(one.parameters)
        take(averaged, 1, step)
    for name, value in other.parameters.items():
        assert torch.equal(value, expected.values[name])
        assert torch.equal(averaged.state().tensors[f"average.{name}"], one.parameters[name])


class Rising(Quadratic):
    """Says that its loss rises from step 60 on, whatever happens."""

    def gradient(self, batch):
        self.asked = getattr(self, "asked", 0) + 1
        evaluation = super().gradient(batch)
        return replace(evaluation, loss=0.1 if self.asked < 60 else 0.4)


def test_a_loss_that_stays_high_for_a_window_hands_over_to_adam_for_good(trained):
    objective = Rising(spread=3.0, gaussians=True)
    optimizer = Learned(objective, LearnedOptions(trained, fallback_window=20, averaged=False))
    metrics = [optimizer.step(None, Progress(step, 1000)).metrics["fallback"] for step in range(150)]
    changed = metrics.index(1.0)
    assert 60 + 20 < changed < 120
    assert all(fact == 1.0 for fact in metrics[changed:])
    assert len(optimizer.warnings) == 1
    assert "Adam's" in optimizer.warnings[0]
    before = {name: value.clone() for name, value in objective.parameters.items()}
    take(optimizer, 1)
    moved = objective.parameters["sh_dc"] - before["sh_dc"]
    kept = optimizer.state().tensors
    age = float(kept["age"][0])
    expected = (
        -InnerRates().sh_dc
        / (1 + (age - 1) / InnerRates().patience)
        * (kept["exp_avg.sh_dc"] / (1 - InnerRates().beta1 ** age))
        / ((kept["exp_avg_sq.sh_dc"] / (1 - InnerRates().beta2 ** age)).sqrt() + 1e-15)
    )
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)


def test_falling_back_is_kept_in_the_state(trained):
    objective = Rising(spread=3.0, gaussians=True)
    optimizer = Learned(objective, LearnedOptions(trained, fallback_window=5))
    take(optimizer, 120)
    again = Learned(objective, LearnedOptions(trained, fallback_window=5))
    again.load_state(optimizer.state())
    assert again.step(None, Progress(120, 1000)).metrics["fallback"] == 1.0


class Told(Quadratic):
    """Says the losses that it is told."""

    told = 0.1

    def gradient(self, batch):
        return replace(super().gradient(batch), loss=self.told)


ALL = torch.ones(8, dtype=torch.bool)
OPACITY_RESET = SceneEdit.in_place(8, resets={"logit_opacities": ALL})
WRITTEN = SceneEdit.in_place(8, values={"sh_dc": Written(torch.arange(4), torch.zeros(4, 3))})
CLONED = SceneEdit(torch.arange(8), torch.arange(8) > 4)


def steps_to_fall(optimizer, loss, most):
    """Return after how many steps at ``loss`` it has given the network up; None where it has not."""
    optimizer.objective.told = loss
    for step in range(most):
        if optimizer.step(None, Progress(step, 1000)).metrics["fallback"]:
            return step + 1
    return None


@pytest.mark.parametrize(("edit", "is_forgotten"), [(OPACITY_RESET, True), (WRITTEN, True), (CLONED, False)])
def test_an_edit_of_most_rows_forgets_the_lowest_loss(trained, edit, is_forgotten):
    optimizer = Learned(Told(spread=3.0, gaussians=True), LearnedOptions(trained, fallback_window=20))
    assert steps_to_fall(optimizer, 0.1, 60) is None
    optimizer.objective.edit_rows(edit)
    optimizer.edit_rows(edit)
    fell = steps_to_fall(optimizer, 0.4, 150)
    assert (fell is None) == is_forgotten
    if is_forgotten:
        again = Learned(optimizer.objective, LearnedOptions(trained, fallback_window=20))
        again.load_state(optimizer.state())
        fell = steps_to_fall(again, 1.2, 60)
        assert 20 < fell < 50
        optimizer.load_state(again.state())
        assert steps_to_fall(optimizer, 1.2, 1) == 1


def test_a_low_loss_just_after_an_edit_is_not_the_lowest(trained):
    optimizer = Learned(Told(spread=3.0, gaussians=True), LearnedOptions(trained, fallback_window=20))
    assert steps_to_fall(optimizer, 0.1, 60) is None
    optimizer.edit_rows(OPACITY_RESET)
    assert steps_to_fall(optimizer, 0.05, 2) is None
    assert steps_to_fall(optimizer, 0.4, 300) is None


def test_a_state_of_an_older_version_watches_from_its_first_step(trained):
    optimizer = Learned(Told(spread=3.0, gaussians=True), LearnedOptions(trained, fallback_window=20))
    assert steps_to_fall(optimizer, 0.1, 60) is None
    state = optimizer.state()
    names = set(state.scalars) - {"loss_before", "watched_from"}
    older = OptimizerState(state.tensors, {name: state.scalars[name] for name in names})
    again = Learned(optimizer.objective, LearnedOptions(trained, fallback_window=20))
    again.load_state(older)
    assert again.state().scalars == state.scalars


def test_a_run_goes_on_with_the_weights_that_it_was_begun_with(trained, untrained, tmp_path):
    optimizer = Learned(gaussians(), LearnedOptions(trained))
    take(optimizer, 3)
    state = optimizer.state()
    with pytest.raises(InputError, match="begun with other weights") as caught:
        Learned(gaussians(), LearnedOptions(untrained)).load_state(state)
    assert "\n" not in str(caught.value)
    slower = load_weights(trained)
    changed = save_weights(tmp_path / "slower.safetensors", slower.network, replace(slower.rates, handover=3.0), {})
    with pytest.raises(InputError, match="begun with other weights"):
        Learned(gaussians(), LearnedOptions(str(changed.with_suffix(".safetensors")))).load_state(state)
    for end in (".safetensors", ".json"):
        shutil.copy(trained.replace(".safetensors", end), tmp_path / f"copied{end}")
    for path in (trained, str(tmp_path / "copied.safetensors")):
        again = Learned(gaussians(), LearnedOptions(path))
        again.load_state(OptimizerState(state.tensors, json.loads(json.dumps(state.scalars))))
        assert again.state().scalars == state.scalars
    older = OptimizerState(state.tensors, {name: value for name, value in state.scalars.items() if name != "weights"})
    again.load_state(older)
    assert again.state().scalars == state.scalars


def test_a_falling_loss_never_falls_back(trained):
    optimizer = Learned(gaussians(), LearnedOptions(trained, fallback_window=5))
    metrics = [optimizer.step(None, Progress(step, 1000)).metrics["fallback"] for step in range(60)]
    assert not any(metrics)
    assert not optimizer.warnings


def test_neighbours_are_searched_for_every_so_often_and_after_edits(trained, monkeypatch):
    from splatopt.meta import learned

    searches = []
    original = learned.nearest_others
    monkeypatch.setattr(learned, "nearest_others", lambda *args: searches.append(1) or original(*args))
    objective = gaussians(rows=20)
    optimizer = Learned(objective, LearnedOptions(trained, neighbour_refresh=10))
    take(optimizer, 21)
    assert len(searches) == 3, "at steps 1, 11 and 21"
    edit = SceneEdit.keep(torch.arange(20) < 12)
    objective.edit_rows(edit)
    optimizer.edit_rows(edit)
    take(optimizer, 1)
    assert len(searches) == 4
    assert optimizer.state().tensors["near"].shape == (12, 3)


class Viewed(Quadratic):
    """Gaussians whose batches are views' numbers."""

    def views(self, batch):
        return batch


@pytest.mark.parametrize("natively", [True, False])
def test_few_views_shorten_the_steps_of_the_higher_bands_alone(trained, monkeypatch, natively):
    if not natively:
        monkeypatch.setattr(learned_module, "fits", lambda *tensors: False)
    path = Path(trained)
    slower = path.with_name("slower.safetensors")
    rates = InnerRates()
    save_weights(slower, load_weights(trained).network, replace(rates, sh_rest=rates.sh_rest * 6 / 32), {"seed": 0})
    results = {}
    for name, weights, batch in (
        ("six views", trained, (0, 2, 4, 6, 8, 10)),
        ("slower", str(slower), None),
        ("many views", trained, tuple(range(40))),
        ("no views", trained, None),
    ):
        objective = Viewed(spread=3.0, gaussians=True) if batch else gaussians()
        optimizer = Learned(objective, LearnedOptions(weights))
        for step in range(5):
            optimizer.step(batch, Progress(step, 1000))
        results[name] = {name: value.clone() for name, value in objective.parameters.items()}
    for name, value in results["six views"].items():
        assert torch.equal(value, results["slower"][name])
        assert torch.equal(results["many views"][name], results["no views"][name])
    assert not torch.equal(results["six views"]["sh_rest"], results["many views"]["sh_rest"])


def test_visited_views_are_kept_in_the_state(trained):
    one = Learned(Viewed(spread=3.0, gaussians=True), LearnedOptions(trained))
    for step in range(3):
        one.step((step, 5), Progress(step, 1000))
    saved = one.state()
    assert saved.tensors["visited_views"].tolist() == [0, 1, 2, 5]
    objective = Viewed(spread=3.0, gaussians=True)
    for name, value in objective.parameters.items():
        value.copy_(one.objective.parameters[name])
    other = Learned(objective, LearnedOptions(trained))
    other.load_state(saved)
    for optimizer in (one, other):
        optimizer.step((0, 1), Progress(3, 1000))
    assert_follow(one.objective, other.objective, rtol=0, atol=0)


def test_rows_that_the_views_did_not_see_stay(trained):
    class Half(Quadratic):
        def gradient(self, batch):
            evaluation = super().gradient(batch)
            seen = torch.arange(8) < 4
            hidden = {
                n: torch.where(seen.reshape(-1, *[1] * (g.dim() - 1)), g, 0.0) for n, g in evaluation.gradient.items()
            }
            return Evaluation(evaluation.loss, hidden, seen, {})

    objective = Half(spread=3.0, gaussians=True)
    before = {name: value.clone() for name, value in objective.parameters.items()}
    take(Learned(objective, LearnedOptions(trained)), 5)
    for name, value in objective.parameters.items():
        assert torch.equal(value[4:], before[name][4:])
        assert not torch.equal(value[:4], before[name][:4])


def test_the_entry_is_registered_with_the_shipped_weights():
    assert find_optimizer("learned").options().weights == "tiny"


def test_too_few_gaussians_have_no_neighbours_and_other_parameters_are_refused(untrained):
    objective = gaussians(rows=3)
    optimizer = Learned(objective, LearnedOptions(untrained))
    take(optimizer, 3)
    assert optimizer.warnings == ["a scene of 3 Gaussians is too small for the learned step's neighbours"]
    assert all(bool(value.isfinite().all()) for value in objective.parameters.values())
    with pytest.raises(InputError, match="is for Gaussians"):
        Learned(Quadratic(), LearnedOptions(untrained))


@pytest.mark.parametrize("natively", [True, False])
def test_a_run_that_was_pruned_to_few_gaussians_goes_on(trained, monkeypatch, natively):
    if not natively:
        monkeypatch.setattr(learned_module, "fits", lambda *tensors: False)
    one = Learned(gaussians(), LearnedOptions(trained))
    take(one, 3)
    edit = SceneEdit.keep(torch.arange(8) < 3)
    for part in (one.objective.values, one.objective.targets, one.objective.curvature):
        part.update({name: edit.gather(value) for name, value in part.items()})
    one.edit_rows(edit)
    take(one, 1, 3)
    other = gaussians(rows=3)
    for mine, part in ((other.values, "values"), (other.targets, "targets"), (other.curvature, "curvature")):
        mine.update({name: value.clone() for name, value in getattr(one.objective, part).items()})
    again = Learned(other, LearnedOptions(trained))
    again.load_state(one.state())
    for optimizer in (one, again):
        take(optimizer, 2, 4)
    assert_follow(one.objective, other, rtol=0, atol=0)


def test_options_that_mean_nothing_are_refused():
    odd = {"neighbour_refresh": 0}, {"fallback_window": 0}, {"fallback_rise": 0.0}, {"full_color_views": -1}
    for changed in odd:
        with pytest.raises(ValueError, match=next(iter(changed))):
            LearnedOptions(**changed)
