"""The optimizer that a field is fitted with where none is named."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from splatopt.cli import main
from splatopt.fit.config import FitConfig, suited_optimizer
from splatopt.fit.options import TaskKind


@pytest.mark.parametrize(
    ("field", "task", "optimizer", "rate"),
    [
        ("gaussian", "image", "esgd", 0.15),
        ("sine", "image", "esgd", 0.05),
        ("sine", "occupancy", "esgd", 0.15),
        ("wavelet", "image", "esgd", 0.15),
        ("wavelet", "occupancy", "adam", 1e-4),
        ("sinc", "nerf", "esgd", 0.15),
        ("relu", "image", "adam", 1e-3),
        ("relu-pe", "nerf", "adam", 1e-3),
    ],
)
def test_each_field_has_the_optimizer_that_was_measured_to_suit_it(field, task, optimizer, rate):
    resolved = FitConfig.of("target", field=field, task=TaskKind(task)).resolved()
    assert (resolved.schedule.optimizer, resolved.schedule.optimizer_options.rate) == (optimizer, rate)
    named = FitConfig.of("target", field=field, task=TaskKind(task), optimizer="adam").resolved()
    assert named.schedule.optimizer == "adam"
    assert suited_optimizer(field, TaskKind(task))[0] == optimizer


def test_the_command_takes_it_with_options_or_without(tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (12, 12), (200, 30, 90)).save(photo)
    words = ["fit", str(photo), "--field", "sine", "--width", "8", "--steps", "2", "--threads", "1"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert main([*words, "--esgd.rate", "0.2", "--out", str(tmp_path / "b")]) == 0
    saved = [json.loads((tmp_path / name / "config.json").read_text()) for name in "ab"]
    assert [one["optimizer_options"]["rate"] for one in saved] == [0.05, 0.2]
    assert main([*words, "--esgd.interval", "50", "--out", str(tmp_path / "d")]) == 0
    other = json.loads((tmp_path / "d" / "config.json").read_text())["optimizer_options"]
    assert (other["rate"], other["interval"]) == (0.05, 50)
    assert main([*words, "--adam.rate", "0.2", "--out", str(tmp_path / "c")]) == 2
    assert "options of 'adam' are given, but the optimizer is 'esgd'" in capsys.readouterr().err
    assert main(["fit", str(photo), "--out", str(tmp_path / "b"), "--resume", "--esgd.rate", "0.3"]) == 2
    assert main(["fit", str(photo), "--out", str(tmp_path / "b"), "--resume"]) == 0
