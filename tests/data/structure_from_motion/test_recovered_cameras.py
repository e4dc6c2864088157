"""COLMAP itself: cameras come back, and what is ended in the middle goes on to the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pycolmap
import pytest
from benchmarks.structure_from_motion import pose_errors, poses_by_name, similarity
from PIL import Image
from textured_corner import FOCAL_FACTOR, camera_poses, write_photographs

import splatopt
from splatopt.data import load_capture
from splatopt.data.structure_from_motion.capture import PoseOptions, pose_images, work_folder
from splatopt.data.structure_from_motion.stages import Job, _threads_in_memory, register_cameras

VIEWS, WIDTH, HEIGHT = 12, 288, 216
PARTS = ("cameras.bin", "images.bin", "points3D.bin")


def test_a_similarity_is_recovered():
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    points, shift = rng.standard_normal((9, 3)), rng.standard_normal(3)
    scale, found, moved = similarity(points, 2.5 * points @ rotation.T + shift)
    assert scale == pytest.approx(2.5)
    np.testing.assert_allclose(found, rotation, atol=1e-12)
    np.testing.assert_allclose(moved, shift, atol=1e-12)


def test_errors_are_those_that_were_put_in():
    true = np.stack(camera_poses(8))
    turned = true.copy()
    angle = np.radians(0.5)
    turned[3, :3] = (
        np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]) @ true[3, :3]
    )
    errors = pose_errors(turned, true)
    np.testing.assert_allclose(errors.rotations, [0, 0, 0, 0.5, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(errors.centers, 0, atol=1e-9)


def test_photographs_that_share_a_lens_share_a_camera(tmp_path):
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, which neither COLMAP nor our reader does
    exif.get_ifd(0x8769)[0xA405] = 36
    files = [f"{place:06d}.jpg" for place in range(14)]
    for file in files:
        Image.new("RGB", (60, 40)).save(tmp_path / "images" / file, **({"exif": exif} if file == files[-1] else {}))
    job = Job(
        {file: file for file in files}, (tuple(files[:10]), tuple(files[10:13]), tuple(files[13:])), (), 100, 0, 1
    )
    register_cameras(job, tmp_path)
    register_cameras(job, tmp_path)
    with pycolmap.Database.open(tmp_path / "database.db") as database:
        cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
        used = [database.read_image_with_name(file).camera_id for file in files]
    assert [used.count(number) for number in sorted(cameras)] == [10, 3, 1]
    found = [cameras[number] for number in sorted(cameras)]
    assert [camera.model.name for camera in found] == ["OPENCV", "SIMPLE_RADIAL", "SIMPLE_RADIAL"]
    assert {(camera.width, camera.height) for camera in found} == {(60, 40)}
    # A focal length in 35 mm film is one of the photograph's diagonal, or side; without any it is guessed.
    assert found[0].params[0] == pytest.approx(1.2 * 60)
    assert 50 < found[2].params[0] < 65


def test_fewer_threads_look_for_features_where_memory_is_short(monkeypatch):
    large, small = (
        pycolmap.Camera(model="SIMPLE_RADIAL", width=4 * side, height=3 * side, params=[1, 1, 1, 0])
        for side in (800, 200)
    )
    job = Job({}, (), (), 1600, 0, 8)
    # 1600 × 1200 pixels of 300 bytes, of half of what is free.
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * 3.5 * 1600 * 1200 * 300))
    assert _threads_in_memory([small, large], job) == 3
    assert _threads_in_memory([small], job) == 8
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1e6))
    assert _threads_in_memory([large], job) == 1


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corner") / "photographs"
    write_photographs(folder, VIEWS, WIDTH, HEIGHT)
    return folder


@pytest.fixture(scope="module")
def posed(photographs):
    return pose_images(photographs, photographs.with_name("posed"), PoseOptions(threads=1))


@pytest.mark.slow
def test_cameras_come_back(posed):
    assert (len(posed.model.names), posed.without_pose, posed.model.cameras) == (VIEWS, (), 1)
    assert posed.model.reprojection_error < 0.5
    assert posed.model.points > 500
    found = poses_by_name(posed.folder)
    errors = pose_errors(np.stack([found[name] for name in sorted(found)]), np.stack(camera_poses(VIEWS)))
    assert errors.centers.max() < 0.01
    assert errors.rotations.max() < 0.3
    capture = load_capture(posed.folder)
    assert capture.warnings == ()
    for camera in capture.cameras:
        assert camera.fx == pytest.approx(FOCAL_FACTOR * WIDTH, rel=0.02)
    assert capture.points is not None


@pytest.mark.slow
def test_names_like_those_of_frames_stay_apart(photographs, tmp_path):
    """ffmpeg numbers frames as the search numbers what it is given, from another number on."""
    for place, path in enumerate(sorted(photographs.iterdir()), 1):
        shutil.copy(path, tmp_path / f"{place:06d}{path.suffix}")
    found = pose_images(tmp_path, tmp_path.with_name("numbered"), PoseOptions(threads=1))
    assert found.model.names == tuple(sorted(path.name for path in tmp_path.iterdir()))
    assert found.without_pose == ()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_is_ended_goes_on_to_the_same_model(posed, photographs, tmp_path, number):
    out = tmp_path / "out"
    words = [sys.executable, "-m", "splatopt", "poses", str(photographs), "--out", str(out), "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(Path(splatopt.__file__).resolve().parents[1])}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    children = []
    for line in process.stderr:
        if line.startswith("features") and not line.startswith("features 0/"):
            children = psutil.Process(process.pid).children()
            process.send_signal(number)
            break
    said = process.stderr.read()
    assert process.wait() == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    if number == signal.SIGTERM:
        assert f"what was done is kept in {work_folder(out)}; go on with: " in said
    assert len(children) == 1
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert not out.exists()
    seen = []
    pose_images(photographs, out, PoseOptions(threads=1), lambda *count: seen.append(count))
    assert next(count for stage, count, _ in seen if stage == "features") > 0
    for part in PARTS:
        assert (out / "sparse" / "0" / part).read_bytes() == (posed.folder / "sparse" / "0" / part).read_bytes()


@pytest.mark.slow
def test_photographs_without_detail_are_refused(tmp_path):
    folder = tmp_path / "wall"
    folder.mkdir()
    for place in range(4):
        Image.new("RGB", (96, 72), (100 + place, 100, 100)).save(folder / f"{place}.jpg")
    with pytest.raises(splatopt.InputError, match="no 3 of the 4 photographs of .* could be joined"):
        pose_images(folder, tmp_path / "out", PoseOptions(threads=1))
