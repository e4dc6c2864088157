"""What one does with a finished run: ``eval``, ``export``, ``render`` and ``report``, as they are typed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import splatopt
from splatopt.cli import main
from splatopt.core import native
from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.frame import Frame
from splatopt.raster.cpu import NativeRenderer
from splatopt.report import views as views_module
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.ply import load_ply


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
    local = GaussianCloud(**{name.removeprefix("cloud."): value for name, value in trained.items() if "cloud." in name})
    frame = Frame.parse(json.loads((run_folder / "config.json").read_text())["trained_on"]["frame"])
    assert torch.equal(exported.means, local.in_world(frame).means)
    assert torch.equal(exported.sh_dc, trained["cloud.sh_dc"])
    shown = capsys.readouterr().out
    assert "200 Gaussians of step 30" in shown
    assert "in the capture's own frame\n" in shown
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
    assert main(["render", str(run_folder), "--path", "test"]) == 0
    record = json.loads((run_folder / "eval.json").read_text())
    pictures = sorted((run_folder / "renders" / "test").iterdir())
    assert [path.stem for path in pictures] == [Path(view["name"]).stem for view in record["views"]]
    run = splatopt.open_run(run_folder)
    capture = run.open_capture()
    for path, view, index in zip(pictures, record["views"], capture.split.test, strict=True):
        picture = np.asarray(Image.open(path)) / 255.0
        error = np.mean((picture - capture.images[index].numpy() / 255.0) ** 2)
        assert -10 * np.log10(error) == pytest.approx(view["psnr"], abs=0.05)


@pytest.mark.parametrize("path", ["orbit", "spiral", "tour"])
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
