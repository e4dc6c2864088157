"""The matrix of fields is resumable, and its table says what the runs say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import field_curves, fields

CELL = ("photo", "sine", "adam", 1e-3)


def curve(values, cell=CELL, seed=0):
    epochs = tuple(float(index + 1) for index in range(len(values)))
    return field_curves.Curve(cell, seed, "psnr", epochs, tuple(2 * epoch for epoch in epochs), tuple(values))


def test_reaching_a_level_is_not_staying_above_it():
    swinging = curve([20.0, 31.0, 29.0, 32.0, 33.0])
    assert swinging.reaches(30.0, stays=False) == 1
    assert swinging.reaches(30.0, stays=True) == 3
    assert swinging.reaches(32.5, stays=True) == 4
    assert swinging.reaches(40.0, stays=False) is None
    assert curve([31.0, 29.0]).reaches(30.0, stays=True) is None
    assert curve([31.0, 32.0]).reaches(30.0, stays=True) == 0


def test_scores_after_so_many_epochs():
    assert curve([20.0, 21.0, 22.0]).at(2) == 21.0
    assert curve([20.0, 21.0, 22.0]).at(4) is None


def test_the_table_has_the_whole_sweep_and_names_how_many_seeds_came_there():
    slow, fast = ("photo", "sine", "adam", 1e-4), ("photo", "sine", "adam", 1e-3)
    esgd = ("photo", "sine", "esgd", 0.15)
    text = field_curves.table_of(
        "psnr",
        [
            curve([36.0, 36.0], esgd),
            curve([36.0, 38.0], esgd, seed=1),
            curve([20.0, 31.0], fast),
            curve([20.0, 29.0], fast, seed=1),
            curve([10.0, 20.0], slow),
        ],
    )
    head, _, slowly, adam, curved = text.splitlines()
    assert head.startswith("| target | field | optimizer | rate | seeds | after 25 epochs | after 50 epochs |")
    assert "| photo | sine | adam | 0.0001 | 1 | – | – | – | 20.00 | never | never | never | never |" in slowly
    assert "| photo | sine | adam | 0.001 | 2 | – | – | – | 30.00 ± 1.41 | 2, 4 s (1 of 2)" in adam
    assert "| photo | sine | esgd | 0.15 | 2 | – | – | – | 37.00 ± 1.41 | 1 ± 0, 2 ± 0 s |" in curved


def test_the_late_mean_tells_a_swing_and_haste_from_a_good_rate():
    good, swing, haste = [10.0, 20.0, 26.0, 27.0], [20.0, 22.0, 24.0, 20.0], [25.0, 25.0, 25.0, 25.0]
    assert curve(good).late_mean() == pytest.approx(26.5)
    assert curve(good).late_mean() > max(curve(swing).late_mean(), curve(haste).late_mean())
    assert curve(good).late_mean(2) == 20.0 < curve(haste).late_mean(2)


def test_what_is_finished_is_not_done_again(tmp_path, monkeypatch, capsys):
    words = ["--out", str(tmp_path), "--side", "12", "--epochs", "2", "--seeds", "0", "1", "--fields", "sine"]
    words += ["--adam-rates", "1e-3", "1e-2", "--width", "8", "--threads", str(torch.get_num_threads())]
    assert fields.main(["image", *words]) == 0
    runs = {path.parent.name for path in tmp_path.glob("*/eval.json")}
    assert {name for name in runs if "esgd" in name} == {f"astronaut-12-sine-esgd-seed{seed}" for seed in (0, 1)}
    assert len({name for name in runs if "adam" in name}) == 3, "two rates on the first seed, the best on the other"
    monkeypatch.setattr(fields, "fit_field", lambda *_: pytest.fail("it is finished"))
    assert fields.main(["image", *words]) == 0
    assert fields.main(["table", "--out", str(tmp_path)]) == 0
    assert "| astronaut-12 | sine | esgd | 0.15 | 2 |" in (tmp_path / "table.md").read_text()


def test_a_longer_run_that_was_stopped_does_not_pass_for_done(tmp_path):
    assert fields.epochs_done(tmp_path) == -1
    lines = [f'{{"step": {step}, "epoch": {step / 8}, "seconds": {step}}}\n' for step in (8, 16, 24)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "eval.json").write_text('{"steps": 16, "psnr": 20.0}')
    assert fields.epochs_done(tmp_path) == 2
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    assert fields.epochs_done(tmp_path) == 2
