"""Scenes as PLY files: bit-exact round trips, foreign writers, and files that cannot be used."""

from __future__ import annotations

import errno
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from raster.cases import find_case, random_cloud
from splatopt.core.checks import InputError
from splatopt.raster.reference import render_reference
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.ply import load_ply, save_ply


def make_cloud(degree: int = 3, count: int = 20) -> GaussianCloud:
    return random_cloud(torch.Generator().manual_seed(degree), count, degree).to(torch.float32)


def layout(degree: int) -> list[str]:
    """Names of the properties in the order in which 3DGS writes them."""
    rest = [f"f_rest_{index}" for index in range(3 * ((degree + 1) ** 2 - 1))]
    scales, quats = [f"scale_{axis}" for axis in range(3)], [f"rot_{part}" for part in range(4)]
    return ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity", *scales, *quats]


def write_table(
    path: Path, columns: dict[str, np.ndarray], kind: str = "f4", byte_order: str = "<", text: bool = False
) -> None:
    """Write a foreign trainer's PLY with these columns in this order."""
    count = len(next(iter(columns.values())))
    table = np.empty(count, dtype=[(name, kind) for name in columns])
    for name, column in columns.items():
        table[name] = column
    PlyData([PlyElement.describe(table, "vertex")], text=text, byte_order=byte_order).write(str(path))


def columns_of(path: Path) -> dict[str, np.ndarray]:
    data = PlyData.read(str(path))["vertex"].data
    return {name: np.array(data[name]) for name in data.dtype.names}


def assert_equal(one: GaussianCloud, other: GaussianCloud) -> None:
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, getattr(other, name)), name


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_round_trip_is_bit_exact(degree, tmp_path):
    cloud = make_cloud(degree)
    save_ply(cloud, tmp_path / "scene.ply")
    loaded = load_ply(tmp_path / "scene.ply")
    assert_equal(cloud, loaded)
    assert loaded.sh_degree == degree
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in loaded.tensors.values())


def test_layout_is_that_of_3dgs(tmp_path):
    """Parse the bytes by hand, as a viewer does."""
    cloud = make_cloud(1, count=5)
    save_ply(cloud, tmp_path / "scene.ply")
    head, body = (tmp_path / "scene.ply").read_bytes().split(b"end_header\n")
    names = layout(1)
    expected = ["ply", "format binary_little_endian 1.0", "element vertex 5", *(f"property float {n}" for n in names)]
    assert head.decode().splitlines() == expected
    rows = list(struct.iter_unpack(f"<{len(names)}f", body))
    assert len(rows) == 5
    for index, row in enumerate(rows):
        values = dict(zip(names, row, strict=True))
        assert [values[n] for n in ("x", "y", "z")] == cloud.means[index].tolist()
        assert [values[n] for n in ("nx", "ny", "nz")] == [0, 0, 0]
        assert [values[f"f_dc_{c}"] for c in range(3)] == cloud.sh_dc[index].tolist()
        for channel in range(3):
            for k in range(3):
                assert values[f"f_rest_{channel * 3 + k}"] == cloud.sh_rest[index, k, channel]
        assert values["opacity"] == cloud.logit_opacities[index]
        assert [values[f"scale_{axis}"] for axis in range(3)] == cloud.log_scales[index].tolist()
        assert [values[f"rot_{part}"] for part in range(4)] == cloud.quats[index].tolist()


def test_loaded_scene_renders_the_same_image(tmp_path):
    case = find_case("degree_3")
    save_ply(case.cloud(), tmp_path / "scene.ply")
    loaded = load_ply(tmp_path / "scene.ply").to(torch.float64)
    before = render_reference(case.cloud(), case.camera, case.options).image
    assert torch.equal(render_reference(loaded, case.camera, case.options).image, before)


def test_special_floats_keep_their_bits(tmp_path):
    cloud = make_cloud(0, count=3)
    cloud.means[0] = torch.tensor([-0.0, 1e-45, 3.4e38])
    save_ply(cloud, tmp_path / "scene.ply")
    loaded = load_ply(tmp_path / "scene.ply")
    assert torch.equal(loaded.means.view(torch.int32), cloud.means.view(torch.int32))


@pytest.mark.parametrize(
    ("kind", "byte_order", "text"), [("f4", "<", True), ("f4", ">", False), ("f8", "<", False), ("f8", "=", True)]
)
def test_other_encodings_load(kind, byte_order, text, tmp_path):
    cloud = make_cloud(2)
    save_ply(cloud, tmp_path / "ours.ply")
    write_table(tmp_path / "theirs.ply", columns_of(tmp_path / "ours.ply"), kind, byte_order, text)
    loaded = load_ply(tmp_path / "theirs.ply")
    for name, tensor in cloud.tensors.items():
        torch.testing.assert_close(getattr(loaded, name), tensor, rtol=1e-6, atol=0)


def test_any_order_missing_normals_and_extra_properties_load(tmp_path):
    cloud = make_cloud(3)
    save_ply(cloud, tmp_path / "ours.ply")
    columns = columns_of(tmp_path / "ours.ply")
    for name in ("nx", "ny", "nz"):
        del columns[name]
    shuffled = dict(reversed(columns.items()))
    table = {"segment": np.arange(20.0), **shuffled, "uncertainty": np.full(20, np.nan)}
    write_table(tmp_path / "theirs.ply", table)
    assert_equal(cloud, load_ply(tmp_path / "theirs.ply"))


def test_windows_line_ends_comments_and_other_elements_load(tmp_path):
    columns = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
    columns += ["rot_0", "rot_1", "rot_2", "rot_3"]
    header = ["ply", "format ascii 1.0", "comment by someone else", "element vertex 2"]
    header += [f"property float {name}" for name in columns]
    header += ["element face 1", "property list uchar int vertex_indices", "end_header"]
    rows = [" ".join(str(value) for value in range(start, start + 14)) for start in (0, 20)]
    (tmp_path / "scene.ply").write_bytes("\r\n".join([*header, *rows, "3 0 1 1", ""]).encode())
    loaded = load_ply(tmp_path / "scene.ply")
    assert loaded.means.tolist() == [[0, 1, 2], [20, 21, 22]]
    assert loaded.sh_dc.tolist() == [[3, 4, 5], [23, 24, 25]]
    assert loaded.quats.tolist() == [[10, 11, 12, 13], [30, 31, 32, 33]]
    assert loaded.sh_degree == 0


def refused(path: Path) -> str:
    """Return the one sentence with which ``path`` is refused."""
    with pytest.raises(InputError) as caught:
        load_ply(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_missing_properties_are_named(tmp_path):
    save_ply(make_cloud(0), tmp_path / "ours.ply")
    columns = columns_of(tmp_path / "ours.ply")
    del columns["rot_2"], columns["opacity"]
    write_table(tmp_path / "scene.ply", columns)
    message = refused(tmp_path / "scene.ply")
    assert "lacks the properties opacity, rot_2" in message


@pytest.mark.parametrize("count", [1, 8, 10, 44, 72])
def test_other_counts_of_coefficients_are_refused(count, tmp_path):
    save_ply(make_cloud(0), tmp_path / "ours.ply")
    columns = columns_of(tmp_path / "ours.ply") | {f"f_rest_{index}": np.zeros(20) for index in range(count)}
    write_table(tmp_path / "scene.ply", columns)
    assert f"{count} f_rest properties; expected 0, 9, 24 or 45" in refused(tmp_path / "scene.ply")


def test_gap_in_the_coefficients_is_named(tmp_path):
    save_ply(make_cloud(1), tmp_path / "ours.ply")
    columns = columns_of(tmp_path / "ours.ply")
    columns["f_rest_9"] = columns.pop("f_rest_4")
    write_table(tmp_path / "scene.ply", columns)
    assert "lacks f_rest_4" in refused(tmp_path / "scene.ply")


def test_point_cloud_is_told_apart_from_a_scene(tmp_path):
    table = np.zeros(4, dtype=[("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")])
    PlyData([PlyElement.describe(table, "vertex")]).write(str(tmp_path / "points.ply"))
    assert "holds points, not Gaussians" in refused(tmp_path / "points.ply")


def test_non_finite_rows_are_counted(tmp_path):
    cloud = make_cloud(1)
    cloud.quats[3, 1] = float("nan")
    cloud.quats[7, 0] = float("inf")
    cloud.quats[7, 2] = float("nan")
    save_ply(cloud, tmp_path / "scene.ply")
    assert "quats holds NaN or infinite values in 2 of 20 rows" in refused(tmp_path / "scene.ply")


@pytest.mark.parametrize("degree", [0, 3])
@pytest.mark.parametrize(("kind", "text"), [("f4", False), ("f8", False), ("f4", True)])
def test_ends_of_the_range_are_read_and_counted(degree, kind, text, tmp_path):
    cloud = make_cloud(degree)
    save_ply(cloud, tmp_path / "ours.ply")
    columns = columns_of(tmp_path / "ours.ply")
    columns["opacity"][:4] = np.inf
    columns["opacity"][4:6] = -np.inf
    columns["scale_1"][3:8] = -np.inf
    write_table(tmp_path / "theirs.ply", columns, kind, text=text)
    said: list[str] = []
    loaded = load_ply(tmp_path / "theirs.ply", said)
    loaded.check_finite("theirs")
    opacities = loaded.logit_opacities.sigmoid()
    assert (opacities[:4] == 1).all()
    assert (opacities[4:6] == 0).all()
    torch.testing.assert_close(loaded.logit_opacities[6:], cloud.logit_opacities[6:])
    usual = loaded.log_scales[8:].median()
    assert ((loaded.log_scales[3:8, 1] - usual).exp() < 1e-5).all(), "as good as none beside the others"
    torch.testing.assert_close(loaded.log_scales[:, 0], cloud.log_scales[:, 0])
    assert [sentence.split(" Gaussians of ")[0] for sentence in said] == ["4 of 20", "2 of 20", "5 of 20"]
    for sentence, meaning in zip(said, ("an opacity of 1", "an opacity of 0", "a size of 0"), strict=True):
        assert meaning in sentence
    with pytest.warns(UserWarning, match="of 20 Gaussians"):
        load_ply(tmp_path / "theirs.ply")


def test_a_scene_of_flat_points_alone_is_read(tmp_path):
    save_ply(make_cloud(0), tmp_path / "ours.ply")
    columns = columns_of(tmp_path / "ours.ply")
    for axis in range(3):
        columns[f"scale_{axis}"][:] = -np.inf
    write_table(tmp_path / "theirs.ply", columns)
    assert torch.isfinite(load_ply(tmp_path / "theirs.ply", []).log_scales).all()


@pytest.mark.parametrize(
    ("column", "value", "name"),
    [
        ("opacity", np.nan, "logit_opacities"),
        ("scale_0", np.nan, "log_scales"),
        ("scale_0", np.inf, "log_scales"),
        ("x", -np.inf, "means"),
        ("f_dc_1", np.inf, "sh_dc"),
    ],
)
def test_what_means_nothing_is_refused(column, value, name, tmp_path):
    save_ply(make_cloud(0), tmp_path / "ours.ply")
    columns = columns_of(tmp_path / "ours.ply")
    columns[column][2] = value
    write_table(tmp_path / "theirs.ply", columns)
    assert f"{name} holds NaN or infinite values in 1 of 20 rows" in refused(tmp_path / "theirs.ply")


@pytest.mark.parametrize("degree", [0, 2])
def test_rows_of_zeros_are_left_out_and_counted(degree, tmp_path):
    cloud = make_cloud(degree)
    save_ply(cloud, tmp_path / "ours.ply")
    columns = columns_of(tmp_path / "ours.ply")
    for column in columns.values():
        column[[3, 4, 19]] = 0
    columns["rot_0"][5], columns["rot_1"][5], columns["rot_2"][5], columns["rot_3"][5] = 0, 0, 0, 0
    write_table(tmp_path / "theirs.ply", columns)
    said: list[str] = []
    loaded = load_ply(tmp_path / "theirs.ply", said)
    kept = [row for row in range(20) if row not in (3, 4, 19)]
    assert torch.equal(loaded.means, cloud.means[kept])
    assert torch.equal(loaded.sh_rest, cloud.sh_rest[kept])
    assert said == [f"3 of 20 rows of {tmp_path / 'theirs.ply'} hold nothing but zeros and are left out"]
    for column in columns.values():
        column[:] = 0
    write_table(tmp_path / "theirs.ply", columns)
    assert "holds nothing but zeros in all 20 rows" in refused(tmp_path / "theirs.ply")


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_truncated_files_are_refused(share, text, tmp_path):
    save_ply(make_cloud(3, count=50), tmp_path / "whole.ply")
    write_table(tmp_path / "other.ply", columns_of(tmp_path / "whole.ply"), text=text)
    content = (tmp_path / "other.ply").read_bytes()
    # Cut whole rows' worth: half a digit at the end of an ASCII file cannot be told from a number.
    size = int(share * len(content)) if not text else content.rindex(b"\n", 0, int(share * len(content))) + 1
    (tmp_path / "cut.ply").write_bytes(content[:size])
    message = refused(tmp_path / "cut.ply")
    assert "truncated" in message or "end-of-file" in message


@pytest.mark.parametrize("encoding", ["binary_little_endian", "ascii"])
@pytest.mark.parametrize("count", [10**6, 10**15, 10**30])
def test_header_that_promises_too_much_allocates_nothing(count, encoding, tmp_path):
    lines = ["ply", f"format {encoding} 1.0", f"element vertex {count}"]
    lines += [f"property float {name}" for name in layout(0)]
    (tmp_path / "scene.ply").write_bytes("\n".join([*lines, "end_header", ""]).encode() + bytes(100))
    assert f"the header promises at least {count * 17 * (4 if 'binary' in encoding else 2)} bytes" in refused(
        tmp_path / "scene.ply"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not a PLY file"),
        (b"\x89PNG\r\n", "is not a PLY file"),
        (b"ply\nformat binary_little_endian 1.0\nelement vertex 3\n", "has no end"),
        (b"ply\nformat ascii 1.0\nelement vertex -1\nproperty float x\nend_header\n", "element vertex -1"),
        (b"ply\nformat ascii 1.0\nelement vertex many\nproperty float x\nend_header\n", "element vertex many"),
        (b"ply\nformat morse 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n\n\n\n", "cannot|can be read"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\nx\n", "can be read"),
        (b"ply\nformat ascii 1.0\nelement face 0\nproperty float x\nend_header\n", "no element 'vertex'"),
        (b"ply\nformat ascii 1.0\nelement vertex 9999\nend_header\n", "promises"),
    ],
)
def test_what_is_no_ply_is_refused(content, expected, tmp_path):
    (tmp_path / "scene.ply").write_bytes(content)
    message = refused(tmp_path / "scene.ply")
    assert any(part in message for part in expected.split("|")), message


def test_absent_file_folder_and_empty_scene_are_refused(tmp_path):
    assert "there is no scene at" in refused(tmp_path / "nothing.ply")
    assert "there is no scene at" in refused(tmp_path)
    save_ply(make_cloud(0, count=0), tmp_path / "empty.ply")
    assert "holds no Gaussians" in refused(tmp_path / "empty.ply")


def test_list_properties_are_refused(tmp_path):
    columns = [name for name in layout(0) if not name.startswith("n")]
    header = ["ply", "format ascii 1.0", "element vertex 1"]
    header += [f"property {'list uchar float' if name == 'opacity' else 'float'} {name}" for name in columns]
    values = ["2 1 1" if name == "opacity" else "1" for name in columns]
    (tmp_path / "scene.ply").write_text("\n".join([*header, "end_header", " ".join(values), ""]))
    assert "opacity holds lists" in refused(tmp_path / "scene.ply")


def test_save_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "new" / "folder" / "scene.ply"
    save_ply(make_cloud(1), path)
    save_ply(make_cloud(2), path)
    assert_equal(load_ply(path), make_cloud(2))
    assert [item.name for item in path.parent.iterdir()] == ["scene.ply"]


def test_full_disk_leaves_the_old_scene(tmp_path, monkeypatch):
    path = tmp_path / "scene.ply"
    save_ply(make_cloud(1), path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write the scene to .*scene\.ply: No space left on device") as caught:
        save_ply(make_cloud(2), path)
    assert "\n" not in str(caught.value)
    assert_equal(load_ply(path), make_cloud(1))
    assert [item.name for item in tmp_path.iterdir()] == ["scene.ply"]


def test_write_that_stops_half_way_leaves_the_old_scene(tmp_path):
    path = tmp_path / "scene.ply"
    save_ply(make_cloud(1), path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(InputError, match="cannot write the scene to"):
            save_ply(make_cloud(3, count=1000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_equal(load_ply(path), make_cloud(1))
    assert [item.name for item in tmp_path.iterdir()] == ["scene.ply"]


def test_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot write the scene to"):
        save_ply(make_cloud(0), tmp_path / "file" / "scene.ply")


def test_what_is_not_of_a_gaussian_is_named(tmp_path):
    names = [*layout(0), "label", "red"]
    table = np.zeros(3, [(name, "<f4") for name in names])
    table["rot_0"] = 1
    said: list[str] = []
    for extra, expected in (
        ("label", "holds properties that are not of a Gaussian and are left out: label"),
        ("filter_3D", "by which Mip-Splatting changes sizes and opacities, and it is not applied"),
    ):
        table.dtype.names = tuple(extra if name in ("label", "filter_3D") else name for name in table.dtype.names)
        PlyData([PlyElement.describe(table, "vertex")]).write(tmp_path / "scene.ply")
        load_ply(tmp_path / "scene.ply", said)
        assert expected in said.pop()
        assert not said


def test_centres_that_float32_rounds_are_told(tmp_path):
    table = np.zeros(3, [(name, "<f8") for name in layout(0)])
    table["rot_0"], table["scale_0"], table["scale_1"], table["scale_2"] = 1, -4, -4, -4
    for place, count in ((4.5e6 + 0.3, 1), (2.3, 0)):
        table["x"] = place
        PlyData([PlyElement.describe(table, "vertex")]).write(tmp_path / "scene.ply")
        said: list[str] = []
        load_ply(tmp_path / "scene.ply", said)
        assert len(said) == count
