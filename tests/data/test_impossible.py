"""Cameras, poses and points that nothing in the world can have, and models that contradict themselves."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from capture_cases import HEIGHT, WIDTH, lens, opengl_pose, pose, write_colmap, write_transforms

from splatopt.cli import main
from splatopt.core.checks import InputError
from splatopt.data import inspect_capture, load_capture
from splatopt.data.capture import read_source
from splatopt.data.lens import Lens
from splatopt.data.source import MAX_DISTANCE, finite_points

INTRINSICS = {"fl_x": 60, "fl_y": 60, "cx": 40, "cy": 30, "w": WIDTH, "h": HEIGHT}
NUMBERS = ["fl_x", "fl_y", "cx", "cy"]


def write_lens(path: Path, form: str, fx: float, fy: float, cx: float, cy: float, size: tuple[int, int]) -> str:
    """Write a capture with this pinhole in one of the formats; returns what a refusal must name."""
    if form == "json":
        write_transforms(path, {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": size[0], "h": size[1]}, views=2)
        return "view 'images/0000.png'"
    write_colmap(path, views=2, cameras=[lens()], binary=form == "binary")
    model = path / "sparse" / "0"
    if form == "binary":
        packed = struct.pack("<QIiQQ4d", 1, 7, 1, *size, fx, fy, cx, cy)
        (model / "cameras.bin").write_bytes(packed)
        images = (
            (model / "images.bin")
            .read_bytes()
            .replace(struct.pack("<I", 1) + b"image", struct.pack("<I", 7) + b"image")
        )
        (model / "images.bin").write_bytes(images)
    else:
        (model / "cameras.txt").write_text(f"7 PINHOLE {size[0]} {size[1]} {fx!r} {fy!r} {cx!r} {cy!r}\n")
        text = (model / "images.txt").read_text().replace(" 1 image", " 7 image")
        (model / "images.txt").write_text(text)
    return "camera 7"


@pytest.mark.parametrize("form", ["text", "binary", "json"])
@pytest.mark.parametrize(
    ("number", "value", "said"),
    [
        (0, 1e-300, "no lens has a focal length of 1e-300"),
        (1, 0.5, "no lens has a focal length of 0.5"),
        (0, 1e300, r"no lens has a focal length of 1e\+300"),
        (1, 1e9, "no lens has a focal length of 1000000000.0"),
        (0, 0.0, "focal lengths must be positive"),
        (0, -60.0, "focal lengths must be positive"),
        (0, float("nan"), "NaN or infinite|finite number"),
        (1, float("inf"), "NaN or infinite|finite number"),
        (2, 1e30, "the principal point must lie in the image or near it"),
        (3, -900.0, "the principal point must lie in the image or near it"),
        (2, float("nan"), "NaN or infinite|finite number"),
    ],
)
def test_numbers_that_no_lens_has(tmp_path, form, number, value, said):
    values = [60.0, 60.0, 40.0, 30.0]
    values[number] = value
    named = write_lens(tmp_path, form, *values, (WIDTH, HEIGHT))
    with pytest.raises(InputError, match=said) as caught:
        load_capture(tmp_path)
    assert named in str(caught.value)
    with pytest.raises(InputError, match=said):
        inspect_capture(tmp_path)


@pytest.mark.parametrize("form", ["text", "binary", "json"])
@pytest.mark.parametrize("size", [(0, HEIGHT), (WIDTH, 10**9), (10**9, 10**9)])
def test_sizes_that_no_image_has(tmp_path, form, size):
    named = write_lens(tmp_path, form, 60, 60, 40, 30, size)
    with pytest.raises(InputError, match="the image size must lie between") as caught:
        read_source(tmp_path)
    assert named in str(caught.value)


def test_the_command_line_says_it_in_a_sentence(tmp_path, capsys):
    write_lens(tmp_path, "text", 1e-300, 60, 40, 30, (WIDTH, HEIGHT))
    for words in (["inspect", str(tmp_path)], ["train", str(tmp_path), "--steps", "3", "--out", str(tmp_path / "run")]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("splatopt: ")
        assert "cameras.txt, camera 7: no lens has a focal length of 1e-300 pixels for an image of 80x60" in said
        assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["OPENCV", "OPENCV_FISHEYE", "FULL_OPENCV", "FOV", "THIN_PRISM_FISHEYE"])
@pytest.mark.parametrize("value", [1e30, -1e30, float("nan")])
def test_distortions_that_leave_nothing(model, value):
    count = len(lens(model).params) if model != "FOV" else 5
    parameters = (60.0, 60.0, 40.0, 30.0, value, *[0.0] * (count - 5))
    with pytest.raises(InputError, match="no lens has this .* distortion|NaN or infinite"):
        Lens(model, WIDTH, HEIGHT, parameters, "cameras.txt, camera 1").pinhole()


def test_a_distortion_that_leaves_a_few_pixels():
    strong = Lens("OPENCV", WIDTH, HEIGHT, (60, 60, 40, 30, 1e5, 0, 0, 0), "cameras.txt, camera 1")
    with pytest.raises(InputError, match="camera 1: this OPENCV camera is so distorted"):
        strong.pinhole()


def test_what_is_only_unusual_is_warned_of(tmp_path):
    write_lens(tmp_path, "text", 60, 150, 100, 30, (WIDTH, HEIGHT))
    warnings = load_capture(tmp_path).warnings
    assert any("camera 7: the principal point (100.0, 30.0) lies outside the image" in one for one in warnings)
    assert any("the focal lengths 60 and 150 differ" in one for one in warnings)
    write_lens(tmp_path / "b", "text", 9000, 9000, 40, 30, (WIDTH, HEIGHT))
    (warning,) = load_capture(tmp_path / "b").warnings
    assert "camera 7: the focal length 9000 is unusual for 80x60 pixels" in warning


def test_an_angle_of_nothing(tmp_path):
    for angle in (5e-324, 1e-300, np.pi - 1e-16):
        write_transforms(tmp_path, {"camera_angle_x": float(angle)}, views=2)
        with pytest.raises(InputError, match="NaN or infinite|no lens has a focal length|must lie between"):
            load_capture(tmp_path)


# ---------------------------------------------------------------------- poses


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((1, 0, 0, 0, 1e30, 0, 0), r"the camera stands 1e\+30 world units from the origin"),
        ((1, 0, 0, 0, 0, 0, -2e12), r"the camera stands 2e\+12 world units from the origin"),
        ((1e5, 0, 0, 0, 0, 0, 4), r"quaternion of length 1e\+05"),
        ((1e-5, 0, 0, 0, 0, 0, 4), "quaternion of length 1e-05"),
        ((1e200, 1e200, 0, 0, 0, 0, 4), "quaternion of length inf"),
        ((1e-200, 0, 0, 0, 0, 0, 4), "zero quaternion"),
        ((1, 0, 0, 0, 0, float("nan"), 4), "NaN"),
    ],
)
def test_poses_that_no_camera_has(tmp_path, binary, values, said):
    write_colmap(tmp_path, views=3, binary=binary)
    model = tmp_path / "sparse" / "0"
    if binary:
        data = (model / "images.bin").read_bytes()
        (model / "images.bin").write_bytes(data[:12] + struct.pack("<7d", *values) + data[68:])
    else:
        lines = (model / "images.txt").read_text().splitlines()
        first = next(index for index, line in enumerate(lines) if not line.startswith("#"))
        words = lines[first].split()
        lines[first] = " ".join([words[0], *map(repr, values), *words[8:]])
        (model / "images.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=said) as caught:
        load_capture(tmp_path)
    assert "image 'image_000.png'" in str(caught.value)


def test_a_quaternion_that_is_not_quite_one_is_normalised_and_warned_of(tmp_path):
    write_colmap(tmp_path, views=3, binary=False)
    file = tmp_path / "sparse" / "0" / "images.txt"
    text = file.read_text().splitlines()
    first = next(index for index, line in enumerate(text) if not line.startswith("#"))
    words = text[first].split()
    text[first] = " ".join([words[0], *(repr(2 * float(word)) for word in words[1:5]), *words[5:]])
    file.write_text("\n".join(text) + "\n")
    capture = load_capture(tmp_path)
    np.testing.assert_allclose(capture.cameras[0].world_to_camera.numpy(), pose(0), atol=1e-9)
    assert "1 rotations are quaternions whose length is not 1, such as 2 of 'image_000.png'" in capture.warnings[0]


def transposed() -> list:
    return opengl_pose(0).T.tolist()


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (np.diag([1e-100, 1e-100, 1e-100, 1]).tolist(), "one that scales by 1e-100"),
        (np.diag([1e200, 1e200, 1e200, 1]).tolist(), "one that scales by inf"),
        ((np.eye(4) + np.eye(4, k=1) * 0.2).tolist(), "shears or mirrors"),
        (transposed(), "the last row of the pose must be 0 0 0 1"),
        ([[1, 0, 0, 1e30], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], r"stands 1e\+30 world units"),
    ],
)
def test_matrices_that_are_no_pose(tmp_path, matrix, said):
    write_transforms(tmp_path, INTRINSICS, views=2)
    content = json.loads((tmp_path / "transforms.json").read_text())
    content["frames"][1]["transform_matrix"] = matrix
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=said) as caught:
        load_capture(tmp_path)
    assert "view 'images/0001.png'" in str(caught.value)


def test_a_camera_far_from_all_others_is_warned_of(tmp_path):
    write_transforms(tmp_path, INTRINSICS, views=9)
    assert load_capture(tmp_path).warnings == ()
    content = json.loads((tmp_path / "transforms.json").read_text())
    content["frames"][4]["transform_matrix"][0][3] = 1e8
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    (warning,) = load_capture(tmp_path).warnings
    assert "view 'images/0004.png' stands" in warning
    assert "its pose may be wrong" in warning


def test_points_too_far_to_be_believed_are_left_out_and_counted():
    positions = np.array(
        [[0, 0, 1], [1e30, 0, 0], [np.nan, 0, 0], [0, -2 * MAX_DISTANCE, 0], [0, 1e300, 0], [1, 2, 3.0]]
    )
    warnings: list[str] = []
    points = finite_points(positions, np.zeros((6, 3), dtype=np.uint8), warnings)
    assert points.positions.tolist() == [[0, 0, 1], [1, 2, 3]]
    assert warnings == [
        "1 of 6 points have a position that is not finite; left out",
        "3 of 6 points lie more than 1e+12 world units from the origin; left out",
    ]


# ---------------------------------------------------------------------- contradictions


def twice_in_text(capture: Path, change) -> None:
    """Add to images.txt what ``change`` makes of the words of its first image."""
    file = capture / "sparse" / "0" / "images.txt"
    lines = file.read_text().splitlines()
    first = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    words = lines[first].split()
    words[0] = "99"
    change(words)
    file.write_text("\n".join([*lines, " ".join(words), ""]) + "\n")


def test_a_photograph_with_two_poses_is_refused(tmp_path, capsys):
    write_colmap(tmp_path, views=4, binary=False)
    twice_in_text(tmp_path, lambda words: words.__setitem__(5, "0.7"))
    said = "'image_000.png' is registered twice, with two poses, and which is right cannot be known"
    with pytest.raises(InputError, match=said):
        load_capture(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_a_photograph_with_one_pose_twice_is_used_once(tmp_path):
    write_colmap(tmp_path, views=4, binary=False)
    twice_in_text(tmp_path, lambda words: words.__setitem__(9, "./image_000.png"))
    capture = load_capture(tmp_path)
    assert len(capture.cameras) == 4
    assert "registers 1 photographs more than once with the same pose, such as 'image_000.png'" in capture.warnings[0]


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_frames_listed_twice(tmp_path, shift):
    write_transforms(tmp_path, INTRINSICS, views=4)
    content = json.loads((tmp_path / "transforms.json").read_text())
    again = json.loads(json.dumps(content["frames"][2]))
    again["transform_matrix"][0][3] += shift
    (tmp_path / "transforms.json").write_text(json.dumps({**content, "frames": [*content["frames"], again]}))
    if shift:
        with pytest.raises(InputError, match=r"'images/0002.png' is registered twice, with two poses"):
            load_capture(tmp_path)
    else:
        assert len(load_capture(tmp_path).cameras) == 4
        assert "registers 1 photographs more than once" in load_capture(tmp_path).warnings[0]


def test_a_photograph_that_is_trained_on_and_held_out(tmp_path):
    write_transforms(tmp_path, INTRINSICS, views=4, name="transforms_train.json")
    content = json.loads((tmp_path / "transforms_train.json").read_text())
    (tmp_path / "transforms_test.json").write_text(json.dumps({**content, "frames": content["frames"][2:]}))
    capture = load_capture(tmp_path)
    train, test = (
        [capture.cameras[index].name for index in part] for part in (capture.split.train, capture.split.test)
    )
    assert (train, test) == (["images/0000.png", "images/0001.png"], ["images/0002.png", "images/0003.png"])
    assert "2 photographs are both trained on and held out, such as 'images/0002.png'" in capture.warnings[0]
    content["frames"][3]["transform_matrix"][1][3] += 1
    (tmp_path / "transforms_test.json").write_text(json.dumps({**content, "frames": content["frames"][2:]}))
    with pytest.raises(InputError, match="registered twice, with two poses"):
        load_capture(tmp_path)


def test_a_test_file_that_is_the_training_file_again(tmp_path):
    write_transforms(tmp_path, INTRINSICS, views=9, name="transforms_train.json")
    (tmp_path / "transforms_test.json").write_text((tmp_path / "transforms_train.json").read_text())
    capture = load_capture(tmp_path)
    assert (capture.split.name, capture.split.test, len(capture.cameras)) == ("every-8th-test", (0, 8), 9)
    assert "leaves none to train on; test views are chosen anew" in capture.warnings[0]


@pytest.mark.parametrize("binary", [True, False])
def test_a_camera_number_given_twice(tmp_path, binary):
    write_colmap(tmp_path, views=3, binary=binary)
    file = tmp_path / "sparse" / "0" / ("cameras.bin" if binary else "cameras.txt")
    whole = file.read_bytes()
    for focal in (60.0, 70.0):
        other = struct.pack("<IiQQ4d", 1, 1, WIDTH, HEIGHT, focal, 62, 41, 29)
        text = f"1 PINHOLE {WIDTH} {HEIGHT} {focal} 62 41 29\n".encode()
        file.write_bytes(struct.pack("<Q", 2) + whole[8:] + other if binary else whole + text)
        if focal == 60:
            assert "camera 1 is given twice, the same both times" in load_capture(tmp_path).warnings[0]
        else:
            with pytest.raises(InputError, match="camera 1 is given twice, and differently"):
                load_capture(tmp_path)


def test_an_image_number_given_twice(tmp_path):
    write_colmap(tmp_path, views=3, binary=False)
    twice_in_text(tmp_path, lambda words: words.__setitem__(0, "2"))
    assert "gives the image number 2 to several images" in load_capture(tmp_path).warnings[0]


def test_a_name_given_twice_in_one_object(tmp_path):
    write_transforms(tmp_path, INTRINSICS, views=2)
    file = tmp_path / "transforms.json"
    text = file.read_text()
    file.write_text(text.replace('"fl_x": 60', '"fl_x": 60, "fl_x": 61'))
    with pytest.raises(InputError, match="gives 'fl_x' twice in one object, and differently"):
        load_capture(tmp_path)
    file.write_text(text.replace('"fl_x": 60', '"fl_x": 60, "fl_x": 60'))
    assert len(load_capture(tmp_path).cameras) == 2


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["x" * 300, "x" * 100_000, "a\0b", "x/" * 3000, "/", ".."])
@pytest.mark.parametrize("form", ["colmap", "json"])
def test_names_that_no_file_can_have_are_missing_images(tmp_path, capsys, name, form):
    if form == "json":
        write_transforms(tmp_path, INTRINSICS, views=4)
        content = json.loads((tmp_path / "transforms.json").read_text())
        content["frames"][1]["file_path"] = name
        (tmp_path / "transforms.json").write_text(json.dumps(content))
    else:
        write_colmap(tmp_path, views=4, binary=False)
        file = tmp_path / "sparse" / "0" / "images.txt"
        file.write_text(file.read_text().replace("image_001.png", name))
    assert main(["inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert next(line for line in out.splitlines() if line.startswith("missing")).startswith("missing      1: ")
    assert len(out) < 3000
    with pytest.raises(InputError, match="is missing") as caught:
        load_capture(tmp_path)
    assert len(str(caught.value)) < 1000
