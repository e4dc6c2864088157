from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import plyfile
import pycolmap
import pytest
import torch
from capture_cases import HEIGHT, WIDTH, blob, centroid, pose, write_transforms
from PIL import Image

from splatopt.core.checks import InputError
from splatopt.data import load_capture
from splatopt.data.point_files import read_ply_points

INTRINSICS = {"fl_x": 60.0, "fl_y": 62.0, "cx": 41.0, "cy": 29.0, "w": WIDTH, "h": HEIGHT}
PINHOLE = [60.0, 62, 41, 29]

DISTORTIONS = [
    ({}, "PINHOLE", PINHOLE),
    ({"k1": 0.1, "k2": -0.03, "p1": 0.004, "p2": -0.003}, "OPENCV", [*PINHOLE, 0.1, -0.03, 0.004, -0.003]),
    ({"camera_model": "OPENCV", "k1": 0.1}, "OPENCV", [*PINHOLE, 0.1, 0, 0, 0]),
    ({"k1": 0.1, "k3": 0.02, "p2": 0.003}, "FULL_OPENCV", [*PINHOLE, 0.1, 0, 0, 0.003, 0.02, 0, 0, 0]),
    (
        {"camera_model": "OPENCV_FISHEYE", "k1": 0.05, "k2": -0.01, "k3": 0.002, "k4": 0.001},
        "OPENCV_FISHEYE",
        [*PINHOLE, 0.05, -0.01, 0.002, 0.001],
    ),
    ({"is_fisheye": True, "k1": 0.05}, "OPENCV_FISHEYE", [*PINHOLE, 0.05, 0, 0, 0]),
]


def _spot(distortion_model: str, parameters: list[float], index: int, point: np.ndarray) -> np.ndarray:
    camera = pycolmap.Camera(model=distortion_model, width=WIDTH, height=HEIGHT, params=np.array(parameters))
    return np.asarray(camera.img_from_cam((pose(index) @ point)[:3]))


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize(("keys", "model", "parameters"), DISTORTIONS)
def test_distortion_and_axes(tmp_path: Path, keys: dict, model: str, parameters: list[float], per_frame: bool) -> None:
    """A spot painted where the lens puts a 3D point is found where the pinhole puts it."""
    point = np.array([-0.5, 0.4, 0.3, 1.0])
    intrinsics = {**INTRINSICS, **keys}
    write_transforms(tmp_path, {} if per_frame else intrinsics, views=2)
    if per_frame:
        content = json.loads((tmp_path / "transforms.json").read_text())
        content["frames"] = [{**frame, **intrinsics} for frame in content["frames"]]
        (tmp_path / "transforms.json").write_text(json.dumps(content))
    for index in range(2):
        spot = blob(_spot(model, parameters, index, point))
        Image.fromarray(spot).save(tmp_path / "images" / f"{index:04d}.png")
    capture = load_capture(tmp_path)
    assert capture.kind == "nerfstudio"
    assert capture.camera_models == (model,)
    for index, camera in enumerate(capture.cameras):
        np.testing.assert_allclose(camera.world_to_camera.numpy(), pose(index), atol=1e-12)
        x, y, z, _ = camera.world_to_camera.numpy() @ point
        expected = [camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy]
        np.testing.assert_allclose(centroid(capture.images[index].numpy()), expected, atol=0.12)


@pytest.mark.parametrize("place", ["file", "frame"])
def test_neus2_matrices_with_opencv_axes(tmp_path: Path, place: str) -> None:
    write_transforms(tmp_path, INTRINSICS, views=3)
    content = json.loads((tmp_path / "transforms.json").read_text())
    for index, frame in enumerate(content["frames"]):
        frame["transform_matrix"] = np.linalg.inv(pose(index)).tolist()
    for one in [content] if place == "file" else content["frames"]:
        one["from_na"] = True
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    capture = load_capture(tmp_path)
    for index, camera in enumerate(capture.cameras):
        np.testing.assert_allclose(camera.world_to_camera.numpy(), pose(index), atol=1e-12)
    assert [str(one).partition(",")[0] for one in capture.found] == ["from_na: used"]


def test_opengl_axes_where_from_na_is_false(tmp_path: Path) -> None:
    write_transforms(tmp_path, {**INTRINSICS, "from_na": False, "from_mitsuba": False}, views=3)
    capture = load_capture(tmp_path)
    np.testing.assert_allclose(capture.cameras[2].world_to_camera.numpy(), pose(2), atol=1e-12)
    assert (capture.found, capture.warnings) == ((), ())


def test_frames_of_different_sizes(tmp_path: Path) -> None:
    write_transforms(tmp_path, INTRINSICS, views=3)
    content = json.loads((tmp_path / "transforms.json").read_text())
    content["frames"][1] |= {"w": 40, "h": 20, "fl_x": 33.0, "fl_y": 34.0, "cx": 20.0, "cy": 10.0}
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "0001.png")
    camera = load_capture(tmp_path).cameras[1]
    assert (camera.width, camera.height, camera.fx, camera.fy) == (40, 20, 33, 34)


def with_frame(path: Path, shared: dict, frame: dict, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """Write a capture whose second frame says more, and has a photograph of this size."""
    write_transforms(path, shared, views=3)
    content = json.loads((path / "transforms.json").read_text())
    content["frames"][1] |= frame
    (path / "transforms.json").write_text(json.dumps(content))
    Image.new("RGB", size).save(path / "images" / "0001.png")
    return path


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ({"camera_angle_x": 1.0}, (40 / np.tan(0.5), 40 / np.tan(0.5))),
        ({"camera_angle_x": 1.0, "camera_angle_y": 0.8}, (40 / np.tan(0.5), 30 / np.tan(0.4))),
        ({"fl_x": 70.0}, (70, 70)),
        ({"fl_x": 70.0, "fl_y": 71.0}, (70, 71)),
        ({"k1": 0.0, "fl_x": None}, (62, 62)),
    ],
)
def test_a_focal_length_of_a_frame_replaces_that_of_the_file(tmp_path: Path, frame: dict, expected: tuple) -> None:
    capture = load_capture(with_frame(tmp_path, INTRINSICS, frame))
    assert (capture.cameras[1].fx, capture.cameras[1].fy) == pytest.approx(expected)
    assert (capture.cameras[0].fx, capture.cameras[0].fy) == (60, 62)
    assert (capture.cameras[1].cx, capture.cameras[1].cy) == (41, 29)


def test_a_focal_length_of_a_frame_replaces_an_angle_of_the_file(tmp_path: Path) -> None:
    capture = load_capture(with_frame(tmp_path, {"camera_angle_x": 1.0, "camera_angle_y": 0.8}, {"fl_x": 70.0}))
    assert (capture.cameras[1].fx, capture.cameras[1].fy) == (70, 70)


@pytest.mark.parametrize(
    ("frame", "expected", "said"),
    [
        ({"w": 40, "h": 20}, (20, 10), 1),
        ({"w": 40, "h": HEIGHT}, (20, 29), 1),
        ({"w": 40, "h": 20, "cx": 21.0, "cy": 11.0}, (21, 11), 0),
        ({"w": WIDTH, "h": HEIGHT}, (41, 29), 0),
    ],
)
def test_a_frame_of_another_size_has_its_own_principal_point(
    tmp_path: Path, frame: dict, expected: tuple, said: int
) -> None:
    capture = load_capture(with_frame(tmp_path, INTRINSICS, frame, (frame["w"], frame["h"])))
    assert (capture.cameras[1].cx, capture.cameras[1].cy) == expected
    assert [warning.partition(",")[0] for warning in capture.warnings] == [
        "1 frames have another size than the file gives and no principal point of their own"
    ] * said


def test_views_are_sorted_and_endings_found(tmp_path: Path) -> None:
    write_transforms(tmp_path, INTRINSICS, views=9)
    content = json.loads((tmp_path / "transforms.json").read_text())
    frames = [{**frame, "file_path": "./" + frame["file_path"].removesuffix(".png")} for frame in content["frames"]]
    (tmp_path / "transforms.json").write_text(json.dumps({**content, "frames": frames[::-1]}))
    capture = load_capture(tmp_path)
    assert [camera.name for camera in capture.cameras] == [f"images/{index:04d}" for index in range(9)]
    assert (capture.split.name, capture.split.test) == ("every-8th-test", (0, 8))
    np.testing.assert_allclose(capture.cameras[3].world_to_camera.numpy(), pose(3), atol=1e-12)


def test_size_and_principal_point_default_to_the_image(tmp_path: Path) -> None:
    write_transforms(tmp_path, {"camera_angle_y": 1.0}, views=2)
    camera = load_capture(tmp_path).cameras[0]
    assert (camera.width, camera.height, camera.cx, camera.cy) == (80, 60, 40, 30)
    assert camera.fx == camera.fy == pytest.approx(30 / np.tan(0.5))


def test_smaller_copies_rescale_the_lens(tmp_path: Path) -> None:
    write_transforms(tmp_path, {**INTRINSICS, "w": 2 * WIDTH, "h": 2 * HEIGHT, "k1": 0.1}, views=2)
    capture = load_capture(tmp_path)
    assert capture.cameras[0].fx == pytest.approx(30)
    assert "2 cameras were rescaled to the size of their images (160x120 to 80x60)" in capture.warnings[0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"camera_model": "EQUIRECTANGULAR"}, "camera model 'EQUIRECTANGULAR' is not supported"),
        ({"normal_mts_args": True}, "'normal_mts_args' says that the cameras have Mitsuba's axes"),
        ({"from_mitsuba": True}, "'from_mitsuba' says that the cameras have Mitsuba's axes"),
        ({"from_na": "yes"}, "'from_na' must be true or false, got 'yes'"),
        ({"k4": 0.1}, "'k4' = 0.1 of a lens that is no fisheye"),
        ({"fl_x": float("nan")}, "'fl_x' must be a finite number"),
        ({"fl_x": -5.0}, "focal lengths must be positive"),
        ({"k1": "strong"}, "'k1' must be a finite number"),
        ({"w": 0}, "the image size must lie between"),
        ({"w": 1e300}, "the image size must lie between"),
        ({"w": 50}, "0000.png is 80x60 pixels but its camera is 50x60"),
    ],
)
def test_bad_keys(tmp_path: Path, keys: dict, message: str) -> None:
    write_transforms(tmp_path, {**INTRINSICS, **keys}, views=2)
    with pytest.raises(InputError, match=message):
        load_capture(tmp_path)


def _write_ply(path: Path, properties: list[tuple[str, str]], rows: list[tuple], *, text: bool = False) -> None:
    vertices = np.array(rows, dtype=properties)
    plyfile.PlyData([plyfile.PlyElement.describe(vertices, "vertex")], text=text).write(str(path))


COLORED = [(axis, "f4") for axis in "xyz"] + [(channel, "u1") for channel in ("red", "green", "blue")]


@pytest.mark.parametrize("text", [False, True])
def test_points(tmp_path: Path, text: bool) -> None:
    write_transforms(tmp_path, {**INTRINSICS, "ply_file_path": "sparse.ply"}, views=2)
    rows = [(1, 2, 3, 255, 0, 7), (np.nan, 0, 0, 1, 1, 1), (-1, 0.5, 2, 4, 5, 6)]
    _write_ply(tmp_path / "sparse.ply", COLORED, rows, text=text)
    capture = load_capture(tmp_path)
    assert capture.points is not None
    assert torch.equal(capture.points.positions, torch.tensor([[1.0, 2, 3], [-1, 0.5, 2]]))
    assert torch.equal(capture.points.colors, torch.tensor([[255, 0, 7], [4, 5, 6]], dtype=torch.uint8))
    assert capture.warnings == ("1 of 3 points have a position that is not finite; left out",)


def test_points_without_colour_are_grey(tmp_path: Path) -> None:
    _write_ply(tmp_path / "a.ply", COLORED[:3], [(1, 2, 3)])
    assert read_ply_points(tmp_path / "a.ply", []).colors.tolist() == [[128, 128, 128]]


def test_points_that_are_not_there(tmp_path: Path) -> None:
    write_transforms(tmp_path, {**INTRINSICS, "ply_file_path": "sparse.ply"}, views=2)
    capture = load_capture(tmp_path)
    assert capture.points is None
    assert "sparse.ply are missing" in capture.warnings[0]


def test_bad_points(tmp_path: Path) -> None:
    file = tmp_path / "a.ply"
    file.write_bytes(b"hello")
    with pytest.raises(InputError, match=r"a.ply is not a readable PLY point cloud"):
        read_ply_points(file, [])
    _write_ply(file, [("x", "f4"), ("z", "f4")], [(1, 2)])
    with pytest.raises(InputError, match="points need the properties x, y and z, got x, z"):
        read_ply_points(file, [])
    _write_ply(file, COLORED, [(1, 2, 3, 4, 5, 6)] * 100)
    content = file.read_bytes()
    file.write_bytes(content[:-200])
    with pytest.raises(InputError, match=r"a.ply is not a readable PLY point cloud"):
        read_ply_points(file, [])
    file.write_bytes(content.replace(b"vertex 100", b"vertex 99999999999999"))
    with pytest.raises(InputError, match="claims 99999999999999 points"):
        read_ply_points(file, [])


def test_fox_nerf(data_folder: Path) -> None:
    scene = data_folder / "fox_nerf"
    if not scene.is_dir():
        pytest.skip(f"no scene fox_nerf in {data_folder}")
    capture = load_capture(scene)
    assert (capture.kind, capture.camera_models) == ("instant-ngp", ("OPENCV",))
    assert (len(capture.split.train), len(capture.split.test)) == (43, 7)
    assert {(camera.width, camera.height) for camera in capture.cameras} == {(266, 473)}
    assert capture.cameras[0].fx == pytest.approx(343.88)
    assert tuple(capture.images[0].shape) == (473, 266, 3)
