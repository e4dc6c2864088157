"""``splatopt fit``, ``diagnose`` and ``report`` of a fit, as they are typed; ``zoo:NAME`` for scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splatopt.cli import main
from splatopt.commands.fit import report_fit
from splatopt.core.checkpoint import latest_checkpoint
from train.toys import make_toy_capture

SMALL = ["--width", "16", "--depth", "1", "--batch", "64", "--threads", "1"]


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "ramp.png"
    ramp = np.linspace(0, 255, 16).astype(np.uint8)
    Image.fromarray(np.stack([np.broadcast_to(ramp, (16, 16))] * 3, axis=-1)).save(path)
    return path


@pytest.fixture(scope="module")
def fitted(photo, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "fit"
    words = ["--field", "sine", "--optimizer", "esgd", "--esgd.rate", "0.05", "--epochs", "20"]
    assert main(["fit", str(photo), *words, *SMALL, "--out", str(out)]) == 0
    return out


def test_fit_says_what_came_of_it(photo, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["fit", str(photo), "--epochs", "2", *SMALL, "--out", str(out)]) == 0
    said = capsys.readouterr()
    record = json.loads((out / "eval.json").read_text())
    assert f"8 steps in {record['seconds']:.1f} s; PSNR {record['psnr']:.2f} dB, SSIM" in said.out
    assert f"result: {out}" in said.out.replace("\n", "")
    assert json.loads((out / "config.json").read_text())["optimizer_options"]["rate"] == 0.15


def test_options_reach_the_optimizer_and_resuming_needs_none_of_them(photo, fitted, tmp_path, capsys):
    config = json.loads((fitted / "config.json").read_text())
    assert config["optimizer_options"]["rate"] == 0.05
    assert main(["fit", str(photo), "--out", str(fitted), "--resume", "--epochs", "21"]) == 0
    assert latest_checkpoint(fitted / "checkpoints")[0].step == 84


def test_the_folder_is_named_after_target_field_and_optimizer(photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", str(photo), "--steps", "1", *SMALL, "--optimizer", "sgd"]) == 0
    assert (tmp_path / "runs" / "ramp-gaussian-sgd" / "result.png").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--field", "gausian"], "did you mean gaussian"),
        (["--optimizer", "esdg"], "did you mean esgd"),
        (["--optimizer", "lbfgs", "--batch", "64"], "leave --batch out"),
        (["--adam.rate", "0.1"], "add --optimizer adam"),
        (["--optimizer", "zoo:lomo"], "whole model"),
        (["--sigma", "0.1", "--field", "sine"], "no constant 'sigma'"),
        (["--task", "occupancy"], "has an ending that cannot be read"),
        (["--task", "nerf"], "no capture at"),
    ],
)
def test_bad_input_ends_with_a_sentence_and_code_2(photo, tmp_path, words, said, capsys):
    assert main(["fit", str(photo), *words, "--out", str(tmp_path / "run")]) == 2
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_report_of_a_fit(fitted, capsys):
    assert main(["report", str(fitted)]) == 0
    assert f"written to {fitted / 'report.html'}" in capsys.readouterr().out.replace("\n", "")
    assert "<img " in (fitted / "report.html").read_text()
    report_fit(fitted, 0)
    assert "<img " not in (fitted / "report.html").read_text()


def test_commands_for_scenes_say_what_a_fit_is(fitted, capsys):
    assert main(["eval", str(fitted)]) == 2
    assert "is a run of splatopt fit, and this wants one of splatopt train" in capsys.readouterr().err


def test_a_fit_is_diagnosed_and_stays_as_it_is(fitted, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in fitted.rglob("*")}
    words = ["--examples", "50", "--lanczos-steps", "5", "--top", "2", "--out", str(tmp_path / "out")]
    assert main(["diagnose", "run", str(fitted), *words]) == 0
    assert {path: path.stat().st_mtime_ns for path in fitted.rglob("*")} == before
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert found["matrix"] == "the Hessian"
    first, last = found["points"][0], found["points"][-1]
    assert first["step"] == 0 < last["step"]
    assert last["loss"] < first["loss"]
    assert len(last["eigenvalues"]) == 2


@pytest.mark.slow
def test_diagnose_writes_a_table_and_a_plot(tmp_path, capsys):
    out = tmp_path / "diagnosis"
    words = ["diagnose", "field", "--fields", "sine", "relu", "--width", "5", "--side", "6", "--draws", "3"]
    assert main([*words, "--omega", "8", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "sine" in shown
    found = json.loads((out / "diagnosis.json").read_text())
    assert found["plan"]["constants"] == {"omega": 8.0}
    assert [len(found["draws"][name]) for name in ("sine", "relu")] == [3, 3]
    for draw in found["draws"]["sine"]:
        assert draw["equilibrated"] < draw["none"]
        assert draw["density"] == 1.0
    assert all(draw["density"] < 0.9 for draw in found["draws"]["relu"])
    page = (out / "diagnosis.html").read_text()
    assert page.count("<svg") == 2
    assert main([*words, "--out", str(out)]) == 2
    assert "holds a diagnosis already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["field", "--fields", "sien"], "did you mean sine"),
        (["field", "--draws", "0"], "--draws must be at least 1"),
        (["field", "--fields"], "--fields names no field"),
        (["field", "--sigma", "-1"], "--sigma must be a positive number"),
        (["field", "--sigma", "nan"], "--sigma must be a positive number"),
        (["field", "--fields", "sine", "--sigma", "0.1"], "--sigma is of none of the fields sine"),
        (["field", "--seed", "99999999999999999999"], "--seed must be at most"),
        (["field", "--pixels", "300"], "--pixels must be at most 256"),
        (["field", "--fields", "sine", "--width", "300"], "dense Hessian of"),
    ],
)
def test_nonsense_is_not_diagnosed(tmp_path, words, said, capsys):
    assert main(["diagnose", *words, "--out", str(tmp_path / "d")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_the_zoo_trains_scenes_too(tmp_path, capsys):
    pytest.importorskip("pytorch_optimizer", reason="the extra 'zoo' is not installed")
    capture = make_toy_capture(tmp_path / "toy", width=48, height=36, points=200)
    words = ["train", str(capture), "--optimizer", "zoo:adan", "--zoo.rate-factor", "2", "--out", str(tmp_path / "run")]
    assert main([*words, "--steps", "60"]) == 0
    record = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert record["psnr"] > record["before"]["psnr"] + 1
    assert main(["train", str(capture), "--out", str(tmp_path / "run"), "--resume", "--steps", "62"]) == 0
    assert main(["report", str(tmp_path / "run"), "--views", "0"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "--optimizer zoo:adan" in page
    assert "--zoo.rate-factor 2.0" in page
