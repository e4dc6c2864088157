from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from capture_cases import opengl_pose, picture, pose, write_transforms
from PIL import Image

from splatopt.core.checks import InputError
from splatopt.data import CaptureOptions, load_capture

ANGLE = 0.9


def _write_part(path: Path, part: str, views: range, *, alpha: bool = True) -> None:
    (path / part).mkdir(parents=True)
    frames = []
    for index in views:
        pixels = np.concatenate([picture(40, 30, index), np.full((30, 40, 1), 255, dtype=np.uint8)], axis=2)
        pixels[:10, :, 3] = 0
        Image.fromarray(pixels if alpha else pixels[..., :3]).save(path / part / f"r_{index}.png")
        frames.append({"file_path": f"./{part}/r_{index}", "transform_matrix": opengl_pose(index).tolist()})
    content = {"camera_angle_x": ANGLE, "frames": frames}
    (path / f"transforms_{part}.json").write_text(json.dumps(content))


def test_blender_capture(tmp_path: Path) -> None:
    _write_part(tmp_path, "train", range(4))
    _write_part(tmp_path, "test", range(4, 6))
    _write_part(tmp_path, "val", range(6, 7))
    capture = load_capture(tmp_path, CaptureOptions(background=(1.0, 0.0, 0.2)))
    assert capture.kind == "blender"
    assert capture.camera_models == ("PINHOLE",)
    assert capture.points is None
    assert (capture.split.name, capture.split.train, capture.split.test) == ("blender", (0, 1, 2, 3), (4, 5))
    assert capture.background == (1.0, 0.0, 0.2)
    assert capture.cameras[0].name == "train/r_0"
    focal = 20 / math.tan(ANGLE / 2)
    for index, camera in enumerate(capture.cameras):
        np.testing.assert_allclose(camera.world_to_camera.numpy(), pose(index), atol=1e-12)
        assert (camera.width, camera.height, camera.cx, camera.cy) == (40, 30, 20, 15)
        assert camera.fx == camera.fy == pytest.approx(focal)
        assert (capture.images[index][:10].numpy() == [255, 0, 51]).all()
        np.testing.assert_array_equal(capture.images[index][10:].numpy(), picture(40, 30, index)[10:])


def test_a_point_lands_where_opengl_puts_it(tmp_path: Path) -> None:
    """In OpenGL axes a point up and to the right of the view lies at +x, +y, -z."""
    _write_part(tmp_path, "train", range(2))
    world = opengl_pose(0) @ [0.3, 0.2, -2.0, 1.0]
    camera = load_capture(tmp_path).cameras[0]
    x, y, z, _ = camera.world_to_camera.numpy() @ world
    assert z == pytest.approx(2.0)
    assert camera.fx * x / z + camera.cx == pytest.approx(20 + camera.fx * 0.15)
    assert camera.fy * y / z + camera.cy == pytest.approx(15 - camera.fy * 0.1)


def test_without_a_test_file_every_eighth_view_is_held_out(tmp_path: Path) -> None:
    _write_part(tmp_path, "train", range(9), alpha=False)
    capture = load_capture(tmp_path)
    assert (capture.split.name, capture.split.test) == ("every-8th-test", (0, 8))
    assert "there is no transforms_test.json" in capture.warnings[0]
    assert capture.background == (0.0, 0.0, 0.0)


def test_val_stands_in_for_test(tmp_path: Path) -> None:
    _write_part(tmp_path, "train", range(2))
    _write_part(tmp_path, "val", range(2, 3))
    capture = load_capture(tmp_path)
    assert (capture.split.name, capture.split.test) == ("blender", (2,))
    assert capture.warnings == ("test views come from transforms_val.json",)


def test_missing_image_takes_the_size_of_the_others(tmp_path: Path) -> None:
    _write_part(tmp_path, "train", range(3))
    _write_part(tmp_path, "test", range(3, 5))
    (tmp_path / "train" / "r_1.png").unlink()
    with pytest.raises(InputError, match=r"train/r_1.png is missing"):
        load_capture(tmp_path)
    capture = load_capture(tmp_path, CaptureOptions(skip_missing=True))
    assert (capture.split.train, capture.split.test) == ((0, 1), (2, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1, 2]", "must be a JSON object with a list 'frames'"),
        ('{"frames": 3}', "must be a JSON object with a list 'frames'"),
        ('{"frames": [3]}', "must be a JSON object with a list 'frames'"),
        ('{"frames": [{}]}', "frame 0: 'file_path' must name an image"),
        ('{"frames": []}', "the capture has 0 views"),
        ("[" * 100_000, "is not valid JSON"),
        ("\udce9", "is not valid JSON"),
    ],
)
def test_malformed_json(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "transforms_train.json").write_text(content, errors="surrogateescape", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_capture(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("transform_matrix", [[float("nan")] * 4] * 4, r"view 'images/0000.png': the pose holds a NaN"),
        ("transform_matrix", None, "'transform_matrix' must be 4 rows of 4 numbers"),
        ("transform_matrix", [[1, 2], [3, 4]], "'transform_matrix' must be 4 rows of 4 numbers"),
        ("transform_matrix", [["a"] * 4] * 4, "'transform_matrix' must be 4 rows of 4 numbers"),
        ("transform_matrix", [[10**400] * 4] * 4, "'transform_matrix' must be 4 rows of 4 numbers"),
        ("transform_matrix", [[0] * 4] * 4, "must be a rotation and a shift"),
        ("transform_matrix", np.diag([1, 1, -1, 1]).tolist(), "must be a rotation and a shift"),
        ("camera_angle_x", 4.0, "must lie between 0 and π"),
        ("camera_angle_x", "wide", "'camera_angle_x' must be a finite number"),
        ("camera_angle_x", 10**400, "'camera_angle_x' must be a finite number"),
        ("camera_angle_x", None, "no focal length; expected 'fl_x'"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, key: str, value: object, message: str) -> None:
    write_transforms(tmp_path, {"camera_angle_x": ANGLE}, name="transforms_train.json")
    file = tmp_path / "transforms_train.json"
    content = json.loads(file.read_text())
    if key == "camera_angle_x":
        content[key] = value
    else:
        content["frames"][0][key] = value
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_capture(tmp_path)


def test_a_scaled_pose_keeps_its_rotation(tmp_path: Path) -> None:
    write_transforms(tmp_path, {"camera_angle_x": ANGLE}, name="transforms_train.json")
    file = tmp_path / "transforms_train.json"
    content = json.loads(file.read_text())
    matrix = opengl_pose(0)
    matrix[:3, :3] *= 3
    content["frames"][0]["transform_matrix"] = matrix.tolist()
    file.write_text(json.dumps(content))
    np.testing.assert_allclose(load_capture(tmp_path).cameras[0].world_to_camera.numpy(), pose(0), atol=1e-12)


def test_lego(data_folder: Path) -> None:
    scene = data_folder / "lego_200"
    if not scene.is_dir():
        pytest.skip(f"no scene lego_200 in {data_folder}")
    capture = load_capture(scene, CaptureOptions(background=(0.0, 1.0, 0.0)))
    assert (capture.kind, capture.split.name) == ("blender", "blender")
    assert (len(capture.split.train), len(capture.split.test)) == (87, 13)
    assert {(camera.width, camera.height) for camera in capture.cameras} == {(200, 200)}
    assert capture.cameras[0].fx == pytest.approx(100 / math.tan(0.6911112070083618 / 2))
    assert capture.images[0][0, 0].tolist() == [0, 255, 0]
    # The cameras stand on a half sphere of radius 4.03 and look at the model at its centre.
    for camera in capture.cameras:
        assert float(camera.center.norm()) == pytest.approx(4.03, abs=0.01)
        assert float(camera.world_to_camera[2, 3]) == pytest.approx(4.03, abs=0.05)
