"""The command line and the five lines of Python, from a capture to a scene, with the real renderer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import splatopt
from splatopt.cli import main
from splatopt.core import native
from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.optimizer import optimizer_names
from splatopt.data.procedural import make_capture
from splatopt.runs.program import program
from splatopt.scene.ply import load_ply
from splatopt.train import machine as machine_module
from train.toys import ToyRenderer

COMMANDS = (
    "train",
    "eval",
    "render",
    "export",
    "convert",
    "report",
    "bench",
    "data",
    "fit",
    "diagnose",
    "poses",
    "inspect",
    "demo",
    "doctor",
)


def output_of(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_help_names_every_command_and_loads_nothing_heavy():
    heavy = ("torch", "numpy", "torchmetrics", "pycolmap", "matplotlib", "rich", "tyro")
    code = f"""
import sys
from splatopt.cli import main
assert main(["--help"]) == 0
assert main(["--version"]) == 0
print([name for name in {heavy} if name in sys.modules])
"""
    out = output_of(code)
    for command in COMMANDS:
        assert f"  {command} " in out
    assert f"splatopt {splatopt.__version__}" in out
    assert out.splitlines()[-1] == "[]"


def test_the_python_names_load_neither_metrics_nor_plotting_and_nothing_on_a_cpu_needs_triton():
    code = """
import sys, splatopt, torch
splatopt.TrainConfig, splatopt.fit, splatopt.AdamOptions
import splatopt.optim
from splatopt import kernels
kernels.takes([torch.zeros(3)]); kernels.available()
print([name for name in ("torchmetrics", "matplotlib", "triton") if name in sys.modules])
"""
    assert output_of(code).strip() == "[]"


def test_training_begins_without_what_its_first_line_does_not_need():
    heavy = ("scipy", "matplotlib", "viser", "torchmetrics", "trimesh", "gsply", "torch._dynamo", "torch._inductor")
    code = f"import sys, splatopt.commands.train; print([name for name in {heavy} if name in sys.modules])"
    assert output_of(code).strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"usage: splatopt {command}" in capsys.readouterr().out


def test_whole_help_of_train_shows_the_optimizers_options(capsys):
    main(["train", "--help-all"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for flag in (
        "--adam.means-rate",
        "--downscale",
        "--max-side",
        "--view-batch",
        "--resume",
        "--skip-missing",
        "--stages",
    ):
        assert flag in shown
    assert "Source: 3DGS, position_lr_init. (default: 0.00016)" in shown


@pytest.mark.parametrize(
    ("command", "groups"),
    [
        ("train", ("data", "scene", "schedule", "scoring", "saving", "processes", "adam")),
        ("fit", ("data", "network", "schedule", "scoring", "saving", "processes", "esgd")),
    ],
)
def test_help_has_a_heading_for_each_group_whose_name_no_option_bears(command, groups, capsys):
    main([command, "--help-all"])
    shown = capsys.readouterr().out
    headings = [shown.find(f" {group} options ") for group in groups]
    assert min(headings) > 0
    assert headings == sorted(headings)
    assert "--schedule" not in shown


@pytest.mark.parametrize(
    ("words", "there"),
    [
        (["--optimizer", "tr2"], {"tr2"}),
        (["--optimizer=lm"], {"lm"}),
        (["--stages", "adam:10,block-gn:20"], {"adam", "block-gn"}),
    ],
)
def test_help_of_train_explains_the_optimizers_that_are_named_and_lists_all(words, there, capsys):
    assert main(["train", *words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert {name for name in optimizer_names() if f"--{name}." in shown.replace("--adam.means-rate.", "")} == there
    assert all(f"\n- {name}: " in shown for name in optimizer_names())


@pytest.mark.parametrize(("words", "said"), [([], "a command is missing"), (["trian"], "did you mean train")])
def test_an_unknown_command_gets_a_hint(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_train_leaves_a_run(run_folder):
    config = json.loads((run_folder / "config.json").read_text())
    assert config["optimizer_options"]["means_rate"] == 2e-4
    assert config["steps"] == 30
    record = json.loads((run_folder / "eval.json").read_text())
    assert record["psnr"] > record["before"]["psnr"] + 1
    assert len(load_ply(run_folder / "scene.ply")) == 200
    assert len((run_folder / "metrics.jsonl").read_text().splitlines()) == 3


def test_stages_run_with_their_own_options(capture, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--stages", "adam:20,lm:3", "--log-every", "1", "--lm.iterations", "4", "--adam.means-rate", "2e-4"]
    assert main(["train", str(capture), *words, "--out", str(out)]) == 0
    said, progress = capsys.readouterr()
    assert "23 steps in" in said
    assert "stages adam:20,lm:3" in progress
    assert "step 23/23 (lm 3/3)" in progress
    config = json.loads((out / "config.json").read_text())
    assert config["stages"] == "adam:20,lm:3"
    assert config["optimizer_options"]["adam"]["means_rate"] == 2e-4
    assert config["optimizer_options"]["lm"]["iterations"] == 4
    lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    assert [line["optimizer"] for line in lines] == ["adam"] * 20 + ["lm"] * 3
    steps = lines[20:]
    # A step that would not lower its batch's loss is not taken, and has no length.
    lengths = [line["step_length"] for line in steps]
    assert lengths[0] > 0
    assert min(lengths) >= 0
    assert steps[0]["damping"] == 2.0
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert main(["report", str(out)]) == 0
    assert "--stages adam:20,lm:3" in (out / "report.html").read_text()
    capsys.readouterr()
    assert main(["train", str(capture), "--out", str(out), "--resume", "--stages", "adam:20,lm:4"]) == 0
    assert "going on at step 23 of 24" in capsys.readouterr().err


def test_levenberg_marquardt_says_at_once_what_memory_it_needs(capture, tmp_path, capsys):
    words = ["--stages", "adam:500,lm:3", "--lm.memory-mebibytes", "1", "--out", str(tmp_path / "run")]
    assert main(["train", str(capture), *words]) == 2
    error = capsys.readouterr().err
    assert "splatopt: a step of lm needs 2 MiB of memory, for 200 rows and the residuals of one view, and may" in error
    assert not (tmp_path / "run").exists()


def test_train_says_what_came_out(capture, tmp_path, capsys):
    assert main(["train", str(capture), "--steps", "3", "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert "3 steps in" in out
    assert "test PSNR" in out
    assert str(tmp_path / "run" / "scene.ply") in out.replace("\n", "")
    assert "step 3/3" in err
    assert "200 Gaussians" in err


def test_the_folder_is_named_after_capture_and_optimizer(capture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(capture), "--steps", "1"]) == 0
    assert (tmp_path / "runs" / "toy-adam" / "scene.ply").is_file()
    assert main(["train", str(capture), "--resume", "--steps", "2"]) == 0
    assert latest_checkpoint(tmp_path / "runs" / "toy-adam" / "checkpoints")[0].step == 2


def test_sizes_are_those_asked_for(capture, tmp_path, capsys):
    out = tmp_path / "run"
    sizes = ["--downscale", "2", "--view-batch", "3"]
    assert main(["train", str(capture), "--steps", "1", *sizes, "--out", str(out)]) == 0
    assert main(["render", str(out), "--path", "test"]) == 0
    picture = next((out / "renders" / "test").iterdir())
    assert Image.open(picture).size == (24, 18)


def test_commands_that_are_shown_can_be_typed(tmp_path, monkeypatch):
    folder = tmp_path / "environment"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert program() == "environment/python -m splatopt"
    (folder / "splatopt").touch(mode=0o755)
    assert program() == "environment/splatopt"
    monkeypatch.chdir(folder)
    assert program() == "./splatopt"
    monkeypatch.setenv("PATH", str(folder))
    assert program() == "splatopt"


def test_inspect_says_what_was_found(capture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where there is no run yet
    assert main(["inspect", str(capture)]) == 0
    shown = capsys.readouterr().out
    for words in ("views        10", "48x36 (10)", "points       200", "every-8th-test: 8 train, 2 test"):
        assert words in shown
    assert f"next         {program()} train {capture} --out runs/toy\n" in shown


def test_inspect_does_not_send_one_on_before_the_problems_are_mended(capture, tmp_path, capsys):
    alone = Path(shutil.copytree(capture, tmp_path / "alone"))
    for picture in sorted((alone / "images").iterdir()):
        Image.new("RGB", (50, 50)).save(picture)
    assert main(["inspect", str(alone)]) == 0
    shown = capsys.readouterr().out
    assert "problem      image" in shown
    assert f"once mended  {program()} inspect {alone}\n" in shown
    assert "50x50 pixels but its camera is 48x36" in shown
    assert "(and 9 more views: " in shown
    assert shown.count("problem  ") == 1
    assert "next  " not in shown


def test_doctor_says_what_will_render_and_why(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for name in ("splatopt", "python", "torch", "native", "renderer", "ffmpeg", "memory"):
        assert any(line.startswith(name) for line in shown.splitlines()), name
    if native.available():
        assert f"{native.workers().isa}, {native.workers().threads} threads" in shown
        assert "renderer  native: the native module is installed" in shown


def test_ctrl_c_ends_with_130_and_how_to_go_on(capture, tmp_path, monkeypatch, capsys):
    def press(call, parts):
        if call == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(machine_module, "open_backend", lambda *_: ToyRenderer(press))
    out = tmp_path / "run"
    assert main(["train", str(capture), "--steps", "9", "--out", str(out)]) == 130
    error = capsys.readouterr().err
    assert "splatopt: stopped at step 5 of 9, step-000005 is kept; go on with: " in error
    assert f"splatopt train {capture} --out {out} --resume" in error
    assert "Traceback" not in error
    monkeypatch.setattr(machine_module, "open_backend", lambda *_: ToyRenderer())
    assert main(["train", str(capture), "--out", str(out), "--resume"]) == 0
    assert latest_checkpoint(out / "checkpoints")[0].step == 9


@pytest.mark.slow
def test_a_killed_process_is_resumed_as_if_nothing_had_happened(capture, tmp_path):
    """SIGKILL in the middle of training, at no moment in particular."""
    words = ["--steps", "400", "--checkpoint-every", "20", "--log-every", "7"]
    assert main(["train", str(capture), "--out", str(tmp_path / "straight"), *words]) == 0
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "splatopt", "train", str(capture), "--out", str(killed), *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if any((killed / "checkpoints").glob("step-0000[2-9]0")):
                process.kill()
            time.sleep(0.002)
        process.kill()
    assert main(["train", str(capture), "--out", str(killed), "--resume"]) == 0
    lines = [
        [(line["step"], line["loss"], line["psnr"]) for line in map(json.loads, (folder / "metrics.jsonl").open())]
        for folder in (tmp_path / "straight", killed)
    ]
    assert lines[0] == lines[1]
    assert (tmp_path / "straight" / "scene.ply").read_bytes() == (killed / "scene.ply").read_bytes()


def test_the_number_of_threads_changes_nothing(capture, tmp_path):
    for threads in ("1", "2"):
        out = str(tmp_path / threads)
        assert main(["train", str(capture), "--steps", "12", "--threads", threads, "--out", out]) == 0
    assert (tmp_path / "1" / "scene.ply").read_bytes() == (tmp_path / "2" / "scene.ply").read_bytes()


def test_five_lines_of_python(capture, tmp_path, monkeypatch):
    """The README's, line for line but for the paths."""
    monkeypatch.chdir(tmp_path)
    result = splatopt.train(str(capture), steps=20, out="runs/first")
    line = f"{result.before.psnr:.2f} -> {result.after.psnr:.2f} dB in {result.seconds:.0f} s"
    splatopt.save_ply(result.cloud, "scene.ply")
    assert result.after.psnr > result.before.psnr
    assert "dB in" in line
    assert len(splatopt.load_ply("scene.ply")) == 200
    image = splatopt.render(result.cloud, result.capture.cameras[0]).image if native.available() else None
    assert image is None or image.shape == (36, 48, 3)


def test_python_refuses_an_unknown_setting(capture):
    with pytest.raises(splatopt.InputError, match=r"'stpes'; did you mean steps"):
        splatopt.train(capture, stpes=3)


def test_every_public_name_can_be_loaded():
    for name in splatopt.__all__:
        assert getattr(splatopt, name) is not None
        assert name in dir(splatopt)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        splatopt.nothing_of_the_kind  # noqa: B018


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cuda"], "--device cuda cannot be used"),
        (["--renderer", "gsplat", "--device", "cpu"], "the gsplat renderer does not compute on cpu"),
        (["--max-memory", "0.0001"], "GiB of memory ("),
    ],
)
def test_a_device_or_memory_that_is_not_there_is_one_sentence(capture, tmp_path, words, said, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "run"
    assert main(["train", str(capture), "--out", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not out.exists()


def test_other_commands_refuse_several_processes(monkeypatch, capsys):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert main(["doctor"]) == 2
    assert "splatopt doctor does not share its work among processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["eval", "run"]),
        pytest.param(["export", "run", "x.ply"], marks=pytest.mark.slow),
        pytest.param(["render", "run"], marks=pytest.mark.slow),
        pytest.param(["report", "run"], marks=pytest.mark.slow),
        pytest.param(["train", "capture", "--out", "run", "--resume"], marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0],
)
def test_a_process_of_its_own_knows_all_optimizers(tmp_path, words):
    """Nothing that another command imported may be needed."""
    make_capture(tmp_path / "capture", views=8, width=32, height=24, points=200)
    assert main(["train", str(tmp_path / "capture"), "--steps", "2", "--out", str(tmp_path / "run")]) == 0
    command = [sys.executable, "-m", "splatopt", *words]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
