from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from splatopt.cli import main
from splatopt.data import load_capture
from splatopt.data.synthetic import SceneOptions, make_scene, scene_seed, scene_stream

pytest.importorskip("embreex", reason="the ray caster has no package for this machine")

OPTIONS = ["--side", "32", "--views", "4", "--points", "200", "--samples", "1"]
SMALL = SceneOptions(side=32, views=4, points=200, samples=1)


def make(out: Path, scenes: int, *more: str) -> int:
    return main(["data", "make", "--out", str(out), "--scenes", str(scenes), *OPTIONS, *more])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.*")) if file.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "scenes"
    assert make(out, 3) == 0
    return out


def test_loading_gives_what_the_stream_gives(made):
    for index, capture in zip(range(3), scene_stream(0, SMALL), strict=False):
        loaded = load_capture(made / f"scene-{index:04d}")
        assert (loaded.kind, loaded.name, loaded.split) == (capture.kind, capture.name, capture.split)
        assert (loaded.background, loaded.camera_models) == (capture.background, capture.camera_models)
        assert loaded.warnings == ()
        for view in range(4):
            assert torch.equal(loaded.images[view], capture.images[view])
            one, two = loaded.cameras[view], capture.cameras[view]
            assert (one.fx, one.fy, one.cx, one.cy, one.name) == (two.fx, two.fy, two.cx, two.cy, two.name)
            np.testing.assert_allclose(one.world_to_camera, two.world_to_camera, atol=1e-12)
        assert loaded.points is not None
        assert capture.points is not None
        assert torch.equal(loaded.points.positions, capture.points.positions)
        assert torch.equal(loaded.points.colors, capture.points.colors)


def test_a_scene_does_not_depend_on_how_many_are_made(made, tmp_path):
    assert make(tmp_path / "one", 1) == 0
    assert make(tmp_path / "other", 1, "--seed", "1") == 0
    mine = contents(made / "scene-0000")
    assert mine == contents(tmp_path / "one" / "scene-0000")
    assert mine["images/view_000.png"] != contents(tmp_path / "other" / "scene-0000")["images/view_000.png"]


def test_finished_scenes_are_kept(made, tmp_path, capsys):
    out = tmp_path / "scenes"
    assert make(out, 1) == 0
    times = {file: file.stat().st_mtime_ns for file in (out / "scene-0000").rglob("*")}
    (out / "notes.txt").write_text("mine")
    (out / ".scene-0001-half").mkdir()
    capsys.readouterr()
    assert make(out, 2) == 0
    assert "1 scenes made and 1 kept" in capsys.readouterr().out
    assert times == {file: file.stat().st_mtime_ns for file in (out / "scene-0000").rglob("*")}
    assert contents(out / "scene-0001") == contents(made / "scene-0001")
    assert (out / "notes.txt").read_text() == "mine"


def test_a_failure_leaves_no_half_scene(tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("splatopt.data.synthetic.folder.write_points", fail)
    assert make(tmp_path / "out", 1) == 2
    assert capsys.readouterr().err == "splatopt: disk full\n"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["make", "--scenes", "0"], "scenes must be at least 1, got 0"),
        (["make", "--views", "1"], "views must lie between 2 and 1000, got 1"),
        (["make", "--seed", "-1"], "must be at least 0, got -1"),
        (["make", "--kinds", "castle"], "there is no kind of scene 'castle'"),
        (["mak"], "after data comes one of its forms, got 'mak'"),
        ([], "after data comes one of its forms"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("splatopt: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_touched(made, tmp_path, capsys):
    before = contents(made)
    assert make(made, 4, "--seed", "1") == 2
    assert "scene-0000 holds something else or was made with other settings" in capsys.readouterr().err
    assert contents(made) == before
    (tmp_path / "file").write_text("mine")
    assert make(tmp_path / "file", 1) == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_a_short_training_raises_psnr(tmp_path):
    from splatopt.train.verb import train

    assert main(["data", "make", "--out", str(tmp_path), "--scenes", "1", "--side", "64", "--views", "9"]) == 0
    result = train(tmp_path / "scene-0000", optimizer="adam-tuned", steps=60, out=tmp_path / "run")
    assert result.after.psnr > result.before.psnr + 2


def test_a_seed_of_its_own():
    capture = make_scene(scene_seed(0, 0), SMALL)
    assert capture.name.startswith("scene-of-seed-")
    assert len(capture.images) == 4
