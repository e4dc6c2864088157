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

import numpy as np
import pytest
import torch
from PIL import Image

import splatopt
from splatopt.cli import main
from splatopt.core import native
from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.optimizer import optimizer_names
from splatopt.raster.cpu import NativeRenderer
from splatopt.scene.ply import load_ply
from splatopt.train import loop as loop_module
from splatopt.train import views as views_module
from splatopt.train.program import program
from train.toys import ToyRenderer, make_toy_capture

COMMANDS = ("train", "eval", "render", "export", "report", "bench", "data", "fit", "diagnose", "inspect", "doctor")


@pytest.fixture(scope="module")
def capture(tmp_path_factory) -> Path:
    return make_toy_capture(tmp_path_factory.mktemp("capture") / "toy", width=48, height=36, points=200)


@pytest.fixture(scope="module")
def run_folder(capture, tmp_path_factory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(capture), "--steps", "30", "--out", str(out), "--adam.means-rate", "2e-4"]) == 0
    return out


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


def test_the_python_names_load_neither_metrics_nor_plotting():
    code = """
import sys, splatopt
splatopt.TrainConfig, splatopt.fit, splatopt.AdamOptions
print([name for name in ("torchmetrics", "matplotlib") if name in sys.modules])
"""
    assert output_of(code).strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"usage: splatopt {command}" in capsys.readouterr().out


def test_help_of_train_shows_the_optimizers_options(capsys):
    main(["train", "--help"])
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
    assert all(f"\n{name}: " in shown for name in optimizer_names())


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
    assert all(line["step_length"] > 0 for line in steps)
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
    assert main(["render", str(out)]) == 0
    picture = next((out / "renders" / "test").iterdir())
    assert Image.open(picture).size == (24, 18)


def test_eval_gives_the_same_scores_again(run_folder, capsys):
    before = json.loads((run_folder / "eval.json").read_text())
    assert main(["eval", str(run_folder)]) == 0
    assert json.loads((run_folder / "eval.json").read_text()) == before
    shown = capsys.readouterr().out
    assert f"{before['psnr']:.2f}" in shown
    assert before["views"][0]["name"] in shown


def test_export_gives_the_trained_scene(run_folder, tmp_path, capsys):
    path = tmp_path / "out.ply"
    assert main(["export", str(run_folder), str(path)]) == 0
    exported, trained = load_ply(path), latest_checkpoint(run_folder / "checkpoints")[0].tensors
    assert torch.equal(exported.means, trained["cloud.means"])
    assert torch.equal(exported.sh_dc, trained["cloud.sh_dc"])
    assert "200 Gaussians of step 30" in capsys.readouterr().out
    assert main(["export", str(run_folder), str(tmp_path / "out.obj")]) == 2


def test_what_exists_is_not_overwritten(run_folder, tmp_path, capsys):
    scene, picture = tmp_path / "mine.ply", tmp_path / "mine" / "orbit-0001.png"
    picture.parent.mkdir()
    scene.write_text("mine")
    picture.write_text("mine")
    assert main(["export", str(run_folder), str(scene)]) == 2
    assert "mine.ply exists already; give another path" in capsys.readouterr().err
    words = ["render", str(run_folder), "--path", "orbit", "--frames", "2", "--out"]
    assert main([*words, str(picture.parent)]) == 2
    assert "orbit-0001.png exists already; give another folder with --out" in capsys.readouterr().err
    (tmp_path / "film.mp4").write_text("mine")
    assert main([*words, str(tmp_path / "film")]) == 2
    assert "film.mp4 exists already" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"mine.ply", "mine", "film.mp4"}
    assert scene.read_text() == picture.read_text() == (tmp_path / "film.mp4").read_text() == "mine"


def test_a_shorter_orbit_leaves_no_frames_of_a_longer_one(run_folder, tmp_path):
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    for frames in (4, 2):
        assert main(["render", str(copy), "--path", "orbit", "--frames", str(frames)]) == 0
    (copy / "renders" / "orbit" / "orbit-note.png").write_text("mine")
    assert main(["render", str(copy), "--path", "orbit", "--frames", "2"]) == 0
    names = {path.name for path in (copy / "renders" / "orbit").iterdir()}
    assert names == {"orbit-0000.png", "orbit-0001.png", "orbit-note.png"}


def test_a_run_without_checkpoints_falls_back_on_its_scene(run_folder, tmp_path):
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    shutil.rmtree(copy / "checkpoints")
    assert main(["export", str(copy), str(tmp_path / "out.ply")]) == 0
    assert (tmp_path / "out.ply").read_bytes() == (copy / "scene.ply").read_bytes()
    run = splatopt.open_run(copy)
    assert (run.steps, run.folder.path) == (30, copy)


def test_render_writes_what_eval_scored(run_folder):
    assert main(["render", str(run_folder)]) == 0
    record = json.loads((run_folder / "eval.json").read_text())
    pictures = sorted((run_folder / "renders" / "test").iterdir())
    assert [path.stem for path in pictures] == [Path(view["name"]).stem for view in record["views"]]
    run = splatopt.open_run(run_folder)
    capture = run.open_capture()
    for path, view, index in zip(pictures, record["views"], capture.split.test, strict=True):
        picture = np.asarray(Image.open(path)) / 255.0
        error = np.mean((picture - capture.images[index].numpy() / 255.0) ** 2)
        assert -10 * np.log10(error) == pytest.approx(view["psnr"], abs=0.05)


@pytest.mark.parametrize("path", ["orbit", "spiral"])
def test_render_of_a_path(run_folder, tmp_path, path, monkeypatch, capsys):
    monkeypatch.setattr(views_module.shutil, "which", lambda name: None)
    folder = tmp_path / "frames"
    assert main(["render", str(run_folder), "--path", path, "--frames", "3", "--out", str(folder)]) == 0
    assert sorted(file.name for file in folder.iterdir()) == [f"{path}-{i:04d}.png" for i in range(3)]
    assert len({file.read_bytes() for file in folder.iterdir()}) == 3
    assert "ffmpeg is not on the search path" in capsys.readouterr().out


def test_render_makes_a_video_where_ffmpeg_is(run_folder, tmp_path, monkeypatch, capsys):
    fake = tmp_path / "bin" / "ffmpeg"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" > "$last"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    folder = tmp_path / "frames"
    words = ["render", str(run_folder), "--path", "orbit", "--frames", "2", "--out", str(folder)]
    assert main([*words, "--fps", "24"]) == 0
    assert "-r 24" in (tmp_path / "frames.mp4").read_text()
    assert "video:" in capsys.readouterr().out
    fake.write_text("#!/bin/sh\necho broken codec >&2\nexit 1\n")
    assert main([*words[:-1], str(tmp_path / "others")]) == 2
    assert "broken codec" in capsys.readouterr().err


def test_the_video_has_every_frame(run_folder, tmp_path, capsys):
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        pytest.skip("ffmpeg and ffprobe are not on the search path")
    folder = tmp_path / "frames"
    words = ["render", str(run_folder), "--path", "spiral", "--frames", "7", "--fps", "10", "--out", str(folder)]
    assert main(words) == 0
    asked = "stream=codec_name,width,height,pix_fmt,r_frame_rate,nb_read_frames"
    probe = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", asked, "-of", "json"]
    out = subprocess.run([*probe, str(tmp_path / "frames.mp4")], check=True, capture_output=True, text=True).stdout
    (stream,) = json.loads(out)["streams"]
    assert (stream["width"], stream["height"], stream["pix_fmt"]) == (48, 36, "yuv420p")
    assert (stream["r_frame_rate"], stream["nb_read_frames"]) == ("10/1", "7")
    assert sorted(file.name for file in folder.iterdir()) == [f"spiral-{i:04d}.png" for i in range(7)]


@pytest.mark.parametrize(
    ("out", "video"), [(".", "work.mp4"), ("..", "up.mp4"), ("a.b", "work/a.b.mp4"), ("../-x", "-x.mp4")]
)
def test_the_video_lies_beside_its_folder(tmp_path, out, video, monkeypatch):
    folder = tmp_path / "up" / "work"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    expected = tmp_path / video if video == "up.mp4" else tmp_path / "up" / video
    assert views_module.video_path(Path(out)).resolve() == expected


def test_eval_and_render_keep_pytorchs_threads_away_from_the_renderer(run_folder, monkeypatch, capsys):
    if not native.available():
        pytest.skip("the native module is not installed")
    seen = []
    render = NativeRenderer.render

    def note(self, *arguments):
        seen.append(torch.get_num_threads())
        return render(self, *arguments)

    monkeypatch.setattr(NativeRenderer, "render", note)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for command in ("eval", "render", "report"):
            assert main([command, str(run_folder)]) == 0
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {1}
    assert len(seen) >= 6


def test_report_writes_the_page(run_folder, capsys):
    assert main(["report", str(run_folder)]) == 0
    assert f"written to {run_folder / 'report.html'}" in capsys.readouterr().out.replace("\n", "")
    page = (run_folder / "report.html").read_text()
    record = json.loads((run_folder / "eval.json").read_text())
    assert f"{record['before']['psnr']:.2f} → {record['psnr']:.2f}" in page
    for view in record["views"]:
        assert f"<h3>{view['name']}</h3>" in page
    assert page.count('<img src="data:image/png;base64,') == 4 * len(record["views"])
    assert "--adam.means-rate 0.0002" in page


def test_report_shows_as_many_views_as_asked_for(run_folder, tmp_path, capsys):
    assert main(["report", str(run_folder), "--views", "1"]) == 0
    assert (run_folder / "report.html").read_text().count("<img ") == 4
    moved = Path(shutil.copytree(run_folder, tmp_path / "moved"))
    settings = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(settings | {"capture": str(tmp_path / "gone")}))
    assert main(["report", str(moved)]) == 2
    assert "no capture at" in capsys.readouterr().err
    assert main(["report", str(moved), "--views", "0"]) == 0
    assert "<img " not in (moved / "report.html").read_text()
    assert main(["report", str(moved), "--views", "-1"]) == 2
    assert main(["report", str(tmp_path)]) == 2


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


def test_inspect_says_what_was_found(capture, capsys):
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
    assert f"once mended  {program()} train" in shown
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

    monkeypatch.setattr(loop_module, "open_renderer", lambda config: ToyRenderer(press))
    out = tmp_path / "run"
    assert main(["train", str(capture), "--steps", "9", "--out", str(out)]) == 130
    error = capsys.readouterr().err
    assert "splatopt: stopped at step 5 of 9, step-000005 is kept; go on with: " in error
    assert f"splatopt train {capture} --out {out} --resume" in error
    assert "Traceback" not in error
    monkeypatch.setattr(loop_module, "open_renderer", lambda config: ToyRenderer())
    assert main(["train", str(capture), "--out", str(out), "--resume"]) == 0
    assert latest_checkpoint(out / "checkpoints")[0].step == 9


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
    result = splatopt.fit(str(capture), steps=20, out="runs/first")
    line = f"{result.before.psnr:.2f} -> {result.after.psnr:.2f} dB in {result.seconds:.0f} s"
    splatopt.save_ply(result.cloud, "scene.ply")
    assert result.after.psnr > result.before.psnr
    assert "dB in" in line
    assert len(splatopt.load_ply("scene.ply")) == 200
    image = splatopt.render(result.cloud, result.capture.cameras[0]).image if native.available() else None
    assert image is None or image.shape == (36, 48, 3)


def test_python_refuses_an_unknown_setting(capture):
    with pytest.raises(splatopt.InputError, match=r"'stpes'; did you mean steps"):
        splatopt.fit(capture, stpes=3)


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


def test_a_run_from_a_gpu_is_scored_where_there_is_none(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    moved = tmp_path / "moved"
    shutil.copytree(run_folder, moved)
    config = json.loads((moved / "config.json").read_text())
    assert config["device"] == "cpu"
    (moved / "config.json").write_text(json.dumps(config | {"device": "cuda:1", "renderer": "triton"}))
    assert main(["eval", str(moved)]) == 0
    assert "warning: the run was on cuda:1, which is not here" in capsys.readouterr().err
    assert main(["eval", str(moved), "--device", "cuda"]) == 2
    assert main(["train", config["capture"], "--out", str(moved), "--resume", "--steps", str(config["steps"] + 1)]) == 0
    assert json.loads((moved / "config.json").read_text())["device"] == "cpu"
    capsys.readouterr()
