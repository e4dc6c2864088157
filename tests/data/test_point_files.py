"""Points beside a file of poses: which file is used, in which frame and range, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch
from capture_cases import HEIGHT, WIDTH, write_transforms

from splatopt.commands import inspect as inspect_command
from splatopt.core.checks import InputError
from splatopt.data import load_capture
from splatopt.data.point_files import POINT_FILES, read_ply_points

INTRINSICS = {"fl_x": 60.0, "fl_y": 62.0, "w": WIDTH, "h": HEIGHT}
AXES = [(axis, "f4") for axis in "xyz"]
CHANNELS = ("red", "green", "blue")


def write_points(path: Path, positions: np.ndarray, colors: np.ndarray | None, names=CHANNELS, kind="u1") -> None:
    properties = AXES + ([] if colors is None else [(name, kind) for name in names])
    table = np.zeros(len(positions), dtype=properties)
    for column, axis in enumerate("xyz"):
        table[axis] = positions[:, column]
    if colors is not None:
        for column, name in enumerate(names):
            table[name] = colors[:, column]
    plyfile.PlyData([plyfile.PlyElement.describe(table, "vertex")]).write(str(path))


def some(count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points about the origin, which the cameras of ``write_transforms`` see, and colours."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.8, 0.8, (count, 3)).astype(np.float32), rng.integers(0, 256, (count, 3))


def blender(path: Path, **content: object) -> None:
    write_transforms(path, {**INTRINSICS, **content}, views=4, name="transforms_train.json")


def nerfstudio(path: Path, **content: object) -> None:
    write_transforms(path, {**INTRINSICS, **content}, views=4)


@pytest.mark.parametrize("capture_of", [blender, nerfstudio])
@pytest.mark.parametrize("name", POINT_FILES)
def test_points_beside_the_poses_are_used_and_named(tmp_path, capsys, capture_of, name):
    capture_of(tmp_path)
    positions, colors = some()
    write_points(tmp_path / name, positions, colors)
    points = load_capture(tmp_path).points
    assert points is not None
    assert points.file == name
    np.testing.assert_array_equal(points.positions.numpy(), positions.astype(np.float64))
    np.testing.assert_array_equal(points.colors.numpy(), colors)
    local = load_capture(tmp_path).localised().points
    assert local is not None
    assert local.file == name
    assert inspect_command.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"points       60 ({name})" in said
    assert "--init random" not in said


def test_the_named_file_comes_first(tmp_path):
    nerfstudio(tmp_path, ply_file_path="clouds\\mine.ply")
    (tmp_path / "clouds").mkdir()
    write_points(tmp_path / "clouds" / "mine.ply", *some(7))
    write_points(tmp_path / "sparse_pc.ply", *some(9))
    points = load_capture(tmp_path).points
    assert (len(points), points.file) == (7, "clouds\\mine.ply")


def test_a_named_file_that_is_missing_is_named(tmp_path):
    nerfstudio(tmp_path, ply_file_path="mine.ply")
    capture = load_capture(tmp_path)
    assert capture.points is None
    assert any("mine.ply are missing; the capture has none" in one for one in capture.warnings)
    write_points(tmp_path / "sparse_pc.ply", *some())
    capture = load_capture(tmp_path)
    assert capture.points.file == "sparse_pc.ply"
    assert any("mine.ply are missing; those of sparse_pc.ply are used" in one for one in capture.warnings)


@pytest.mark.parametrize("value", [3, "", ["a.ply"], {}])
def test_a_file_that_cannot_be_named_is_refused(tmp_path, value):
    nerfstudio(tmp_path, ply_file_path=value)
    with pytest.raises(InputError, match="'ply_file_path' must name a file, got"):
        load_capture(tmp_path)


def test_random_points_of_3dgs_are_not_used(tmp_path, capsys):
    blender(tmp_path)
    positions, _ = some(500)
    write_points(tmp_path / "points3d.ply", positions, np.random.default_rng(1).integers(127, 129, (500, 3)))
    capture = load_capture(tmp_path)
    assert capture.points is None
    assert any("the 500 points of points3d.ply all have one colour, as 3DGS draws" in one for one in capture.warnings)
    assert inspect_command.main([str(tmp_path)]) == 0
    assert "--init random" in capsys.readouterr().out
    # Of a scan that has no colours at all nothing is wrong, nor of a file that was named.
    write_points(tmp_path / "points3d.ply", positions, None)
    assert len(load_capture(tmp_path).points) == 500
    blender(tmp_path, ply_file_path="mine.ply")
    write_points(tmp_path / "mine.ply", positions, np.full((500, 3), 127))
    assert len(load_capture(tmp_path).points) == 500


def test_points_that_nobody_sees(tmp_path):
    nerfstudio(tmp_path)
    positions, colors = some()
    write_points(tmp_path / "sparse_pc.ply", positions + np.array([0, 900, 0]), colors)
    capture = load_capture(tmp_path)
    assert capture.points is None
    assert any("only 0% of the points of sparse_pc.ply lie within what the cameras see; they are not" in one
               for one in capture.warnings)  # fmt: skip
    nerfstudio(tmp_path, ply_file_path="sparse_pc.ply")
    capture = load_capture(tmp_path)
    assert len(capture.points) == 60
    assert any("only 0% of the points of sparse_pc.ply lie within" in one for one in capture.warnings)


TURN = np.array([[1.0, 0, 0, 0], [0, 0, 1, 3], [0, -1, 0, 2]])


@pytest.mark.parametrize("rows", [3, 4])
@pytest.mark.parametrize("is_old", [False, True])
def test_points_from_before_the_applied_transform_are_moved(tmp_path, rows, is_old):
    transform = np.vstack([TURN, [0, 0, 0, 1]])[:rows]
    nerfstudio(tmp_path, applied_transform=transform.tolist())
    positions, colors = some()
    before = (positions - TURN[:, 3]) @ TURN[:, :3]
    write_points(tmp_path / "sparse_pc.ply", before if is_old else positions, colors)
    capture = load_capture(tmp_path)
    np.testing.assert_allclose(capture.points.positions.numpy(), positions, atol=1e-5)
    assert any("the frame from before 'applied_transform'" in one for one in capture.warnings) is is_old


@pytest.mark.parametrize("value", ["turn", [[1, 2], [3, 4]], [[float("nan")] * 4] * 3, [[10**400] * 4] * 3])
def test_an_applied_transform_that_is_none(tmp_path, value):
    nerfstudio(tmp_path, applied_transform=value)
    write_points(tmp_path / "sparse_pc.ply", *some())
    capture = load_capture(tmp_path)
    assert len(capture.points) == 60
    assert any("'applied_transform' is no matrix of 3 rows of 4 numbers" in one for one in capture.warnings)


@pytest.mark.parametrize(("kind", "factor"), [("u1", 1), ("i4", 1), ("u2", 257), ("f4", 1 / 255), ("f4", 1), ("f8", 1)])
@pytest.mark.parametrize("names", [CHANNELS, ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue")])
def test_colours_of_any_range(tmp_path, names, kind, factor):
    positions, colors = some()
    write_points(tmp_path / "a.ply", positions, colors * factor, names, kind)
    np.testing.assert_array_equal(read_ply_points(tmp_path / "a.ply", []).colors.numpy(), colors)


def test_colours_of_a_scene_and_of_numbers_that_are_none(tmp_path):
    positions, colors = some(3)
    bands = ("f_dc_0", "f_dc_1", "f_dc_2")
    write_points(tmp_path / "a.ply", positions, (colors / 255 - 0.5) / 0.28209479177387814, bands, "f4")
    np.testing.assert_array_equal(read_ply_points(tmp_path / "a.ply", []).colors.numpy(), colors)
    values = np.array([[np.nan, 0.5, 1], [np.inf, -1, 0.2], [0, 0, -np.inf]])
    write_points(tmp_path / "a.ply", positions, values, CHANNELS, "f4")
    expected = torch.tensor([[0, 128, 255], [0, 0, 51], [0, 0, 0]], dtype=torch.uint8)
    assert torch.equal(read_ply_points(tmp_path / "a.ply", []).colors, expected)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04.", b"ply\nformat ascii 1.0\nelement vertex 9\n"])
def test_a_damaged_file_beside_the_poses_is_refused(tmp_path, content):
    blender(tmp_path)
    (tmp_path / "points3d.ply").write_bytes(content)
    with pytest.raises(InputError, match=r"points3d.ply is not a readable PLY point cloud"):
        load_capture(tmp_path)


def test_more_points_than_the_file_holds(tmp_path):
    nerfstudio(tmp_path)
    write_points(tmp_path / "sparse_pc.ply", *some())
    file = tmp_path / "sparse_pc.ply"
    file.write_bytes(file.read_bytes().replace(b"vertex 60", b"vertex 99999999999999"))
    with pytest.raises(InputError, match="it claims 99999999999999 points"):
        load_capture(tmp_path)


def test_a_file_without_points_is_as_none(tmp_path):
    nerfstudio(tmp_path)
    write_points(tmp_path / "sparse_pc.ply", np.zeros((0, 3)), np.zeros((0, 3)))
    assert load_capture(tmp_path).points is None


def test_cases_of_other_tools(data_folder: Path) -> None:
    """What real tools wrote: floats of 0 to 255, and points3d.ply beside Blender's poses."""
    cases = data_folder.parent / "cases"
    for name, mean in (("point-colours-in-floats-to-255", (108.0, 109.5, 112.8)), ("points3d-ply-in-blender", None)):
        if not (cases / name).is_dir():
            pytest.skip(f"no case {name} in {cases}")
        points = load_capture(cases / name / "capture").points
        assert len(points) == 200
        if mean is not None:
            expected = torch.tensor(json.loads((cases / name / "case.json").read_text())["expect"]["mean_colour"])
            torch.testing.assert_close(points.colors.float().mean(dim=0), expected, rtol=0, atol=0.5)


def test_rows_of_zeros_are_left_out_and_counted(tmp_path):
    positions, colors = some(30)
    positions[4:9], colors[4:9] = 0, 0
    write_points(tmp_path / "points.ply", positions, colors)
    warnings: list[str] = []
    points = read_ply_points(tmp_path / "points.ply", warnings)
    assert len(points) == 25
    assert [one for one in warnings if "5 of 30 rows of" in one and "nothing but zeros" in one]
    # One alone may be a black point at the origin.
    positions[5:9] = 1
    write_points(tmp_path / "points.ply", positions, colors)
    assert len(read_ply_points(tmp_path / "points.ply", warnings)) == 30
