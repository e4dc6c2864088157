"""Scene files without a run: rendered and scored beside a capture; paths that suit the capture; frames of an export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pycolmap
import pytest
import torch

import splatopt
from splatopt.cli import main
from splatopt.scene.ply import load_ply, save_ply
from train.moved_captures import UTM, move_files


def mean_line(text: str) -> list[str]:
    """The numbers of the line of means."""
    (line,) = [line for line in text.splitlines() if " mean " in line]
    return [word for word in line.replace("│", " ").split() if word != "mean"]


def test_a_scene_scores_as_its_run(run_folder, capture, capsys):
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    assert main(["eval", str(run_folder / "scene.ply"), str(capture)]) == 0
    shown = capsys.readouterr().out
    record = json.loads((run_folder / "eval.json").read_text())
    assert mean_line(shown) == [f"{record['psnr']:.2f}", f"{record['ssim']:.4f}"]
    assert "200 Gaussians of degree 3" in " ".join(shown.split())
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before


def test_options_of_the_capture_reach_a_scene(run_folder, capture, tmp_path, capsys):
    scene = str(run_folder / "scene.ply")
    scores = []
    for options in ([], ["--downscale", "2"], ["--background", "1", "0", "0"], ["--test-every", "3"]):
        assert main(["eval", scene, str(capture), *options]) == 0
        scores.append(mean_line(capsys.readouterr().out))
    assert len(set(map(tuple, scores))) == 4


def test_a_scene_is_rendered_by_a_captures_cameras(run_folder, capture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    copy = Path(shutil.copytree(run_folder, tmp_path / "run"))
    assert main(["render", str(copy), "--path", "test"]) == 0
    scene = Path(shutil.copy(copy / "scene.ply", tmp_path / "mine.ply"))
    words = ["render", str(scene), "--cameras", str(capture), "--path", "test"]
    assert main(words) == 0
    pictures = sorted((tmp_path / "renders" / "mine" / "test").iterdir())
    assert [path.name for path in pictures] == sorted(path.name for path in (copy / "renders" / "test").iterdir())
    capsys.readouterr()
    assert main(words) == 2
    assert "exists already; give another folder with --out" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "other")]) == 0


@pytest.mark.parametrize(("views", "path"), [(24, "orbit"), (5, "tour")])
def test_the_path_suits_the_capture(run_folder, capture, tmp_path, capsys, views, path):
    """All around, and the first five of its cameras alone."""
    some = Path(shutil.copytree(capture, tmp_path / "some"))
    model = pycolmap.Reconstruction(str(some / "sparse" / "0"))
    for image in sorted(model.images.values(), key=lambda image: image.name)[views:]:
        model.deregister_frame(image.frame_id)
    model.write_text(str(some / "sparse" / "0"))
    words = ["render", str(run_folder / "scene.ply"), "--cameras", str(some), "--frames", "2"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert f"path: {'an orbit' if path == 'orbit' else 'a tour'}" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [f"{path}-000{frame}.png" for frame in (0, 1)]


def test_what_does_not_fit_is_one_sentence(run_folder, capture, tmp_path, capsys):
    scene, far = run_folder / "scene.ply", tmp_path / "far.ply"
    cloud = load_ply(scene)
    cloud.means += 1e6
    save_ply(cloud, far)
    (tmp_path / "notes.txt").write_text("notes")
    for words, said in (
        (["eval", str(scene)], "is a scene without photographs; give the folder of its capture"),
        (["render", str(scene)], "is a scene without cameras; give the folder of its capture with --cameras"),
        (["eval", str(run_folder), str(capture)], "a run is looked at on the capture that it was trained on"),
        (["eval", str(run_folder), "--downscale", "2"], "a run is looked at on the capture that it was trained on"),
        (["render", str(run_folder), "--cameras", str(capture)], "--cameras and the options of a scene file go with"),
        (["eval", str(far), str(capture)], "see none of the 200 Gaussians of"),
        (["eval", str(tmp_path / "absent.ply"), str(capture)], "there is no scene at"),
        (["eval", str(tmp_path / "notes.txt"), str(capture)], "is no scene of a kind that is read"),
        (["eval", str(scene), str(tmp_path / "absent")], "absent"),
        (["eval", str(tmp_path / "absent")], "is not a run"),
    ):
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert said in error


def test_an_export_in_the_training_frame_says_where_that_lies(capture, tmp_path, capsys):
    moved, run = move_files(capture, tmp_path / "utm", 1.0, UTM), tmp_path / "run"
    assert main(["train", str(moved), "--steps", "3", "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["export", str(run), str(tmp_path / "world.ply")]) == 0
    assert "in the capture's own frame, where float32 holds positions to 0.55; --frame" in capsys.readouterr().out
    assert main(["export", str(run), str(tmp_path / "local.ply"), "--frame", "local"]) == 0
    assert "in the training frame: x = origin + unit * x_local, with both in" in capsys.readouterr().out
    frame = json.loads((tmp_path / "local.frame.json").read_text())
    opened = splatopt.open_run(run)
    assert (tuple(frame["origin"]), frame["unit"]) == (opened.frame.origin, opened.frame.unit)
    local = load_ply(tmp_path / "local.ply")
    assert torch.equal(local.means, opened.trained.means)
    back = local.means.double() * frame["unit"] + torch.tensor(frame["origin"], dtype=torch.float64)
    assert (back - load_ply(tmp_path / "world.ply").means).abs().max() < 0.5, "what float32 leaves there"
    assert main(["export", str(run), str(tmp_path / "local.ply"), "--frame", "local"]) == 2
    (tmp_path / "local.ply").unlink()
    assert main(["export", str(run), str(tmp_path / "local.ply"), "--frame", "local"]) == 2
    assert "local.frame.json exists already" in capsys.readouterr().err
