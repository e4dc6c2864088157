"""One capture in every layout gives the same cameras, photographs and split; each layout's own matters."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import layouts
import numpy as np
import plyfile
import pytest
from capture_cases import write_colmap
from hypothesis import given, settings
from hypothesis import strategies as st

from splatopt.cli import main
from splatopt.core.checks import InputError
from splatopt.data import CaptureOptions, inspect_capture, load_capture

COLORED = [(axis, "f4") for axis in "xyz"] + [(channel, "u1") for channel in ("red", "green", "blue")]

WRITERS = {
    "nerfstudio": layouts.write_json,
    "blender": layouts.write_blender,
    "llff": layouts.write_llff,
    "polycam": layouts.write_polycam,
    "record3d": layouts.write_record3d,
}


@settings(max_examples=12, derandomize=True, deadline=None, database=None)
@given(
    views=st.integers(2, 10),
    size=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    focal=st.floats(0.6, 3),
    unit=st.sampled_from([1e-3, 1.0, 1e5]),
    seed=st.integers(0, 1000),
)
def test_every_layout_gives_the_same_capture(views, size, focal, unit, seed) -> None:
    width, height = size
    given_one = layouts.example(views, width, height, focal * max(size), seed)
    poses = given_one.world_to_camera.copy()
    poses[:, :3, 3] *= unit
    given_one = replace(given_one, world_to_camera=poses)
    with TemporaryDirectory() as folder:
        for kind, write in WRITERS.items():
            path = Path(folder) / kind
            path.mkdir()
            write(path, given_one)
            capture = load_capture(path)
            assert (capture.kind, capture.points, capture.camera_models) == (kind, None, ("PINHOLE",))
            order = sorted(range(views), key=lambda index: (kind == "blender" and index in given_one.test, index))
            for index, camera in zip(order, capture.cameras, strict=True):
                pose = camera.world_to_camera.numpy()
                np.testing.assert_allclose(pose, given_one.world_to_camera[index], atol=1e-9 * max(unit, 1))
                assert (camera.width, camera.height) == size
                assert [camera.fx, camera.fy] == pytest.approx([given_one.focal] * 2)
                assert [camera.cx, camera.cy] == [width / 2, height / 2]
            assert tuple(order[index] for index in capture.split.test) == given_one.test
            assert capture.split.is_own == (kind in ("nerfstudio", "blender"))
            reds = [int(capture.images[place][0, 0, 0]) for place in range(views)]
            np.testing.assert_allclose(reds, [20 * index for index in order], atol=6)  # JPEG's rounding


@pytest.mark.parametrize("kind", ["llff", "polycam", "record3d"])
def test_points_beside_the_poses(tmp_path: Path, kind: str) -> None:
    given_one = layouts.example()
    WRITERS[kind](tmp_path, given_one)
    before = given_one.camera_to_world @ [0.1, 0.1, -2, 1]
    rows = np.array([(*place[:3], 10 * row, 0, 255) for row, place in enumerate(before)], dtype=COLORED)
    plyfile.PlyData([plyfile.PlyElement.describe(rows, "vertex")]).write(str(tmp_path / "cloud.ply"))
    capture = load_capture(tmp_path)
    assert capture.points is None
    assert (
        "'cloud.ply' beside the poses: not used; a file of points is to be named sparse_pc.ply" in capture.warnings[0]
    )
    (tmp_path / "cloud.ply").rename(tmp_path / "points3d.ply")
    points = load_capture(tmp_path).points
    assert points is not None
    np.testing.assert_allclose(points.positions.numpy(), before[:, :3], atol=1e-6)


# ---------------------------------------------------------------------- LLFF


def test_llff_of_a_colmap_model_has_its_cameras(data_folder: Path, tmp_path: Path) -> None:
    scene = data_folder / "fern"
    if not scene.is_dir():
        pytest.skip(f"no scene fern in {data_folder}")
    colmap = load_capture(scene)
    first = colmap.cameras[0]
    poses = np.stack([camera.world_to_camera.numpy() for camera in colmap.cameras])
    fern = layouts.Example(poses, first.width, first.height, first.fx, ())
    np.save(tmp_path / "poses_bounds.npy", layouts.bounds_of(fern))
    layouts.photographs(fern, tmp_path / "images", lambda index: f"{index:03d}.png")
    llff = load_capture(tmp_path)
    assert (llff.kind, llff.split.test) == ("llff", colmap.split.test)
    for ours, theirs in zip(llff.cameras, colmap.cameras, strict=True):
        np.testing.assert_allclose(ours.world_to_camera.numpy(), theirs.world_to_camera.numpy(), atol=1e-9)
        assert (ours.fx, ours.width, ours.height) == (theirs.fx, theirs.width, theirs.height)


def test_llff_reads_smaller_copies(tmp_path: Path) -> None:
    layouts.write_llff(tmp_path, layouts.example())
    small = tmp_path / "images_4"
    small.mkdir()
    for index in range(9):
        layouts.example(width=8, height=6).photograph(index).save(small / f"image{index:03d}.png")
    camera = load_capture(tmp_path, CaptureOptions(images="images_4")).cameras[3]
    assert (camera.name, camera.width, camera.fx, camera.cx) == ("image003.png", 8, 10.0, 4.0)
    shutil.rmtree(tmp_path / "images")
    capture = load_capture(tmp_path)
    assert (capture.cameras[3].width, capture.cameras[3].fx) == (8, 10.0)
    assert capture.warnings[0] == "there is no folder images; the smaller copies in images_4 are used"
    shutil.rmtree(small)
    with pytest.raises(InputError, match=r"no folder .*images beside poses_bounds\.npy"):
        load_capture(tmp_path)


def test_a_colmap_model_beside_llff_wins_and_it_is_said(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    np.save(tmp_path / "poses_bounds.npy", layouts.bounds_of(layouts.example()))
    capture = load_capture(tmp_path)
    assert capture.kind == "colmap"
    said = f"poses_bounds.npy (llff): not used, the colmap capture beside it is; give {tmp_path}/poses_bounds.npy to"
    assert any(one.startswith(said) for one in capture.warnings)
    assert load_capture(tmp_path / "poses_bounds.npy").kind == "llff"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "is no table of poses"),
        (b"PK\x03\x04" + bytes(40), "is no table of poses"),
        (b"\x93NUMPY" + bytes(3), "is damaged or no array of numbers"),
        (np.zeros((9, 15)), "is no table of poses; expected a NumPy array of N rows of 17 numbers"),
        (np.zeros(17), "is no table of poses"),
        (np.zeros((9, 17), dtype="c16"), "is no table of poses"),
        (np.array([[{}] * 17] * 9), "is damaged or no array of numbers"),
        (np.zeros((8, 17)), "has 8 poses but .*images 9 photographs"),
        (np.full((9, 17), np.nan), "the pose holds a NaN"),
        (np.zeros((9, 17)), "must be a rotation and a shift"),
    ],
)
def test_bad_poses_and_bounds(tmp_path: Path, content: bytes | np.ndarray, message: str) -> None:
    layouts.write_llff(tmp_path, layouts.example())
    file = tmp_path / "poses_bounds.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        load_capture(tmp_path)


def test_a_header_that_claims_too_much_allocates_nothing(tmp_path: Path) -> None:
    layouts.write_llff(tmp_path, layouts.example())
    file = tmp_path / "poses_bounds.npy"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"(9, 17)", b"(99999999999, 17)"))
    with pytest.raises(InputError, match="is damaged or no array of numbers"):
        load_capture(tmp_path)
    file.write_bytes(whole[:-9])
    with pytest.raises(InputError, match="is damaged or no array of numbers"):
        load_capture(tmp_path)


# ---------------------------------------------------------------------- Polycam


def test_polycam_without_corrected_cameras(tmp_path: Path) -> None:
    given_one = layouts.example()
    layouts.write_polycam(tmp_path, given_one, corrected="")
    (tmp_path / "keyframes" / "depth").mkdir()
    layouts.photographs(given_one, tmp_path / "keyframes" / "images", lambda index: f"17{index:03d}.jpg", range(2))
    for path in (tmp_path, tmp_path / "keyframes"):
        capture = load_capture(path)
        np.testing.assert_allclose(
            capture.cameras[4].world_to_camera.numpy(), given_one.world_to_camera[4], rtol=0, atol=1e-9
        )
        assert "those are used that the phone recorded, which drift" in capture.warnings[0]
        assert capture.warnings[1:] == (
            "the folder depth: not used, splatopt trains on colours alone",
            "2 of 11 images beside those of the views (images/17000.jpg, images/17001.jpg): not used, the capture "
            "has no pose for them",
        )


def test_polycam_prefers_what_is_corrected(tmp_path: Path) -> None:
    recorded, corrected = layouts.example(seed=1), layouts.example(seed=2)
    layouts.write_polycam(tmp_path, recorded, corrected="")
    layouts.write_polycam(tmp_path, corrected)
    capture = load_capture(tmp_path)
    np.testing.assert_allclose(capture.cameras[0].world_to_camera.numpy(), corrected.world_to_camera[0], atol=1e-9)
    assert capture.images.sources[0].path.parent.name == "corrected_images"
    assert capture.warnings == ()


@pytest.mark.parametrize(("key", "value"), [("t_12", None), ("fx", "long"), ("width", float("nan"))])
def test_bad_values_of_polycam(tmp_path: Path, key: str, value: object) -> None:
    layouts.write_polycam(tmp_path, layouts.example(3))
    file = tmp_path / "keyframes" / "corrected_cameras" / "16001.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, key: value}))
    with pytest.raises(InputError, match=rf"16001\.json: '{key}' (is missing|must be a finite number)"):
        load_capture(tmp_path)


# ---------------------------------------------------------------------- Record3D


def test_record3d_with_a_focal_length_of_each_photograph(tmp_path: Path) -> None:
    given_one = layouts.example(4)
    coefficients = [[40.0 + index, 41.0 + index, 15.0, 13.0] for index in range(4)]
    layouts.write_record3d(
        tmp_path, given_one, name="metadata.json", folder="rgbd", perFrameIntrinsicCoeffs=coefficients
    )
    cameras = load_capture(tmp_path).cameras
    assert [[one.fx, one.fy, one.cx, one.cy] for one in cameras] == coefficients


def test_record3d_names_what_is_left_over(tmp_path: Path) -> None:
    given_one = layouts.example(4)
    layouts.write_record3d(tmp_path, given_one)
    layouts.photographs(given_one, tmp_path / "rgb", lambda index: f"{index + 7}.jpg", range(1))
    said = "1 of 5 images beside those of the views (rgb/7.jpg): not used, the capture has no pose for them"
    assert said in load_capture(tmp_path).warnings
    (tmp_path / "rgb" / "2.jpg").unlink()
    assert inspect_capture(tmp_path).missing == ("2.jpg",)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"poses": 3}, "'poses' must be rows of 7 finite numbers, got '3'"),
        ({"poses": [[1.0] * 6] * 4}, "'poses' must be rows of 7 finite numbers"),
        ({"poses": [[float("nan")] * 7] * 4}, "'poses' must be rows of 7 finite numbers"),
        ({"poses": [[0.0] * 7] * 4}, "pose 0: the rotation is a quaternion of length 0"),
        ({"K": [1, 2]}, "'K' must be rows of 9 finite numbers"),
        ({"w": None}, "'w' and 'h', the size of the photographs, are missing"),
        ({"perFrameIntrinsicCoeffs": [[1, 1, 1, 1]]}, "has 1 rows for 4 poses"),
    ],
)
def test_bad_metadata_of_record3d(tmp_path: Path, keys: dict, message: str) -> None:
    layouts.write_record3d(tmp_path, layouts.example(4), **keys)
    with pytest.raises(InputError, match=message):
        load_capture(tmp_path)


def test_intrinsics_of_record3d_may_be_a_matrix(tmp_path: Path) -> None:
    layouts.write_record3d(tmp_path, layouts.example(4), K=[[40, 0, 0], [0, 50, 0], [15, 13, 1]])
    camera = load_capture(tmp_path).cameras[0]
    assert [camera.fx, camera.fy, camera.cx, camera.cy] == [40, 50, 15, 13]


# ---------------------------------------------------------------------- a file in place of its folder


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("nerfstudio", "transforms.json"),
        ("blender", "transforms_train.json"),
        ("blender", "transforms_test.json"),
        ("llff", "poses_bounds.npy"),
        ("record3d", "metadata"),
    ],
)
def test_the_file_of_poses_stands_for_its_folder(tmp_path: Path, capsys, kind: str, file: str) -> None:
    path = tmp_path / "toy"
    path.mkdir()
    WRITERS[kind](path, layouts.example())
    whole, given_one = load_capture(path), load_capture(path / file)
    assert (given_one.kind, given_one.name, given_one.split) == (whole.kind, "toy", whole.split)
    assert [camera.name for camera in given_one.cameras] == [camera.name for camera in whole.cameras]
    assert main(["inspect", str(path / file)]) == 0
    assert f"splatopt train {path / file} --out runs/toy" in capsys.readouterr().out


def test_a_json_of_any_name_is_read(tmp_path: Path) -> None:
    layouts.write_json(tmp_path, layouts.example())
    write_colmap(tmp_path)
    (tmp_path / "transforms.json").rename(tmp_path / "mine.json")
    assert load_capture(tmp_path).kind == "colmap"
    assert load_capture(tmp_path / "mine.json").kind == "nerfstudio"


def test_a_run_on_a_file_is_trained_and_scored(tmp_path: Path) -> None:
    layouts.write_json(tmp_path, layouts.example())
    words = ["--init", "random", "--random-points", "20", "--steps", "1", "--threads", "1"]
    assert main(["train", str(tmp_path / "transforms.json"), "--out", str(tmp_path / "run"), *words]) == 0
    assert main(["eval", str(tmp_path / "run")]) == 0


def test_another_file_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"no capture at .*video\.mp4, which is a file; give .* or its transforms"):
        load_capture(tmp_path / "video.mp4")
    (tmp_path / "recording.r3d").write_bytes(b"PK\x03\x04" + bytes(30))
    with pytest.raises(InputError, match=r"no capture at .*recording\.r3d, which is a ZIP archive"):
        load_capture(tmp_path / "recording.r3d")


def test_photographs_without_poses(tmp_path: Path) -> None:
    layouts.photographs(layouts.example(), tmp_path / "images", lambda index: f"{index}.jpg")
    with pytest.raises(InputError, match=r"no model found in .* beside its 9 photographs; looked there for sparse/0, "):
        load_capture(tmp_path)


@pytest.mark.parametrize("kind", [*WRITERS, "colmap"])
def test_hidden_files_beside_all_others_change_nothing(tmp_path: Path, kind: str) -> None:
    """macOS writes ``._NAME`` beside every file on disks of other systems."""
    if kind == "colmap":
        write_colmap(tmp_path)
    else:
        WRITERS[kind](tmp_path, layouts.example())
    before = load_capture(tmp_path)
    for file in [one for one in tmp_path.rglob("*") if one.is_file()]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7 of the Finder's")
    (tmp_path / "._points.ply").write_bytes(b"")
    capture = load_capture(tmp_path)
    assert [camera.name for camera in capture.cameras] == [camera.name for camera in before.cameras]
    assert (capture.warnings, capture.found, capture.split) == (before.warnings, before.found, before.split)


def test_a_hidden_file_is_no_corrected_camera(tmp_path: Path) -> None:
    layouts.write_polycam(tmp_path, layouts.example(), corrected="")
    for name in ("corrected_cameras", "corrected_images"):
        (tmp_path / "keyframes" / name).mkdir()
        (tmp_path / "keyframes" / name / ".DS_Store").write_bytes(b"")
    assert len(load_capture(tmp_path).cameras) == 9
