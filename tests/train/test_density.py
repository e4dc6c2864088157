"""A density strategy in a run: what is written, told, kept and refused."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from splatopt.cli import main
from splatopt.core import native, plugins
from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.checks import InputError
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.core.row_statistics import GradientStatistics
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.state import Number
from splatopt.data import make_capture
from splatopt.density.mcmc import McmcOptions
from splatopt.density.strategy import STRATEGIES, DensityStrategy, register_density
from splatopt.optim.averaging import Averaged
from splatopt.raster.cpu import NativeRenderer
from splatopt.runs.events import Warned
from splatopt.train import growth as growth_module
from splatopt.train.config import TrainConfig
from splatopt.train.events import Edited, Stepped
from splatopt.train.loop import train
from splatopt.train.preflight import estimate_memory
from splatopt.train.process_context import ProcessContext
from splatopt.train.setup import open_capture, starting_cloud
from train.density_runs import cut, edits, gone_on, grown, same_scene
from train.toys import Listener, lines

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not installed")


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    return make_capture(tmp_path_factory.mktemp("grows") / "c", seed=0, views=5, width=32, height=24, points=60)


@dataclass(frozen=True)
class TurnsOptions:
    """What a test's strategy does."""

    turns: tuple[str, ...] = ()
    """By step, from the first: add, remove or nothing. Unit: none. Source: a test."""

    count: int = 3
    """Rows an edit. Unit: Gaussians. Source: a test."""


class Turns(DensityStrategy[TurnsOptions]):
    """Adds copies of the first rows, or removes them, as its options say; remembers what it saw."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.seen = self.remember(Number("seen", 0))
        self.steps: list[tuple[int, int, float | None]] = []
        self.losses: list[float] = []

    def edit(self, step) -> SceneEdit | None:
        self.steps.append((step.progress.step, step.progress.horizon, step.position_rate))
        self.losses.append(step.loss)
        self.seen.value += 1
        rows, count, turns = len(self.objective.parameters["means"]), self.options.count, self.options.turns
        turn = turns[step.progress.step - 1] if step.progress.step <= len(turns) else ""
        place = torch.arange(rows)
        if turn == "all":
            return SceneEdit.keep(place < 0)
        if turn == "far":
            return SceneEdit(place + 1, place < 0)
        if turn == "odd":
            return self.options  # type: ignore[return-value]
        if turn == "add":
            source = torch.cat([place, place[:count]])
            return SceneEdit(source, torch.arange(rows + count) >= rows)
        return SceneEdit.keep(place >= count) if turn == "remove" else None


@pytest.fixture
def turns():
    register_density("turns", Turns, TurnsOptions, help="of a test")
    yield
    STRATEGIES.forget("turns")


def turned(scene, folder, what: Sequence[str], callbacks=(), **changes):
    return grown(scene, "turns", folder, callbacks, own={"turns": tuple(what)}, **changes)


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
    result = grown(scene, "turns", tmp_path / "run", own={"turns": ("add", "remove"), "count": 2}, steps=2)
    added, removed = edits(result.folder)
    assert (len(added["added_at"]), len(added["removed_at"])) == (2, 0)
    # The rows that were added are still there, the first that they copied are gone.
    frame = result.frame
    assert not frame.is_world
    positions = torch.tensor(added["added_at"], dtype=torch.float64)
    # One step moved them on by a rate of the means.
    torch.testing.assert_close(positions, result.cloud.means[-2:].double(), rtol=0, atol=0.02)
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
    assert density.cap(20_000) == 80_000
    assert replace(density, max_gaussians=70).cap(60) == 70


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
    assert {line["step"] for line in edits(whole.folder)} == set(range(1, 21))
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


# ---------------------------------------------------------------------- what breaks


class Spoiled(NativeRenderer):
    """Gives one row's gradient a NaN, or every row's, at some calls."""

    at, rows = 4, slice(7, 8)

    def accumulate_gradient(self, *arguments, **named):
        loss = super().accumulate_gradient(*arguments, **named)
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == self.at:
            arguments[2].tensors["quats"][self.rows] = math.nan
        return loss


def test_a_row_that_breaks_is_removed(turns, scene, tmp_path):
    listener = Listener()
    config = TrainConfig.of(
        str(scene), out=tmp_path / "run", density="turns", steps=8, log_every=4, threads=1, max_gaussians=150
    )
    result = train(config, [listener], renderer=Spoiled())
    assert len(result.cloud) == 59
    (warning,) = listener.of(Warned)
    assert "the gradient of 1 of 60 Gaussians became NaN or infinite in step 4" in warning.message
    assert "such a Gaussian is removed" in warning.message
    (edit,) = listener.of(Edited)
    assert (edit.step, edit.added, edit.removed, edit.gaussians) == (4, 0, 1, 59)
    first, second = lines(result.folder)
    assert (first["broken_rows"], first["removed"]) == (1, 1)
    assert "reset_rows" not in first
    assert "broken_rows" not in second
    assert [line["removed"] for line in edits(result.folder)] == [1]


def test_going_back_restores_the_strategy(turns, scene, tmp_path):
    listener = Listener()

    class Broken(Spoiled):
        at, rows = 15, slice(0, 40)

    what = ["add", ""] * 10
    config = TrainConfig.of(
        str(scene),
        **{"out": tmp_path / "run", "density": "turns", "density_options": {"turns": what}, "max_gaussians": 150},
        **{"steps": 20, "log_every": 4, "threads": 1, "checkpoint_every": 10},
    )
    result = train(config, [listener], renderer=Broken())
    assert "went back to the checkpoint of step 10" in listener.of(Warned)[0].message
    found, _ = latest_checkpoint(result.folder / "checkpoints")
    assert found.scalars["density"] == {"seen": 20}
    assert [line["step"] for line in edits(result.folder)] == list(range(1, 21, 2))
    assert len(result.cloud) == 60 + 10 * 3


def test_an_edit_for_which_there_is_no_memory_is_left_out(turns, scene, tmp_path, monkeypatch):
    listener = Listener()

    def scarce(event) -> None:
        if isinstance(event, Stepped) and event.step == 2:
            monkeypatch.setattr(ProcessContext, "free_memory", lambda self: 1 << 10)

    what = ["add", "add", "add", "add", "remove"]
    result = turned(scene, tmp_path / "run", what, [scarce, listener], steps=6)
    (warning,) = listener.of(Warned)
    assert "the density strategy turns adds no more Gaussians: 69 of them take about" in warning.message
    assert [line["step"] for line in edits(result.folder)] == [1, 2, 5], "what removes goes on"
    assert len(result.cloud) == 63


def test_an_edit_beyond_the_bound_is_left_out(turns, scene, tmp_path):
    listener = Listener()
    result = turned(scene, tmp_path / "run", ["add"] * 4, [listener], steps=6, max_gaussians=67)
    (warning,) = listener.of(Warned)
    assert "it wants 69, and --max-gaussians allows 67" in warning.message
    assert len(result.cloud) == 66


def test_without_memory_rows_still_move(scene, tmp_path, monkeypatch):
    listener = Listener()

    def scarce(event) -> None:
        if isinstance(event, Stepped) and event.step == 2:
            monkeypatch.setattr(ProcessContext, "free_memory", lambda self: 1 << 10)

    result = grown(scene, "mcmc", tmp_path / "run", [scarce, listener], own={"min_opacity": 0.095}, steps=8)
    (warning,) = listener.of(Warned)
    assert "the density strategy mcmc adds no more Gaussians: " in warning.message
    later = [line for line in edits(result.folder) if line["step"] > 3]
    assert len(later) > 2
    assert all(line["removed"] == line["added"] > 0 for line in later)


def test_an_edit_that_leaves_no_row_is_left_out(turns, scene, tmp_path):
    listener = Listener()
    result = turned(scene, tmp_path / "run", ["all", "remove", "all"], [listener], steps=4)
    (warning,) = listener.of(Warned)
    assert "the density strategy turns wants to remove all Gaussians: that edit is left out" in warning.message
    assert len(result.cloud) == 57


@pytest.mark.parametrize(
    ("turn", "told"),
    [
        ("far", "the density strategy 'turns' copies the row 60 of a scene of 60 Gaussians"),
        ("odd", "the density strategy 'turns' must answer with a SceneEdit or None, got a TurnsOptions"),
    ],
)
def test_an_answer_that_is_no_edit_of_the_scene_is_named(turn, told, turns, scene, tmp_path):
    with pytest.raises(InputError, match=told):
        turned(scene, tmp_path / "run", [turn], steps=2)


def test_statistics_are_of_steps_and_not_of_what_a_strategy_asks_itself(scene, tmp_path):
    found = []

    class Asking(Turns):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            self.gradient_statistics = self.remember(GradientStatistics(self.objective.parameters))

        def edit(self, step) -> None:
            self.objective.gradient((0,))
            found.append(float(self.gradient_statistics.views.max()))

    register_density("asking", Asking, TurnsOptions)
    try:
        grown(scene, "asking", tmp_path / "run", steps=3)
    finally:
        STRATEGIES.forget("asking")
    assert found == [1, 2, 3]


def test_memory_is_counted_for_as_many_as_there_may_be(scene):
    def estimate(**changes):
        config = TrainConfig.of(str(scene), threads=1, **changes)
        capture = open_capture(config)
        cloud = starting_cloud(config, capture, torch.Generator())
        return estimate_memory(config, capture, cloud, NativeRenderer(), on_host=True)

    plain, growing = estimate(), estimate(density="adc", max_gaussians=6000)
    assert growing.parts["parameters"] == 100 * plain.parts["parameters"]
    assert growing.parts["optimizer adam"] == 100 * plain.parts["optimizer adam"]
    # An old copy of 59 numbers, and views, gradient and radius.
    assert growing.parts["density strategy"] == 6000 * 4 * (59 + 3)
    assert estimate(density="adc", max_gaussians=6001).total - growing.total == pytest.approx(
        growing.row_bytes, rel=0.5
    )
    assert plain.parts["density strategy"] == 0


# ---------------------------------------------------------------------- averages, penalties, batches


@pytest.mark.parametrize("name", ["adam", "learned"])
def test_noise_moves_the_last_iterate_and_not_the_average(name, scene, tmp_path, monkeypatch):
    moved = []
    original = growth_module.Growth.after_step

    def watched(self, step, optimizer, sums):
        before = self._objective.parameters["means"].clone()
        with optimizer.at_last_iterate():
            iterate = self._objective.parameters["means"].clone()
        original(self, step, optimizer, sums)
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


# ---------------------------------------------------------------------- what is refused


def said(capsys, *words: object) -> str:
    assert main(["train", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_is_refused_in_a_sentence(scene, tmp_path, capsys):
    out = tmp_path / "run"
    assert "no density strategy is named 'adcc'; did you mean adc or mcmc?" in said(capsys, scene, "--density", "adcc")
    few = said(capsys, scene, "--out", out, "--density", "mcmc", "--max-gaussians", 59)
    assert "--max-gaussians 59 is fewer than the 60 Gaussians that the run begins with" in few
    assert not out.exists()
    lone = said(capsys, scene, "--out", out, "--max-gaussians", 100)
    assert "--max-gaussians 100 bounds what a density strategy adds, and none is at work" in lone
    other = said(capsys, scene, "--out", out, "--density", "mcmc", "--adc.until", 5)
    assert "options of 'adc' are given, but the density is 'mcmc'; add --density adc" in other
    bad = said(capsys, scene, "--out", out, "--density", "adc", "--adc.every", 0)
    assert "every must be at least 1, got 0" in bad
    assert not out.exists()


def test_a_renderer_without_statistics_is_refused(scene, tmp_path):
    class Plain(NativeRenderer):
        @property
        def oracles(self):
            from splatopt.core.objective import Oracle

            return super().oracles - {Oracle.STATISTICS}

    config = TrainConfig.of(str(scene), out=tmp_path / "run", density="adc", steps=2)
    with pytest.raises(
        InputError, match="'AdaptiveDensityControl' needs statistics, which PhotometricObjective on the"
    ):
        train(config, renderer=Plain())
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_its_strategy(scene, tmp_path, capsys):
    out = grown(scene, "mcmc", tmp_path / "run", steps=4).folder
    start = [scene, "--out", out, "--resume"]
    assert "was started with --density mcmc, and cannot go on with adc" in said(capsys, *start, "--density", "adc")
    noisy = said(capsys, *start, "--density", "mcmc", "--mcmc.noise", 2)
    assert "was started with --mcmc.noise 1.0, and cannot go on with 2.0" in noisy
    more = said(capsys, *start, "--density", "mcmc", "--max-gaussians", 200)
    assert "was started with --max-gaussians 150, and cannot go on with 200" in more
    assert main(["train", *map(str, start), "--steps", "6", "--threads", "1"]) == 0
    assert edits(out)[-1]["step"] == 6
    plain = train(TrainConfig.of(str(scene), out=tmp_path / "plain", steps=2, threads=1)).folder
    grows = said(capsys, scene, "--out", plain, "--resume", "--density", "mcmc")
    assert "was started with --density none, and cannot go on with mcmc" in grows


def test_options_are_read_typed_and_helped(scene, tmp_path, capsys):
    config = TrainConfig.of(str(scene), density="mcmc", density_options={"noise": 2})
    assert config.density.density_options == McmcOptions(noise=2.0)
    assert TrainConfig.from_json(config.to_json(), "here").density == config.density
    with pytest.raises(InputError, match="the options of the density strategy 'mcmc': there is no option 'noisy'"):
        TrainConfig.of(str(scene), density="mcmc", density_options={"noisy": 2})
    with pytest.raises(InputError, match="must be a AdcOptions, got a McmcOptions"):
        TrainConfig.of(str(scene), density="adc", density_options=McmcOptions())
    with pytest.raises(InputError, match="--density is none; name the strategy"):
        TrainConfig.of(str(scene), density_options=McmcOptions())
    assert main(["train", "--density", "adc", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--adc.min-gradient" in shown
    assert "--mcmc.noise" not in shown
    assert "four times those of the start" in shown
    assert "mcmc: relocation, growth, noise" in shown


PLUGIN = """
from dataclasses import dataclass
from splatopt.density.strategy import DensityStrategy, register_density

@dataclass(frozen=True)
class Options:
    count: int = 1

class Nothing(DensityStrategy[Options]):
    def edit(self, step):
        return None

register_density("nothing-{name}", Nothing, Options, help="leaves all as it is")
"""


def test_a_strategy_of_a_plug_in(scene, tmp_path, capsys):
    file = tmp_path / "nothing.py"
    file.write_text(PLUGIN.format(name="one"))
    out = tmp_path / "run"
    words = [scene, "--plugin", file, "--density", "nothing-one", "--nothing-one.count", 3, "--out", out]
    try:
        assert main(["train", *map(str, words), "--steps", "2", "--threads", "1"]) == 0
        assert json.loads((out / "config.json").read_text())["density_options"] == {"count": 3}
    finally:
        STRATEGIES.forget("nothing-one")
        plugins._files.clear()
    os.rename(file, tmp_path / "gone.py")
    assert main(["eval", str(out)]) == 0
    capsys.readouterr()
    assert main(["train", str(scene), "--out", str(out), "--resume", "--steps", "4"]) == 2
    assert "was started with the plug-in" in capsys.readouterr().err
