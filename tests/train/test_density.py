"""A density strategy in a run: what is written, told and kept."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from splatopt.core import native
from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.checks import InputError
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.data import make_capture
from splatopt.density.strategy import STRATEGIES
from splatopt.optim.averaging import Averaged
from splatopt.train import growth as growth_module
from splatopt.train.config import TrainConfig
from splatopt.train.events import Edited, Stepped
from splatopt.train.loop import train
from splatopt.train.process_context import ProcessContext
from train.density_runs import edits, gone_on, grown, same_scene
from train.toys import Listener, cut, lines
from train.turns import Turns, turned

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not installed")


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    return make_capture(tmp_path_factory.mktemp("grows") / "c", seed=0, views=5, width=32, height=24, points=60)


# ---------------------------------------------------------------------- what is written and told


def test_every_edit_is_written_and_told(turns, scene, tmp_path):
    listener, sizes = Listener(), []

    def note(event) -> None:
        if isinstance(event, Stepped):
            sizes.append(len(event.cloud))

    result = turned(scene, tmp_path / "run", ["", "add", "add", "remove", "", "add"], [listener, note], steps=8)
    told = [(one.step, one.added, one.removed, one.gaussians) for one in listener.of(Edited)]
    assert told == [(2, 3, 0, 63), (3, 3, 0, 66), (4, 0, 3, 63), (6, 3, 0, 66)]
    assert [(one["step"], one["added"], one["removed"], one["gaussians"]) for one in edits(result.folder)] == told
    counts = [(one["step"], one["gaussians"], one["added"], one["removed"]) for one in lines(result.folder)]
    assert counts == [(4, 63, 6, 3), (8, 66, 3, 0)]
    assert sizes == [60, 63, 66, 63, 63, 66, 66, 66]
    assert len(result.cloud) == 66
    order = [type(event).__name__ for event in listener.events if isinstance(event, Edited | Stepped)]
    assert order[:3] == ["Stepped", "Edited", "Stepped"]


def test_positions_are_those_of_the_capture_and_at_most_64(turns, scene, tmp_path):
    result = grown(scene, "turns", tmp_path / "run", own={"turns": ("add", "remove"), "count": 2}, steps=3)
    added, removed = edits(result.folder)
    assert (len(added["added_at"]), len(added["removed_at"])) == (2, 0)
    # The rows that were added are still there, the first that they copied are gone.
    frame = result.frame
    assert not frame.is_world
    positions = torch.tensor(added["added_at"], dtype=torch.float64)
    # Two steps moved them on by a rate of the means.
    torch.testing.assert_close(positions, result.cloud.means[-2:].double(), rtol=0, atol=0.04)
    assert len(removed["removed_at"]) == 2
    torch.testing.assert_close(torch.tensor(removed["removed_at"]).double(), positions, rtol=0, atol=0.02)
    many = grown(scene, "turns", tmp_path / "many", own={"turns": ("add", "add", "add"), "count": 50}, steps=3)
    assert [len(one["added_at"]) for one in edits(many.folder)] == [50]
    assert len(many.cloud) == 110
    mean = torch.zeros(200, 3)
    rows = torch.arange(200)
    assert len(growth_module._sample(mean, rows, frame)) == growth_module.SAMPLES
    assert growth_module._sample(torch.full((2, 3), math.nan), rows[:2], frame) == []


def test_without_a_strategy_nothing_of_it_is_written(scene, tmp_path):
    result = train(TrainConfig.of(str(scene), out=tmp_path / "run", steps=4, threads=1))
    assert not (result.folder / "density.jsonl").exists()
    assert "added" not in lines(result.folder)[-1]
    saved = json.loads((result.folder / "config.json").read_text())
    assert (saved["density"], saved["density_options"], saved["max_gaussians"]) == ("none", None, None)
    found, _ = latest_checkpoint(result.folder / "checkpoints")
    assert not [name for name in found.tensors if name.startswith("density.")]


def test_the_bound_is_chosen_and_kept(scene, tmp_path):
    result = grown(scene, "mcmc", tmp_path / "run", steps=2, max_gaussians=None)
    assert result.config.density.max_gaussians == 50_000
    assert json.loads((result.folder / "config.json").read_text())["max_gaussians"] == 50_000
    density = replace(result.config.density, max_gaussians=None)
    assert density.cap(20_000, 3) == 80_000
    assert replace(density, max_gaussians=70).cap(60, 3) == 70


def test_a_strategy_is_told_of_the_whole_run_of_the_rate_and_of_the_loss(turns, scene, tmp_path, monkeypatch):
    made: list[Turns] = []
    begin = Turns.__init__
    monkeypatch.setattr(Turns, "__init__", lambda self, *given: (begin(self, *given), made.append(self))[0])
    listener = Listener()
    turned(scene, tmp_path / "run", ["add"] * 3, [listener], stages="adam:3,block-gn:3", steps=None)
    (strategy,) = [one for one in made if one.steps]
    assert [(step, horizon) for step, horizon, _ in strategy.steps] == [(step, 6) for step in range(1, 7)]
    rates = [rate for _, _, rate in strategy.steps]
    extent = strategy.objective.length_scale
    assert rates[:3] == pytest.approx([1.6e-4 * extent * 0.01 ** (step / 3) for step in range(3)])
    assert rates[3:] == [None] * 3
    assert strategy.losses == [one.loss for one in listener.of(Stepped)]
    assert min(strategy.losses) > 0
    assert strategy.limits.max_gaussians == 150
    assert len(strategy.limits.views) == 4
    assert strategy.limits.background == (0.0, 0.0, 0.0)


# ---------------------------------------------------------------------- going on


def test_a_run_goes_on_with_the_strategys_state(turns, scene, tmp_path):
    what = ["add", "", "remove", "add"] * 5
    whole = turned(scene, tmp_path / "whole", what)
    found, _ = latest_checkpoint(whole.folder / "checkpoints")
    assert found.scalars["density"] == {"seen": 20}
    copy = cut(whole.folder, 10)
    with (copy / "density.jsonl").open("a") as file:
        file.write('{"step": 11, "added": 1')
    gone_on(copy)
    assert same_scene(whole.folder, copy)
    assert edits(copy) == edits(whole.folder), "lines after the checkpoint, and one that was cut short, are gone"


def test_edits_that_are_damaged_are_named(scene, tmp_path):
    whole = grown(scene, "mcmc", tmp_path / "whole")
    copy = cut(whole.folder, 10)
    text = (copy / "density.jsonl").read_text().replace('"added"', '"abbed"', 1)
    (copy / "density.jsonl").write_text(text)
    with pytest.raises(InputError, match="density.jsonl, line 1: added must be a whole number"):
        gone_on(copy)


@pytest.mark.parametrize("strategy", ["adc", pytest.param("mcmc", marks=pytest.mark.slow)])
def test_stages_keep_the_strategy(strategy, scene, tmp_path):
    changes = {"stages": "adam:10,block-gn:10", "steps": None}
    whole = grown(scene, strategy, tmp_path / "whole", **changes)
    assert {line["step"] for line in edits(whole.folder)} == set(range(1, 20))
    copy = cut(whole.folder, 10)
    gone_on(copy)
    assert same_scene(whole.folder, copy)


def test_what_is_lacking_in_a_checkpoint_is_named(scene, tmp_path):
    whole = grown(scene, "adc", tmp_path / "whole")
    copy = cut(whole.folder, 10)
    checkpoint = copy / "checkpoints" / "step-000010"
    values = json.loads((checkpoint / "checkpoint.json").read_text())
    del values["scalars"]["density"]
    (checkpoint / "checkpoint.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="density must be an object"):
        gone_on(copy)


# ---------------------------------------------------------------------- averages, penalties, batches


@pytest.mark.parametrize("name", ["adam", "learned"])
def test_noise_moves_the_last_iterate_and_not_the_average(name, scene, tmp_path, monkeypatch):
    moved = []
    original = growth_module.Growth.after_step

    def watched(self, step, optimizer, sums, **kept):
        before = self._objective.parameters["means"].clone()
        with optimizer.at_last_iterate():
            iterate = self._objective.parameters["means"].clone()
        original(self, step, optimizer, sums, **kept)
        with optimizer.at_last_iterate():
            moved.append(not torch.equal(self._objective.parameters["means"], iterate))
        assert torch.equal(self._objective.parameters["means"], before)

    monkeypatch.setattr(growth_module.Growth, "after_step", watched)
    average = {"average": 5.0} if name == "adam" else {}
    grown(scene, "mcmc", tmp_path / "run", optimizer=name, steps=5, own={"start": 100}, **average)
    assert moved == [True] * 5


def test_the_penalty_is_in_the_loss_of_every_step(scene, tmp_path):
    own = {"start": 10_000, "noise": 0.0}
    none = grown(scene, "mcmc", tmp_path / "none", own={**own, "opacity_penalty": 0.0, "scale_penalty": 0.0})
    some = grown(scene, "mcmc", tmp_path / "some", own={**own, "opacity_penalty": 2.0, "scale_penalty": 0.0})
    bare = train(TrainConfig.of(str(scene), out=tmp_path / "bare", steps=20, checkpoint_every=10, threads=1))
    assert same_scene(none.folder, bare.folder), "a strategy that does nothing changes no bit"
    assert some.cloud.logit_opacities.mean() < none.cloud.logit_opacities.mean() - 0.1
    first = [lines(folder.folder)[0]["loss"] for folder in (some, none)]
    assert first[0] - first[1] == pytest.approx(2 * 0.1, rel=0.2), "opacities begin at 0.1"


@pytest.mark.parametrize("strategy", ["adc", pytest.param("mcmc", marks=pytest.mark.slow)])
def test_microbatches_take_the_same_edits(strategy, scene, tmp_path, monkeypatch):
    whole = grown(scene, strategy, tmp_path / "whole", view_batch=4, steps=6)
    guard = ProcessContext.guard

    def small(self, objective, tell):
        self._max_views = 1
        return guard(self, objective, tell)

    monkeypatch.setattr(ProcessContext, "guard", small)
    parts = grown(scene, strategy, tmp_path / "parts", view_batch=4, steps=6)
    for first, second in zip(edits(whole.folder), edits(parts.folder), strict=True):
        assert (first["added"], first["removed"]) == (second["added"], second["removed"])


def test_thresholds_do_not_move_with_the_views_of_a_step(scene, tmp_path, monkeypatch):
    found = []
    edit = STRATEGIES.find("adc").strategy.edit

    def watched(self, step):
        found.append((self.gradient_statistics.mean_gradient.clone(), self.gradient_statistics.views.clone()))
        return edit(self, step)

    monkeypatch.setattr(STRATEGIES.find("adc").strategy, "edit", watched)
    own = {"start": 10_000}
    still = {"optimizer_options": find_optimizer("adam").options(*([1e-30] + [1.0] + [1e-30] * 5))}
    grown(scene, "adc", tmp_path / "one", own=own, steps=4, view_batch=1, **still)
    one = found[-1]
    grown(scene, "adc", tmp_path / "four", own=own, steps=1, view_batch=4, **still)
    four = found[-1]
    assert torch.equal(one[1], four[1])
    assert one[1].max() == 4
    torch.testing.assert_close(one[0], four[0], rtol=1e-4, atol=1e-9)


def test_an_averaged_optimizer_tells_of_the_inner_ones_rate():
    from optim.quadratic import Quadratic

    objective = Quadratic(gaussians=True)
    rates = {}
    for name in ("adam", "adahessian", "adam-tr", "tr2", "block-gn", "lm", "learned"):
        entry = find_optimizer(name)
        optimizer = entry.optimizer(objective, entry.options(), torch.Generator())
        rates[name] = optimizer.position_rate(Progress(50, 100))
        assert Averaged(optimizer, 5.0).position_rate(Progress(50, 100)) == rates[name]
    assert rates["adam"] == pytest.approx(1.6e-4 * 10 * 0.1)
    assert rates["adahessian"] == pytest.approx(1.6e-4 * 10 * 4 * 0.1**0.5)
    assert [rates[name] for name in ("adam-tr", "tr2", "block-gn", "lm", "learned")] == [None] * 5


def test_the_zoos_rate_is_that_of_its_means():
    from importlib.util import find_spec

    from optim.quadratic import Quadratic

    if find_spec("pytorch_optimizer") is None:
        pytest.skip("pytorch-optimizer is not installed")
    entry = find_optimizer("zoo:lion")
    optimizer = entry.optimizer(Quadratic(gaussians=True), entry.options(rate_factor=0.5), torch.Generator())
    assert optimizer.position_rate(Progress(0, 100)) == pytest.approx(0.5 * 1.6e-4 * 10)
    entry = find_optimizer("zoo:prodigy")  # it sees a scene in units of these rates
    optimizer = entry.optimizer(Quadratic(gaussians=True), entry.options(rate_factor=0.5), torch.Generator())
    assert optimizer.position_rate(Progress(0, 100)) == pytest.approx(0.5 * 1.6e-4 * 10)
