"""A density strategy in a run: what breaks, and what is refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from splatopt.cli import main
from splatopt.core import native, plugins
from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.checks import InputError
from splatopt.core.row_statistics import GradientStatistics
from splatopt.data import make_capture
from splatopt.density.mcmc import McmcOptions
from splatopt.density.strategy import STRATEGIES, register_density
from splatopt.raster.cpu import NativeRenderer
from splatopt.runs.events import Warned
from splatopt.train.config import TrainConfig
from splatopt.train.events import Edited, Stepped
from splatopt.train.loop import train
from splatopt.train.preflight import estimate_memory
from splatopt.train.process_context import ProcessContext
from splatopt.train.setup import open_capture, starting_cloud
from train.density_runs import edits, grown
from train.toys import Listener, lines
from train.turns import Turns, TurnsOptions, turned

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not installed")


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    return make_capture(tmp_path_factory.mktemp("grows") / "c", seed=0, views=5, width=32, height=24, points=60)


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


def test_a_run_that_had_no_memory_for_more_keeps_to_it_when_it_goes_on(turns, scene, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:

        def scarce(event) -> None:
            if isinstance(event, Stepped) and event.step == 2:
                patched.setattr(ProcessContext, "free_memory", lambda self: 1 << 10)

        listeners = [scarce, Listener(stop_at=6)]
        with pytest.raises(KeyboardInterrupt):
            turned(scene, tmp_path / "run", ["add"] * 8, listeners, steps=9, checkpoint_every=1)
    checkpoint, _ = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.scalars["density"]["room"] == 66
    again = train(TrainConfig.of(str(scene), out=tmp_path / "run", resume=True), [])
    assert len(again.cloud) == 66


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
        (
            "misplaced",
            "the density strategy 'turns' writes logit_opacities in rows that an edit to 60 Gaussians has not",
        ),
        ("misnamed", "the density strategy 'turns' edits opacity, and a scene has means"),
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
        config = TrainConfig.of(str(scene), threads=1, optimizer="adam", **changes)
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
    lone = said(capsys, scene, "--out", out, "--steps", 5, "--max-gaussians", 100)
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
    assert edits(out)[-1]["step"] == 5
    plain = train(TrainConfig.of(str(scene), out=tmp_path / "plain", steps=2, threads=1)).folder
    grows = said(capsys, scene, "--out", plain, "--resume", "--density", "mcmc")
    assert "was started with --density none, and cannot go on with mcmc" in grows


def test_a_strategy_that_will_never_edit_says_so(scene, tmp_path):
    listener = Listener()
    train(TrainConfig.of(str(scene), out=tmp_path / "run", density="adc", steps=6, threads=1), [listener])
    (warning,) = listener.of(Warned)
    assert warning.message.startswith(
        "--density adc adds and removes nothing in 6 steps: it edits every 100 steps after"
    )


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
