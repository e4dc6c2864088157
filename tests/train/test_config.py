"""Configurations survive JSON, refuse nonsense, and resume only what they fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splatopt.core.checks import InputError
from splatopt.optim.first_order import AdamOptions
from splatopt.raster.types import Footprint
from splatopt.runs.folder import RunFolder
from splatopt.train.config import TrainConfig
from splatopt.train.loop import train
from splatopt.train.sampler import ViewChoice
from train.toys import ToyRenderer

BLACK = (0.0, 0.0, 0.0)


def test_it_survives_json():
    config = TrainConfig.of(
        "/data/fox",
        optimizer="adam",
        optimizer_options=AdamOptions(means_rate=1.0 / 3.0),
        out=Path("runs/x"),
        background=(0.1, 0.2, 0.3),
        footprint=Footprint.ANTIALIASED,
        max_side=480,
    )
    values = json.loads(json.dumps(config.to_json()))
    assert "resume" not in values
    assert TrainConfig.from_json(values, "config.json") == config


def test_resolving_spells_out_what_was_left_open():
    config = TrainConfig.of("fox", steps=3).resolved("fox", (1.0, 1.0, 1.0))
    assert config.folder == Path("runs/fox-adam")
    assert config.schedule.optimizer_options == AdamOptions()
    assert config.scene.background == (1.0, 1.0, 1.0)
    given = TrainConfig.of("fox", out=Path("x"), background=BLACK).resolved("fox", (1.0, 1.0, 1.0))
    assert given.folder == Path("x")
    assert (given.schedule.optimizer, given.density.density, given.schedule.minutes) == ("block-gn", "gain", 5.0)
    assert given.schedule.until_plateau
    assert given.scene.background == BLACK


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"view_batch": 0}, "--view-batch"),
        ({"downscale": 0}, "--downscale"),
        ({"max_side": -1}, "--max-side"),
        ({"test_every": 1}, "--test-every"),
        ({"log_every": 0}, "--log-every"),
        ({"checkpoint_every": -1}, "--checkpoint-every"),
        ({"checkpoint_seconds": float("nan")}, "--checkpoint-seconds"),
        ({"ssim_weight": 1.1}, "--ssim-weight"),
        ({"init": "scene.obj"}, "--init must be sfm, random or the path of a scene file"),
        ({"device": "gpu"}, "--device must be auto, cpu, cuda or cuda:N"),
        ({"max_memory": -1.0}, "--max-memory must be at least 0"),
        ({"process_timeout": 0.0}, "--process-timeout must be at least 1"),
        ({"sh_degree": 4}, "degree must be 0, 1, 2 or 3"),
        ({"background": (2.0, 0.0, 0.0)}, "background"),
        ({"optimizer": "adm"}, "did you mean adam"),
        ({"average": -1.0}, "--average must be at least 0"),
        ({"average": 4.0, "optimizer": "learned"}, "leaves an average of its iterates already"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(settings, said):
    with pytest.raises(InputError, match=said):
        TrainConfig.of("fox", **settings)


def test_options_of_another_optimizer_are_refused():
    with pytest.raises(InputError, match="must be a AdamOptions, got a dict"):
        TrainConfig.of("fox", optimizer="adam", optimizer_options={"rate": 1.0})
    given = TrainConfig.of("fox", optimizer_options=AdamOptions())  # of a run that is gone on with, it may be
    with pytest.raises(InputError, match="must be a BlockGaussNewtonOptions, got a AdamOptions"):
        given.resolved("fox", BLACK)


def test_learned_sets_its_views_and_its_colours_where_nothing_grows():
    def chosen(**settings):
        config = TrainConfig.of("fox", **settings).resolved("fox", BLACK)
        return config.schedule.view_batch, config.scene.sh_interval

    assert chosen(optimizer="learned") == (8, 0)
    assert chosen(optimizer="learned", view_batch=2, sh_interval=7) == (2, 7)
    assert chosen(optimizer="learned", density="gain") == (1, 1000)
    assert chosen(optimizer="adam") == chosen(stages="learned:5,adam:5") == (1, 1000)


@pytest.mark.parametrize(
    "values",
    [
        {"stpes": 3},
        {"capture": "fox", "optimizer_options": {"speed": 1}},
        {"steps": 3},
        {"capture": "fox", "steps": "many"},
    ],
)
def test_a_file_that_is_no_configuration_is_refused(values):
    with pytest.raises(InputError, match=r"config\.json"):
        TrainConfig.from_json({"optimizer": "adam"} | values, "config.json")


SAVED = TrainConfig.of(
    "/data/fox", steps=700, seed=3, downscale=2, optimizer_options=AdamOptions(quats_rate=2e-3), out=Path("run")
).resolved("fox", BLACK)


def test_resuming_takes_the_saved_settings_where_none_are_given():
    asked = TrainConfig.of("here/fox", out=Path("run"), resume=True)
    resumed = asked.resuming(SAVED)
    assert resumed == SAVED.changed(capture="here/fox", resume=True)


def test_resuming_may_change_what_leaves_past_steps_alone():
    asked = TrainConfig.of(
        "fox", out=Path("run"), resume=True, steps=900, threads=1, log_every=5, optimizer_options=AdamOptions()
    )
    resumed = asked.resuming(SAVED)
    assert (resumed.schedule.steps, resumed.processes.threads, resumed.saving.log_every) == (900, 1, 5)
    assert resumed.schedule.optimizer_options == AdamOptions(quats_rate=2e-3)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"seed": 4}, "--seed 3, and cannot go on with 4"),
        ({"downscale": 4}, "--downscale 2"),
        ({"optimizer_options": AdamOptions(quats_rate=5e-3)}, "--adam.quats-rate 0.002, and cannot go on with 0.005"),
    ],
)
def test_resuming_with_another_past_is_refused(settings, flag):
    with pytest.raises(InputError, match=flag):
        TrainConfig.of("fox", out=Path("run"), resume=True, **settings).resuming(SAVED)


def test_settings_by_name_are_taken_as_in_a_file():
    config = TrainConfig.of("here", view_choice="farthest", footprint="antialiased", eval_at=[3, 5], init=Path("a.ply"))
    assert config.schedule.view_choice is ViewChoice.FARTHEST
    assert config.scene.footprint is Footprint.ANTIALIASED
    assert config.scoring.eval_at == (3, 5)
    assert config.scene.init == "a.ply"
    assert TrainConfig.of("here", view_choice=ViewChoice.FARTHEST) == TrainConfig.of("here", view_choice="farthest")
    with pytest.raises(InputError, match="view_choice must be shuffled or farthest"):
        TrainConfig.of("here", view_choice="near")


def test_a_run_that_names_no_longest_side_is_of_an_older_version_and_keeps_all_pixels(settings):
    result = train(settings(steps=1), renderer=ToyRenderer())
    file = result.folder / "config.json"
    held = json.loads(file.read_text())
    assert held["max_side"] == 1600
    assert TrainConfig.read(RunFolder(result.folder)).data.max_side == 1600
    for older in (held | {"max_side": None}, {name: value for name, value in held.items() if name != "max_side"}):
        file.write_text(json.dumps(older))
        assert TrainConfig.read(RunFolder(result.folder)).data.max_side == 0
    gone_on = train(settings(steps=2, resume=True), renderer=ToyRenderer())
    assert gone_on.config.data.max_side == 0
    assert TrainConfig.of("x", downscale=2).resolved("x", BLACK).data.max_side == 0
