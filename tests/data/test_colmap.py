from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from capture_cases import (
    HEIGHT,
    WIDTH,
    blob,
    centroid,
    known_lenses,
    lens,
    pose,
    reconstruction,
    write_colmap,
    write_images,
    write_model,
)
from PIL import Image

from splatopt.core.checks import InputError
from splatopt.data import CaptureOptions, load_capture


@pytest.mark.parametrize("binary", [True, False])
def test_reader_agrees_with_pycolmap(tmp_path: Path, binary: bool) -> None:
    model = write_colmap(tmp_path, binary=binary, points=7)
    capture = load_capture(tmp_path)
    assert capture.kind == "colmap"
    assert capture.name == tmp_path.name
    assert capture.camera_models == ("PINHOLE",)
    assert [camera.name for camera in capture.cameras] == [f"image_{index:03d}.png" for index in range(9)]
    again = pycolmap.Reconstruction(str(tmp_path / "sparse" / "0"))
    for camera in capture.cameras:
        expected = again.find_image_with_name(camera.name).cam_from_world().matrix()
        np.testing.assert_allclose(camera.world_to_camera.numpy()[:3], expected, atol=1e-12)
        assert camera.world_to_camera.dtype == torch.float64
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == (60, 62, 41, 29)
        assert (camera.width, camera.height) == (WIDTH, HEIGHT)
    assert capture.points is not None
    expected_positions = np.stack([point.xyz for point in model.points3D.values()])
    np.testing.assert_allclose(np.sort(capture.points.positions, 0), np.sort(expected_positions, 0), rtol=1e-6)
    expected_colors = {tuple(point.color) for point in model.points3D.values()}
    assert {tuple(color) for color in capture.points.colors.tolist()} == expected_colors
    assert capture.warnings == ()
    assert capture.background == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("model", known_lenses())
def test_every_camera_model_is_undistorted(tmp_path: Path, model: str, binary: bool) -> None:
    """A spot painted where the lens puts a 3D point is found where the pinhole puts it."""
    write_colmap(tmp_path, views=2, cameras=[lens(model)], binary=binary)
    point = torch.tensor([-0.5, 0.4, 0.3, 1.0], dtype=torch.float64)
    for index in range(2):
        seen = (pose(index) @ point.numpy())[:3]
        distorted = np.asarray(lens(model).img_from_cam(seen))
        Image.fromarray(blob(distorted)).save(tmp_path / "images" / f"image_{index:03d}.png")
    capture = load_capture(tmp_path)
    assert capture.camera_models == (model,)
    for index, camera in enumerate(capture.cameras):
        x, y, z, _ = camera.world_to_camera @ point
        expected = [camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy]
        image = capture.images[index]
        assert tuple(image.shape) == (camera.height, camera.width, 3)
        np.testing.assert_allclose(centroid(image.numpy()), expected, atol=0.12)


@pytest.mark.parametrize("model", ["SIMPLE_PINHOLE", "PINHOLE"])
def test_pinholes_are_not_resampled(tmp_path: Path, model: str) -> None:
    write_colmap(tmp_path, views=2, cameras=[lens(model)])
    capture = load_capture(tmp_path)
    expected = np.asarray(Image.open(tmp_path / "images" / "image_001.png"))
    np.testing.assert_array_equal(capture.images[1].numpy(), expected)


@pytest.mark.parametrize("place", ["sparse/0", "sparse", "colmap/sparse/0", "sparse/7"])
def test_places_of_the_model(tmp_path: Path, place: str) -> None:
    model = reconstruction([lens()], 3)
    write_model(tmp_path / place, model)
    write_images(tmp_path / "images", model)
    assert len(load_capture(tmp_path).cameras) == 3


@pytest.mark.parametrize("binary", [True, False])
def test_the_largest_of_several_models_is_taken(tmp_path: Path, binary: bool) -> None:
    write_colmap(tmp_path, views=3)
    larger = reconstruction([lens()], 6)
    write_model(tmp_path / "sparse" / "1", larger, binary=binary)
    write_images(tmp_path / "images", larger)
    capture = load_capture(tmp_path)
    assert len(capture.cameras) == 6
    (warning,) = capture.warnings
    assert "used sparse/1 with 6 images and not sparse/0 (3)" in warning


def test_several_cameras_and_sizes_in_one_capture(tmp_path: Path) -> None:
    write_colmap(tmp_path, cameras=[lens("OPENCV"), lens("PINHOLE", 40, 50)], views=4)
    capture = load_capture(tmp_path)
    assert capture.camera_models == ("OPENCV", "PINHOLE")
    assert (capture.cameras[1].width, capture.cameras[1].height) == (40, 50)
    assert capture.cameras[0].width > 40
    for camera, index in zip(capture.cameras, range(4), strict=True):
        assert tuple(capture.images[index].shape) == (camera.height, camera.width, 3)


def test_smaller_copies_are_used_where_there_is_no_images_folder(tmp_path: Path) -> None:
    write_colmap(tmp_path, views=3)
    for factor in (4, 2):
        (tmp_path / f"images_{factor}").mkdir()
        for index in range(3):
            name = f"image_{index:03d}.png"
            image = Image.open(tmp_path / "images" / name)
            image.resize((WIDTH // factor, HEIGHT // factor)).save(tmp_path / f"images_{factor}" / name)
    shutil.rmtree(tmp_path / "images")
    capture = load_capture(tmp_path)
    camera = capture.cameras[0]
    assert (camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy) == (40, 30, 30, 31, 20.5, 14.5)
    assert "images_2" in capture.warnings[0]
    assert "3 cameras were rescaled to the size of their images (80x60 to 40x30)" in capture.warnings[1]


def test_no_images_folder(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(InputError, match=r"no folder .*images beside the COLMAP model"):
        load_capture(tmp_path)


@pytest.mark.parametrize("points", ["none", "no file"])
def test_zero_points_are_allowed(tmp_path: Path, points: str) -> None:
    write_colmap(tmp_path, points=0)
    if points == "no file":
        (tmp_path / "sparse" / "0" / "points3D.bin").unlink()
        assert load_capture(tmp_path).points is None
    else:
        found = load_capture(tmp_path).points
        assert found is not None
        assert tuple(found.positions.shape) == (0, 3)
        assert tuple(found.colors.shape) == (0, 3)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_a_cut_file_is_named_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    write_colmap(tmp_path, views=3)
    file = tmp_path / "sparse" / "0" / name
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=name):
            load_capture(tmp_path)
    file.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match=f"{name} holds 1 bytes too many"):
        load_capture(tmp_path)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_a_huge_count_allocates_nothing(tmp_path: Path, name: str) -> None:
    write_colmap(tmp_path)
    file = tmp_path / "sparse" / "0" / name
    file.write_bytes(struct.pack("<Q", 1 << 60) + file.read_bytes()[8:])
    with pytest.raises(InputError, match=f"{name} claims {1 << 60} records"):
        load_capture(tmp_path)


def _patch(path: Path, offset: int, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)


def test_nan_pose_is_named(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    _patch(tmp_path / "sparse" / "0" / "images.bin", 12, struct.pack("<d", float("nan")))
    with pytest.raises(InputError, match=r"image 'image_000.png': the pose holds a NaN"):
        load_capture(tmp_path)


def test_zero_quaternion_is_named(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    _patch(tmp_path / "sparse" / "0" / "images.bin", 12, bytes(32))
    with pytest.raises(InputError, match=r"image 'image_000.png': the rotation is a zero quaternion"):
        load_capture(tmp_path)


def test_image_of_an_absent_camera(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    _patch(tmp_path / "sparse" / "0" / "images.bin", 12 + 56, struct.pack("<I", 77))
    with pytest.raises(InputError, match=r"its camera 77 is not in cameras.bin"):
        load_capture(tmp_path)


def test_unknown_camera_model_in_binary(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    _patch(tmp_path / "sparse" / "0" / "cameras.bin", 12, struct.pack("<i", 99))
    with pytest.raises(InputError, match="camera model number 99 is unknown"):
        load_capture(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 OPENVC 80 60 60 62 41 29 0 0 0 0", "no camera model is named 'OPENVC'; did you mean OPENCV"),
        ("1 PINHOLE 80 60 60 62 41", "PINHOLE has 4 parameters, got 3"),
        ("1 PINHOLE 80", "is cut short or damaged"),
        ("1 PINHOLE 80 sixty 60 62 41 29", "expected numbers"),
        ("1 PINHOLE 80 60 60 nan 41 29", "a camera parameter is NaN"),
        ("1 PINHOLE 80 0 60 62 41 29", "the image size must lie between"),
        ("1 PINHOLE 80 999999999 60 62 41 29", "the image size must lie between"),
        ("1 PINHOLE 80 60 -60 62 41 29", "focal lengths must be positive"),
        ("1 EQUIRECTANGULAR 80 60 80 60", "is a panorama"),
    ],
)
def test_bad_cameras_text(tmp_path: Path, line: str, message: str) -> None:
    write_colmap(tmp_path, binary=False)
    (tmp_path / "sparse" / "0" / "cameras.txt").write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        load_capture(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 1 0 0 0 0 0 nan 1 image_000.png", "image 'image_000.png': the pose holds a NaN"),
        ("1 1 0 0 0 0 0 one 1 image_000.png", "expected numbers"),
        ("1 1 0 0 0 0 0 1 image_000.png", "expected 10 words about an image"),
    ],
)
def test_bad_images_text(tmp_path: Path, line: str, message: str) -> None:
    write_colmap(tmp_path, binary=False)
    (tmp_path / "sparse" / "0" / "images.txt").write_text(line + "\n\n")
    with pytest.raises(InputError, match=message):
        load_capture(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [("1 0 0 0 1 2", "expected 8 numbers about a point"), ("1 0 0 0 300 2 3 0", "a colour lies outside 0 to 255")],
)
def test_bad_points_text(tmp_path: Path, line: str, message: str) -> None:
    write_colmap(tmp_path, binary=False)
    (tmp_path / "sparse" / "0" / "points3D.txt").write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        load_capture(tmp_path)


def test_names_with_spaces_and_folders(tmp_path: Path) -> None:
    write_colmap(tmp_path, binary=False, views=2)
    text = tmp_path / "sparse" / "0" / "images.txt"
    text.write_text(text.read_text().replace("image_001.png", "left side/image 1.png"))
    (tmp_path / "images" / "left side").mkdir()
    os.replace(tmp_path / "images" / "image_001.png", tmp_path / "images" / "left side" / "image 1.png")
    assert [camera.name for camera in load_capture(tmp_path).cameras] == ["image_000.png", "left side/image 1.png"]


def test_points_at_infinity_are_left_out(tmp_path: Path) -> None:
    write_colmap(tmp_path, points=5)
    _patch(tmp_path / "sparse" / "0" / "points3D.bin", 16, struct.pack("<d", float("inf")))
    capture = load_capture(tmp_path)
    assert capture.points is not None
    assert len(capture.points) == 4
    assert capture.warnings == ("1 of 5 points have a position that is not finite; left out",)


@pytest.mark.parametrize(
    ("scene", "views", "test", "size", "points"),
    [
        ("fox", 50, 7, (270, 480), 10_968),
        ("fox_960", 50, 7, (540, 960), 10_968),
        ("castle", 11, 2, (640, 472), 6_272),
    ],
)
def test_real_scenes(data_folder: Path, scene: str, views: int, test: int, size: tuple[int, int], points: int) -> None:
    if not (data_folder / scene).is_dir():
        pytest.skip(f"no scene {scene} in {data_folder}")
    capture = load_capture(data_folder / scene, CaptureOptions(cache_mebibytes=1))
    assert len(capture.cameras) == views
    assert capture.split.name == "every-8th-test"
    assert (len(capture.split.train), len(capture.split.test)) == (views - test, test)
    assert {(camera.width, camera.height) for camera in capture.cameras} == {size}
    assert capture.points is not None
    assert len(capture.points) == points
    model = pycolmap.Reconstruction(str(data_folder / scene / "sparse" / "0"))
    for camera in capture.cameras:
        expected = model.find_image_with_name(camera.name).cam_from_world().matrix()
        np.testing.assert_allclose(camera.world_to_camera.numpy()[:3], expected, atol=1e-9)
    positions = np.stack([point.xyz for point in model.points3D.values()])
    np.testing.assert_allclose(capture.points.positions.double().sum(0), positions.sum(0), rtol=1e-4)
    assert tuple(capture.images[views - 1].shape) == (size[1], size[0], 3)
