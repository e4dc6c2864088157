"""A run and what it was trained on: nothing goes on with, or is scored on, something else unsaid."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from splatopt.cli import main
from splatopt.core.frame import WORLD
from splatopt.data.mesh import write_mesh
from train.toys import make_toy_capture


@pytest.fixture
def own(capture: Path, run_folder: Path, tmp_path: Path):
    """A copy of the capture and of the finished run on it, whose config.json names the copy."""
    scenes = Path(shutil.copytree(capture, tmp_path / "scenes" / "toy"))
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    change_config(run, capture=str(scenes))
    return scenes, run


def change_config(run: Path, **changes) -> None:
    config = json.loads((run / "config.json").read_text()) | changes
    (run / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def other_capture(folder: Path, **changes) -> Path:
    settings = {"width": 48, "height": 36, "points": 200} | changes
    shutil.rmtree(folder, ignore_errors=True)
    return make_toy_capture(folder, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"views": 9}, "the capture has 9 views of 48x36, the run was trained on 10 views of 48x36"),
        ({"width": 40}, "the capture has 10 views of 40x36, the run was trained on 10 views of 48x36"),
        ({"points": 150}, "the capture has 150 points, the run began with 200"),
    ],
)
def test_another_capture_is_refused_on_resuming_and_nothing_is_touched(own, tmp_path, changes, said, capsys):
    _, run = own
    before = contents(run)
    another = other_capture(tmp_path / "other" / "toy", **changes)
    assert main(["train", str(another), "--out", str(run), "--resume", "--steps", "40"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{another} is not what the run in {run} was trained on: {said}; give that, or start a new run" in error
    assert contents(run) == before


def change_number(path: Path, marker: str, column: int, by: float) -> None:
    """Add to one number of the line of a COLMAP text model that holds ``marker``."""
    rows = path.read_text().splitlines()
    at = next(index for index, row in enumerate(rows) if marker in row and not row.startswith("#"))
    words = rows[at].split()
    words[column] = repr(float(words[column]) + by)
    rows[at] = " ".join(words)
    path.write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize(
    ("file", "marker", "column", "said"),
    [
        ("images.txt", "view_003.png", 5, "its cameras have other poses than those that the run was trained on"),
        ("cameras.txt", "PINHOLE", 4, "its cameras have other sizes, focal lengths or centres than those that the run"),
    ],
)
def test_changed_cameras_are_refused_and_a_moved_capture_is_not(own, tmp_path, file, marker, column, said, capsys):
    scenes, run = own
    moved = scenes.rename(tmp_path / "moved")
    words = ["train", str(moved), "--out", str(run), "--resume"]
    assert main([*words, "--steps", "31"]) == 0
    assert json.loads((run / "config.json").read_text())["capture"] == str(moved)
    change_number(moved / "sparse" / "0" / file, marker, column, 1e-3)
    capsys.readouterr()
    assert main([*words, "--steps", "32"]) == 2
    assert said in capsys.readouterr().err


def test_a_run_without_a_fingerprint_goes_on_with_a_warning_and_has_one_then(own, tmp_path, capsys):
    scenes, run = own
    kept = json.loads((run / "config.json").read_text())["trained_on"]
    change_config(run, trained_on=None)
    words = ["train", str(scenes), "--out", str(run), "--resume"]
    assert main([*words, "--steps", "31"]) == 0
    error = " ".join(capsys.readouterr().err.split())
    assert f"the run in {run} is of an older version, which kept no fingerprint" in error
    found = json.loads((run / "config.json").read_text())["trained_on"]
    assert found | {"frame": ""} == kept | {"frame": ""}
    assert found["frame"] == WORLD.text  # what kept no fingerprint was trained in the capture's own frame
    assert main([*words, "--steps", "32"]) == 0
    assert "fingerprint" not in capsys.readouterr().err


@pytest.mark.parametrize("broken", [7, [], {"views": 3}, "text"])
def test_a_fingerprint_that_is_none_is_one_sentence(own, broken, capsys):
    scenes, run = own
    change_config(run, trained_on=broken)
    for words in (["train", str(scenes), "--out", str(run), "--resume"], ["eval", str(run)]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "'trained_on' is not the fingerprint of what the run was trained on" in error


def test_a_run_is_not_scored_on_a_capture_that_changed(own, capsys):
    scenes, run = own
    before = (run / "eval.json").read_bytes()
    other_capture(scenes, views=9)
    assert main(["eval", str(run)]) == 2
    error = capsys.readouterr().err
    assert f"{scenes} is no longer what the run in {run} was trained on, and its scores would be of something" in error
    assert "the capture has 9 views of 48x36, the run was trained on 10 views of 48x36" in error
    assert (run / "eval.json").read_bytes() == before
    assert main(["report", str(run)]) == 2
    assert "the pictures (which --views 0 leaves out) would be of something else" in capsys.readouterr().err
    assert main(["report", str(run), "--views", "0"]) == 0
    assert "trained_on" not in (run / "report.html").read_text()
    assert main(["render", str(run), "--path", "orbit", "--frames", "1"]) == 0
    assert f"warning: {scenes} is no longer what the run was trained on: the capture has 9" in capsys.readouterr().err


def test_scoring_does_not_ask_for_the_points(own, capsys):
    scenes, run = own
    other_capture(scenes, points=150)
    assert main(["eval", str(run)]) == 0


# ---------------------------------------------------------------------- fits

SMALL = ["--width", "8", "--depth", "1", "--batch", "64", "--threads", "1"]


def fitted(target: Path, out: Path, *words: str) -> list[str]:
    """Fit two steps, and return how to go on."""
    assert main(["fit", str(target), *SMALL, *words, "--steps", "2", "--out", str(out)]) == 0
    return ["fit", str(target), "--out", str(out), "--resume", "--steps", "3"]


def picture(path: Path, side: int = 12, level: int = 80) -> Path:
    pixels = np.full((side, side, 3), 80, np.uint8)
    pixels[3, 4] = level
    Image.fromarray(pixels).save(path)
    return path


def test_a_fit_goes_on_with_its_own_image_alone(tmp_path, capsys):
    photo, out = picture(tmp_path / "photo.png"), tmp_path / "run"
    on = fitted(photo, out)
    picture(photo, level=81)
    for words in (on, ["report", str(out)]):
        capsys.readouterr()
        assert main(words) == 2
        assert "the image has other pixels than the one that the run was fitted to" in capsys.readouterr().err
    picture(photo, side=13)
    assert main(on) == 2
    assert "the image is 13x13 pixels, the run was fitted to 12x12" in capsys.readouterr().err
    picture(photo)
    moved = photo.rename(tmp_path / "moved.png")
    assert main([on[0], str(moved), *on[2:]]) == 0
    assert main(["report", str(out)]) == 0


def test_a_fit_goes_on_with_its_own_mesh_alone(tmp_path, capsys):
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    mesh, out = tmp_path / "mesh.ply", tmp_path / "run"
    write_mesh(mesh, vertices, faces)
    on = fitted(mesh, out, "--points", "60", "--resolution", "8")
    assert main(on) == 0
    vertices[0, 2] = -0.25
    write_mesh(mesh, vertices, faces)
    capsys.readouterr()
    assert main([*on[:-1], "4"]) == 2
    assert "the mesh has other vertices or faces than the one that the run was fitted to" in capsys.readouterr().err


def test_a_fit_goes_on_with_its_own_capture_alone(tmp_path, capsys):
    scenes, out = make_toy_capture(tmp_path / "toy"), tmp_path / "run"
    on = fitted(scenes, out, "--samples", "4", "--score-views", "1")
    assert main(on) == 0
    shutil.rmtree(scenes)
    make_toy_capture(scenes, views=9)
    capsys.readouterr()
    assert main([*on[:-1], "4"]) == 2
    assert "the capture has 9 views of 24x16, the run was trained on 10 views of 24x16" in capsys.readouterr().err
