"""``export`` and ``convert`` as they are typed: formats by their endings, scenes upright and trimmed, files checked."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import splatopt
from splatopt.cli import main
from splatopt.core.schema import rotation_matrices
from splatopt.scene.scene_files import load_scene, save_scene
from splatopt.scene.similarity import Similarity, robust_up


def test_packed_exports_are_read_back_and_checked(run_folder, tmp_path, capsys):
    for name, least in (("scene.spz", 35), ("scene.compressed.ply", 35), ("scene.splat", 30)):
        assert main(["export", str(run_folder), str(tmp_path / name), "--check"]) == 0
        out = capsys.readouterr().out
        assert "200 Gaussians of step 30 written to" in out
        found = float(out.split("held-out views: ")[1].split(" dB against the run's own renders")[0])
        assert least < found < 100, name
    assert main(["export", str(run_folder), str(tmp_path / "same.ply"), "--frame", "local", "--check"]) == 0
    assert "views: the run's own renders\n" in capsys.readouterr().out
    # A scene that is not the run's is told.
    half = ["--crop=-0.3,-9,-9,0.3,9,9", "--max-size", "1e3"]
    assert main(["export", str(run_folder), str(tmp_path / "half.ply"), "--check", *half]) == 0
    out = capsys.readouterr().out
    assert float(out.split("held-out views: ")[1].split(" dB")[0]) < 35
    assert "of 200 Gaussians lie outside the box of --crop" in out
    assert "0 are larger than --max-size 1000" in out


def test_a_run_is_written_upright_with_its_cameras(run_folder, tmp_path, capsys):
    run = splatopt.open_run(run_folder)
    capture = run.open_capture()
    for words, axis, up in (
        (["--up", "auto"], "-y", [0, -1, 0]),
        (["--up", "+y"], "+y", [0, 1, 0]),
        (["--up", "-x", "--center"], "-x", [-1, 0, 0]),
    ):
        folder = tmp_path / axis
        assert main(["export", str(run_folder), str(folder / "scene.ply"), "--cameras", *words]) == 0
        assert f"with up along {axis}: in the capture's own frame" in capsys.readouterr().out
        cameras = json.loads((folder / "cameras.json").read_text())
        assert [camera["img_name"] for camera in cameras][:2] == ["view_001", "view_002"], "trained views first"
        # 3DGS keeps the way from camera to world: its second column is what is down in the image.
        downs = np.array([camera["rotation"] for camera in cameras])[:, :, 1]
        sight = [Similarity.to_world(run.frame).camera(camera) for camera in capture.cameras]
        assert robust_up(sight) @ torch.tensor(up, dtype=torch.float64) < 0.99, "the capture is not so itself"
        assert -np.median(downs, axis=0) @ np.array(up) > 0.5
        placed = json.loads((folder / "scene.frame.json").read_text())
        rotation = torch.tensor(placed["rotation"])
        read, trained = load_scene(folder / "scene.ply"), run.cloud
        back = placed["unit"] * read.means @ rotation.T + torch.tensor(placed["origin"])
        torch.testing.assert_close(back, trained.means, atol=1e-5, rtol=1e-5)
        turned = rotation @ rotation_matrices(read.quats)
        torch.testing.assert_close(turned, rotation_matrices(trained.quats), atol=1e-5, rtol=1e-5)
        first = {camera["img_name"]: camera for camera in cameras}["view_001"]
        place = placed["unit"] * rotation.double() @ torch.tensor(first["position"], dtype=torch.float64)
        place += torch.tensor(placed["origin"], dtype=torch.float64)
        world = {camera.name.split(".")[0]: camera for camera in sight}["view_001"]
        torch.testing.assert_close(place, world.center, atol=1e-5, rtol=1e-5)
        if "--center" in words:
            assert read.means.median(dim=0).values.abs().max() < 1e-5


def test_nothing_that_is_there_is_written_over(run_folder, tmp_path, capsys):
    for name in ("scene.frame.json", "cameras.json"):
        (tmp_path / name).write_text("mine")
    for words, name in ((["--center"], "scene.frame.json"), (["--cameras"], "cameras.json")):
        assert main(["export", str(run_folder), str(tmp_path / "scene.ply"), *words]) == 2
        assert f"{name} exists already; give another path" in capsys.readouterr().err
    assert not (tmp_path / "scene.ply").exists()
    (tmp_path / "scene.html").write_text("mine")
    assert main(["export", str(run_folder), str(tmp_path / "scene.html")]) == 2
    assert (tmp_path / "scene.html").read_text() == "mine"
    # Several formats of one scene lie side by side.
    for name in ("a.ply", "a.spz", "a.compressed.ply"):
        assert main(["export", str(run_folder), str(tmp_path / name), "--center"]) == 0
    assert {"a.frame.json", "a.spz.frame.json", "a.compressed.frame.json"} <= {one.name for one in tmp_path.iterdir()}


def test_a_page_of_a_run(run_folder, tmp_path, capsys):
    assert main(["export", str(run_folder), str(tmp_path / "scene.html")]) == 0
    assert "a page that opens in a browser without a network" in capsys.readouterr().out
    page = (tmp_path / "scene.html").read_text()
    about = json.loads(page.split('id="about">')[1].split("<")[0])
    run = splatopt.open_run(run_folder)
    camera = run.open_capture().cameras[run.open_capture().split.train[0]]
    assert about["count"] == 200
    assert about["camera"]["eye"] == camera.center.tolist()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["scene.html"]


def test_convert_both_ways(run_folder, tmp_path, capsys):
    scene = tmp_path / "scene.ply"
    assert main(["export", str(run_folder), str(scene)]) == 0
    capsys.readouterr()
    plain = load_scene(scene)
    for ending in (".spz", ".compressed.ply", ".splat"):
        packed, back = tmp_path / f"packed{ending}", tmp_path / f"back{ending}.ply"
        assert main(["convert", str(scene), str(packed)]) == 0
        assert f"{packed.stat().st_size:,} bytes where {scene} has {scene.stat().st_size:,}" in capsys.readouterr().out
        assert main(["convert", str(packed), str(back), "--sh-degree", "0"]) == 0
        read = load_scene(back)
        assert (len(read), read.sh_degree) == (200, 0)
        torch.testing.assert_close(read.means.sort(dim=0).values, plain.means.sort(dim=0).values, atol=0.02, rtol=0.01)
    assert main(["convert", str(scene), str(tmp_path / "scene.html"), "--center"]) == 0
    assert main(["convert", str(scene), str(tmp_path / "small.ply"), "--max-size", "0.2", "--center"]) == 0
    small = load_scene(tmp_path / "small.ply")
    assert 0 < len(small) == int((plain.log_scales.amax(dim=1) <= math.log(0.2)).sum()) < 200
    assert small.means.median(dim=0).values.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scene.obj"], "scenes are written as .compressed.ply, .ply, .spz, .splat, .sog, .html, got 'scene.obj'"),
        (["scene.ply"], "scene.ply exists already; give another path"),
        (["b.ply", "--crop", "1,2,3"], "--crop takes six numbers as X0,Y0,Z0,X1,Y1,Z1, got '1,2,3'"),
        (["b.ply", "--crop", "1,1,1,0,2,2"], "--crop takes the lower corner of a box and then the upper one"),
        (["b.ply", "--crop", "90,90,90,91,91,91"], "no Gaussian is left: 200 of 200 Gaussians lie outside the box"),
        (["b.ply", "--max-size", "-1"], "--max-size must be a positive number, got -1.0"),
        (["b.ply", "--sh-degree", "4"], "--sh-degree must be 0, 1, 2 or 3, got 4"),
    ],
)
def test_what_cannot_be_is_a_sentence(words, said, run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_scene(splatopt.open_run(run_folder).cloud, tmp_path / "scene.ply")
    for command in (["convert", "scene.ply"], ["export", str(run_folder)]):
        assert main([*command, *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert said in error
    assert [one.name for one in tmp_path.iterdir()] == ["scene.ply"]


def test_a_page_is_not_checked_and_an_axis_is_one(run_folder, tmp_path, capsys):
    assert main(["export", str(run_folder), str(tmp_path / "a.html"), "--check"]) == 2
    assert "--check reads a file back, and pages are not read" in capsys.readouterr().err
    assert main(["export", str(run_folder), str(tmp_path / "a.html"), "--up", "auto", "--frame", "local"]) == 2
    assert "leave out --up and --frame local, or write a .ply" in capsys.readouterr().err
    assert main(["export", str(run_folder), str(tmp_path / "a.ply"), "--up", "y"]) == 2
    assert "--up cannot be 'y'" in capsys.readouterr().err
