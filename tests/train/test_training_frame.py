"""Scenes train alike wherever their capture lies and whatever its unit, and are written back in its own frame."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from splatopt.core.frame import WORLD, Frame
from splatopt.data import Capture, load_capture
from splatopt.scene.ply import load_ply
from splatopt.train.config import TrainConfig
from splatopt.train.loop import train
from splatopt.train.run import open_run
from train.moved_captures import UTM, moved
from train.toys import make_toy_capture

PLACES = [(1e-4, (0.0, 0.0, 0.0)), (1e3, (0.0, 0.0, 0.0)), (1.0, UTM), (1e3, UTM)]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Capture:
    return load_capture(make_toy_capture(tmp_path_factory.mktemp("toy")))


def run(capture: Capture, folder: Path, **settings: object):
    config = TrainConfig.of(capture.path, out=folder, threads=1, **{"steps": 10, **settings})
    return train(config, [], capture=capture)


@pytest.mark.parametrize(("scale", "shift"), PLACES)
@pytest.mark.parametrize(("optimizer", "init"), [("block-gn", "sfm"), ("block-gn", "random"), ("adam", "sfm")])
def test_the_first_steps_are_the_same_anywhere(toy, tmp_path, scale, shift, optimizer, init):
    here = run(toy, tmp_path / "here", optimizer=optimizer, init=init, random_points=300)
    there = run(moved(toy, scale, shift), tmp_path / "there", optimizer=optimizer, init=init, random_points=300)
    assert there.frame.unit == pytest.approx(scale * here.frame.unit, rel=1e-6)
    mine, theirs = (open_run(tmp_path / name).trained.tensors for name in ("here", "there"))
    # Gaussians begin as spheres, whose turns are not seen: their gradient is rounding, which Adam makes a step of.
    loose = ("quats", "log_scales") if optimizer == "adam" and shift == UTM else ()
    for name, value in mine.items():
        tolerance = 0.02 if name in loose else 1e-4
        torch.testing.assert_close(theirs[name], value, rtol=tolerance, atol=tolerance, msg=name)
    assert there.after.psnr == pytest.approx(here.after.psnr, abs=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "sign-tr", "tr2", "learned"])
def test_another_unit_changes_no_bit_but_rounding(toy, tmp_path, optimizer):
    run(toy, tmp_path / "here", optimizer=optimizer)
    run(moved(toy, 1e-4, (0.0, 0.0, 0.0)), tmp_path / "there", optimizer=optimizer)
    mine, theirs = (open_run(tmp_path / name).trained.tensors for name in ("here", "there"))
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "shift"), PLACES)
def test_scores_after_two_hundred_steps_are_the_same_anywhere(toy, tmp_path, scale, shift):
    here = run(toy, tmp_path / "here", steps=200)
    there = run(moved(toy, scale, shift), tmp_path / "there", steps=200)
    assert there.after.psnr == pytest.approx(here.after.psnr, abs=0.1)
    assert there.after.ssim == pytest.approx(here.after.ssim, abs=0.005)


def test_the_scene_is_written_in_the_captures_own_frame(toy, tmp_path):
    result = run(moved(toy, 100.0, (10.0, 20.0, 30.0)), tmp_path / "run")
    assert result.capture.frame == WORLD
    assert not result.frame.is_world
    scene, opened = load_ply(tmp_path / "run" / "scene.ply"), open_run(tmp_path / "run")
    torch.testing.assert_close(scene.means, result.cloud.means)
    torch.testing.assert_close(opened.cloud.means, scene.means, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(opened.cloud.log_scales, scene.log_scales, rtol=1e-5, atol=1e-5)
    assert (scene.means.double().median(dim=0).values - torch.tensor([10.0, 20, 30])).abs().max() < 500
    local = opened.trained.means
    assert local.norm(dim=1).median() < 10
    # What was written begins another run at the same place.
    again = run(moved(toy, 100.0, (10.0, 20.0, 30.0)), tmp_path / "again", init=str(tmp_path / "run" / "scene.ply"))
    assert again.before.psnr == pytest.approx(result.after.psnr, abs=0.05)


def test_a_capture_far_from_its_origin_is_told(toy, tmp_path):
    told = []
    config = TrainConfig.of(toy.path, out=tmp_path / "run", threads=1, steps=1)
    train(config, [lambda event: told.append(getattr(event, "message", ""))], capture=moved(toy, 1.0, UTM))
    assert any("4.63e+06 world units from its origin, where float32 holds positions to 0.55" in one for one in told)


def test_a_run_goes_on_in_its_frame(toy, tmp_path):
    whole = run(toy, tmp_path / "whole", steps=12)
    run(toy, tmp_path / "run", steps=6, horizon=12)
    resumed = run(toy, tmp_path / "run", steps=12, resume=True)
    assert resumed.frame == whole.frame
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["trained_on"]["frame"]
    assert Frame.parse(kept) == whole.frame
    first = run(toy, tmp_path / "straight", steps=12, horizon=12)
    for name, value in first.cloud.tensors.items():
        assert torch.equal(value, resumed.cloud.tensors[name]), name


def test_a_run_of_an_older_version_stays_in_the_captures_own_frame(toy, tmp_path):
    run(toy, tmp_path / "run", steps=4)
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    del config["trained_on"]["frame"]
    file.write_text(json.dumps(config))
    opened = open_run(tmp_path / "run")
    assert opened.frame == WORLD
    assert torch.equal(opened.cloud.means, opened.trained.means)
    resumed = run(toy, tmp_path / "run", steps=5, resume=True)
    assert resumed.frame == WORLD


def test_a_run_of_an_older_version_without_a_step_begins_in_the_training_frame(toy, tmp_path):
    whole = run(toy, tmp_path / "whole", steps=4)
    run(toy, tmp_path / "run", steps=4)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000004")
    (tmp_path / "run" / "scene.ply").unlink()
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    del config["trained_on"]["frame"]
    file.write_text(json.dumps(config))
    resumed = run(toy, tmp_path / "run", steps=4, resume=True)
    assert resumed.frame == whole.frame
    for name, value in whole.cloud.tensors.items():
        assert torch.equal(value, resumed.cloud.tensors[name]), name


def test_a_frame_that_is_none_is_one_sentence(toy, tmp_path):
    from splatopt.core.checks import InputError

    run(toy, tmp_path / "run", steps=1)
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    config["trained_on"]["frame"] = "0x1p0 nothing"
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config.json: a training frame must be"):
        open_run(tmp_path / "run")
