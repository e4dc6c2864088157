"""Configurations of fits: JSON, nonsense, what may change on resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splatopt.core.checks import InputError
from splatopt.fit.config import FitConfig
from splatopt.fit.options import TaskKind, guess_task
from splatopt.optim.field_optimizers import EsgdOptions, FieldAdamOptions
from splatopt.optim.zoo import ZooOptions
from splatopt.report.field_page import fit_command

PHOTO = FitConfig.of("photo.png", task=TaskKind.IMAGE)


@pytest.mark.parametrize(
    "config",
    [
        FitConfig.of(
            "a.png", optimizer="esgd", optimizer_options=EsgdOptions(rate=1 / 3, interval=7), out=Path("runs/x")
        ),
        FitConfig.of(
            "a.obj", task=TaskKind.OCCUPANCY, field="wavelet", omega=7.0, scale=3.0, epochs=3, batch=99, eval_at=(5, 7)
        ),
        FitConfig.of("c", optimizer="zoo:lion", optimizer_options=ZooOptions(rate=0.1, settings=("betas=[0.8,0.9]",))),
    ],
)
def test_it_survives_json(config):
    values = json.loads(json.dumps(config.to_json()))
    assert "resume" not in values
    again = FitConfig.from_json(values, "config.json")
    assert again == config.changed(target=str(Path(config.data.target).absolute()))


def test_resolving_spells_out_what_was_left_open(tmp_path):
    config = FitConfig.of("photo.png").resolved()
    assert (config.data.task, config.schedule.epochs, config.network.sigma) == (TaskKind.IMAGE, 200, 0.05)
    assert config.schedule.optimizer_options == EsgdOptions(rate=0.15, floor=0.0)
    assert config.folder == Path("runs/photo-gaussian-esgd")
    shape = FitConfig.of("bunny.obj", field="relu-pe", optimizer="esgd").resolved()
    assert (shape.data.task, shape.network.sigma, shape.schedule.optimizer_options.rate) == (
        TaskKind.OCCUPANCY,
        None,
        0.1,
    )
    assert FitConfig.of("bunny.obj").resolved().network.sigma == 0.09
    scene = FitConfig.of(str(tmp_path), steps=7).resolved()
    assert (scene.data.task, scene.schedule.epochs, scene.schedule.steps, scene.network.sigma) == (
        TaskKind.NERF,
        None,
        7,
        0.1,
    )
    assert FitConfig.of("a.png", optimizer="zoo:lion").resolved().folder == Path("runs/a-gaussian-zoo-lion")


def test_the_task_goes_by_the_target(tmp_path):
    assert guess_task(tmp_path) is TaskKind.NERF
    assert guess_task(Path("x.STL")) is TaskKind.OCCUPANCY
    assert guess_task(Path("x.jpg")) is TaskKind.IMAGE
    assert guess_task(Path("nothing")) is TaskKind.IMAGE


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"steps": 0}, "--steps"),
        ({"batch": 0}, "--batch"),
        ({"seed": -1}, "--seed"),
        ({"width": 0}, "width"),
        ({"depth": -1}, "depth"),
        ({"sigma": 0.0}, "--sigma must be a positive number"),
        ({"sigma": float("inf")}, "--sigma must be a positive number"),
        ({"omega": 3.0}, r"'gaussian' has no constant 'omega'; it takes sigma"),
        ({"max_side": 0}, "--max-side"),
        ({"points": 2}, "--points"),
        ({"resolution": 7}, "--resolution must be at least 8"),
        ({"resolution": 5000}, "--resolution must be at most 1024"),
        ({"samples": 1}, "--samples"),
        ({"score_views": -1}, "--score-views"),
        ({"test_every": 1}, "--test-every"),
        ({"threads": -1}, "--threads"),
        ({"eval_every": -1}, "--eval-every"),
        ({"eval_at": (4, -1)}, "--eval-at must be at least 0, got -1"),
        ({"checkpoint_seconds": float("nan")}, "--checkpoint-seconds"),
        ({"log_every": 0}, "--log-every"),
        ({"field": "gausian"}, "did you mean gaussian"),
        ({"optimizer": "esdg"}, "did you mean esgd"),
        ({"optimizer": "adam", "optimizer_options": EsgdOptions()}, "must be a FieldAdamOptions"),
        ({"optimizer": "lbfgs", "batch": 512}, "lbfgs compares gradients of successive steps.*leave --batch out"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(settings, said):
    with pytest.raises(InputError, match=said):
        FitConfig.of("photo.png", **settings)


@pytest.mark.parametrize(
    "values",
    [{"stpes": 1}, {"task": "nothing"}, {"epochs": "many"}, {"optimizer": "adam", "optimizer_options": {"speed": 1}}],
)
def test_a_file_that_is_no_configuration_is_refused(values):
    with pytest.raises(InputError, match=r"config\.json"):
        FitConfig.from_json(PHOTO.to_json() | values, "config.json")


SAVED = FitConfig.of(
    "photo.png", optimizer="esgd", optimizer_options=EsgdOptions(damping=1e-3), seed=3, epochs=5, out=Path("run")
).resolved()


def test_resuming_takes_the_saved_settings_where_none_are_given():
    asked = FitConfig.of("here/photo.png", out=Path("run"), resume=True)
    assert asked.resuming(SAVED) == SAVED.changed(target="here/photo.png", resume=True)
    given = asked.changed(optimizer="esgd", optimizer_options=EsgdOptions())
    assert given.resuming(SAVED).schedule.optimizer_options == SAVED.schedule.optimizer_options
    some = SAVED.changed(optimizer_options=EsgdOptions(damping=1e-3, interval=7, rate=0.2))
    given = asked.changed(optimizer="esgd", optimizer_options=EsgdOptions(interval=7))
    assert given.resuming(some).schedule.optimizer_options == some.schedule.optimizer_options


def test_resuming_may_change_what_leaves_past_steps_alone():
    asked = FitConfig.of("photo.png", out=Path("run"), resume=True, epochs=9, threads=1, log_every=5)
    resumed = asked.resuming(SAVED)
    assert (resumed.schedule.epochs, resumed.processes.threads, resumed.saving.log_every, resumed.schedule.seed) == (
        9,
        1,
        5,
        3,
    )
    by_steps = FitConfig.of("photo.png", out=Path("run"), resume=True, steps=40).resuming(SAVED)
    assert by_steps.schedule.steps == 40
    longer = FitConfig.of("photo.png", out=Path("run"), resume=True, epochs=9).resuming(SAVED.changed(steps=3))
    assert (longer.schedule.epochs, longer.schedule.steps) == (9, None), "what was asked for last counts"


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"seed": 4}, "--seed 3, and cannot go on with 4"),
        ({"width": 8}, "--width 256"),
        ({"field": "sine"}, "--field gaussian"),
        ({"task": TaskKind.NERF}, "--task image, and cannot go on with nerf"),
        (
            {"optimizer": "esgd", "optimizer_options": EsgdOptions(damping=0.5)},
            "--esgd.damping 0.001, and cannot go on with 0.5",
        ),
        (
            {"optimizer_options": FieldAdamOptions(rate=0.5)},
            "options of 'adam' are given, and the run in run does not use it",
        ),
    ],
)
def test_resuming_with_another_past_is_refused(settings, flag):
    with pytest.raises(InputError, match=flag):
        FitConfig.of("photo.png", out=Path("run"), resume=True, **settings).resuming(SAVED)


def test_the_command_has_what_differs_and_no_more(tmp_path):
    (tmp_path / "a.png").touch()
    config = FitConfig.of(
        str(tmp_path / "a.png"), optimizer="esgd", optimizer_options=EsgdOptions(damping=0.5), epochs=7, sigma=0.2
    )
    command = fit_command(config.resolved(), Path("run"))
    expected = f"splatopt fit {tmp_path / 'a.png'} --field gaussian --optimizer esgd --sigma 0.2 --epochs 7"
    assert command == f"{expected} --esgd.damping 0.5 --out run"
    scored = config.changed(epochs=None, steps=3, eval_at=(1, 2))
    assert "--sigma 0.2 --steps 3 --eval-at 1 2 --esgd" in fit_command(scored.resolved(), Path("run"))
    zoo = FitConfig.of("gone.png", optimizer="zoo:lion", optimizer_options=ZooOptions(settings=("a=1", "b=2")))
    assert "--zoo.settings a=1 b=2 --out run" in fit_command(zoo.changed(task=TaskKind.IMAGE).resolved(), Path("run"))
