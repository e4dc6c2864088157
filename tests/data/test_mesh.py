"""Meshes: read, boxed, sampled, and what lies inside them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import trimesh

from splatopt.cli import main
from splatopt.core.checks import InputError
from splatopt.data import mesh as mesh_module
from splatopt.data.mesh import (
    BOX,
    crossings_above,
    inside,
    load_mesh,
    make_mesh,
    sample_surface,
    winding_numbers,
    write_mesh,
)
from splatopt.data.torus_knot import make_torus_knot


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cube() -> tuple[torch.Tensor, torch.Tensor]:
    """[0, 2]³ by twelve triangles, normals outwards."""
    vertices = torch.tensor([[x, y, z] for x in (0, 2) for y in (0, 2) for z in (0, 2)], dtype=torch.float64)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))]
    return vertices, torch.tensor(faces)


def in_cube(points):
    return (points.abs() < BOX).all(dim=1)


@pytest.fixture(params=["obj", "ply", "stl", "off"])
def cube_file(request, tmp_path) -> Path:
    write_mesh(tmp_path / f"cube.{request.param}", *cube())
    return tmp_path / f"cube.{request.param}"


def test_a_mesh_is_read_and_brought_into_the_box(cube_file):
    mesh = load_mesh(cube_file)
    assert mesh.watertight
    assert mesh.faces.shape == (12, 3)
    assert mesh.vertices.shape == (8, 3), "corners that STL names anew are one vertex"
    assert mesh.vertices.amin(dim=0).tolist() == pytest.approx([-BOX] * 3)
    assert mesh.vertices.amax(dim=0).tolist() == pytest.approx([BOX] * 3)
    back = mesh.restored(mesh.vertices)
    assert back.amin().item() == pytest.approx(0, abs=1e-12)
    assert back.amax().item() == pytest.approx(2)


@pytest.mark.parametrize("ending", ["obj", "ply", "off"])
@pytest.mark.parametrize(
    ("scale", "shift"), [(1.0, (5e5, 5e6, 100.0)), (1e-9, (0.0, 0.0, 0.0)), (1e3, (1e9, 0.0, 0.0))]
)
def test_neither_units_nor_place_show_in_a_mesh(tmp_path, ending, scale, shift):
    """Written as separate triangles, so that corners are joined on reading."""
    knot = make_torus_knot(around=6, along=40)
    corners, faces = knot.corners.reshape(-1, 3), torch.arange(3 * len(knot.faces)).reshape(-1, 3)
    write_exactly(tmp_path / f"here.{ending}", corners, faces)
    write_exactly(tmp_path / f"there.{ending}", scale * corners + torch.tensor(shift, dtype=torch.float64), faces)
    here, there = load_mesh(tmp_path / f"here.{ending}"), load_mesh(tmp_path / f"there.{ending}")
    assert here.watertight
    assert there.watertight
    assert torch.equal(here.faces, there.faces)
    # Float64 holds coordinates at UTM's distance to 1e-9.
    torch.testing.assert_close(there.vertices, here.vertices, rtol=0, atol=1e-8)
    restored = (there.restored(there.vertices) - torch.tensor(shift)) / scale
    torch.testing.assert_close(restored, here.restored(here.vertices), rtol=0, atol=1e-8)


def write_exactly(path: Path, vertices: torch.Tensor, faces: torch.Tensor) -> None:
    """Write a mesh to the last bit, in text or as doubles."""
    rows = [" ".join(repr(value) for value in row) for row in vertices.tolist()]
    if path.suffix == ".ply":
        write_mesh(path, vertices, faces)
    elif path.suffix == ".obj":
        corners = [" ".join(str(index + 1) for index in face) for face in faces.tolist()]
        path.write_text("\n".join([*(f"v {row}" for row in rows), *(f"f {face}" for face in corners), ""]))
    else:
        corners = ["3 " + " ".join(map(str, face)) for face in faces.tolist()]
        path.write_text("\n".join(["OFF", f"{len(rows)} {len(corners)} 0", *rows, *corners, ""]))


def test_a_ply_is_written_to_the_last_bit(tmp_path):
    vertices, faces = cube()
    far = vertices * 0.123456789 + torch.tensor([5e5, 5e6, 100.0], dtype=torch.float64)
    write_mesh(tmp_path / "far.ply", far, faces)
    again = trimesh.load(tmp_path / "far.ply", process=False)
    assert torch.equal(torch.from_numpy(again.vertices.copy()), far)
    assert torch.equal(torch.from_numpy(again.faces.copy()).long(), faces)


def test_the_longest_side_decides_the_scale():
    vertices, faces = cube()
    mesh = make_mesh(vertices * torch.tensor([1.0, 3.0, 0.5]), faces, watertight=True)
    extent = (mesh.vertices.amax(dim=0) - mesh.vertices.amin(dim=0)).tolist()
    assert extent == pytest.approx([2 * BOX / 3, 2 * BOX, BOX / 3])


def test_parity_and_winding_numbers_know_a_cube():
    mesh = make_mesh(*cube(), watertight=True)
    points = torch.rand(3000, 3, generator=generator(), dtype=torch.float64) * 2 - 1
    assert torch.equal((crossings_above(mesh, points) != 0), in_cube(points))
    numbers = winding_numbers(mesh, points)
    assert torch.allclose(numbers, in_cube(points).double(), atol=1e-9)


def test_axis_parallel_rays_through_edges_and_corners_are_no_trouble():
    mesh = make_mesh(*cube(), watertight=True)
    axis = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis, axis)
    assert torch.equal((crossings_above(mesh, points) != 0), in_cube(points))


@pytest.mark.slow
def test_the_two_agree_on_a_knot_whose_volume_they_find():
    mesh = make_torus_knot(around=12, along=96)
    near = sample_surface(mesh, 500, generator()) + 0.02 * torch.randn(500, 3, generator=generator(1)).double()
    points = torch.cat([torch.rand(500, 3, generator=generator(2), dtype=torch.float64) * 2 - 1, near])
    parity = crossings_above(mesh, points) != 0
    assert 100 < int(parity.sum()) < 900
    assert torch.equal(parity, winding_numbers(mesh, points) > 0.5)
    a, b, c = mesh.corners.unbind(dim=1)
    volume = float((a * torch.linalg.cross(b, c)).sum()) / 6
    cells = torch.rand(100_000, 3, generator=generator(3), dtype=torch.float64) * 2 - 1
    share = inside(mesh, cells).double().mean()
    assert float(share) * 8 == pytest.approx(volume, abs=4 * 8 * math.sqrt(volume / 8 / 100_000))


def test_where_closed_parts_overlap_is_inside():
    vertices, faces = cube()
    both = torch.cat([vertices, vertices + 0.75]), torch.cat([faces, faces + len(vertices)])
    mesh = make_mesh(*both, watertight=True)
    points = torch.rand(2000, 3, generator=generator(), dtype=torch.float64) * 2 - 1
    numbers = winding_numbers(mesh, points)
    assert int((numbers > 1.5).sum()) > 10
    assert torch.equal(crossings_above(mesh, points), numbers.round().long())
    assert torch.equal(inside(mesh, points), numbers > 0.5)
    inverted = make_mesh(both[0], both[1].flip(1), watertight=True)
    assert torch.equal(inside(inverted, points), inside(mesh, points))


def test_points_outside_the_grid_are_outside():
    mesh = make_mesh(*cube(), watertight=True)
    assert not inside(mesh, torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, -5.0], [0.0, 9.0, 0.0]])).any()


def test_an_open_mesh_is_judged_by_winding_numbers_whatever_its_direction():
    vertices, faces = cube()
    for some in (faces[:-2], faces[:-2].flip(1)):
        mesh = make_mesh(vertices, some, watertight=False)
        points = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -0.8], [0.0, 0.0, 1.5], [0.0, 0.0, 0.0]])
        numbers = winding_numbers(mesh, points).abs()
        assert float(numbers[0]) == pytest.approx(5 / 6), "a cube's face fills a sixth of the sphere"
        assert inside(mesh, points).tolist() == [True, True, False, True]


def test_an_open_file_is_said_to_be_open(tmp_path):
    vertices, faces = cube()
    write_mesh(tmp_path / "open.ply", vertices, faces[:-1])
    assert not load_mesh(tmp_path / "open.ply").watertight


def test_samples_of_the_surface_are_uniform():
    vertices, faces = cube()
    mesh = make_mesh(vertices * torch.tensor([1.0, 1.0, 0.5]), faces, watertight=True)
    points = sample_surface(mesh, 40_000, generator())
    on_top = (points[:, 2].abs() - BOX / 2).abs() < 1e-12
    on_side = ((points[:, :2].abs() - BOX).abs() < 1e-12).any(dim=1)
    assert (on_top | on_side).all()
    # Two squares of side 1.8 and four of 1.8 by 0.9: half of the surface each.
    assert float(on_top.double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / 200)
    assert points[on_top][:, :2].mean(dim=0).abs().max() < 4 * BOX / math.sqrt(3) / 140
    assert float(points[on_top][:, 0].std()) == pytest.approx(BOX / math.sqrt(3), rel=0.03)


def test_the_knot_is_closed_and_as_large_as_asked(tmp_path):
    mesh = make_torus_knot(around=8, along=60)
    write_mesh(tmp_path / "knot.ply", mesh.vertices, mesh.faces)
    again = load_mesh(tmp_path / "knot.ply")
    assert again.watertight
    assert (len(again.vertices), len(again.faces)) == (8 * 60, 2 * 8 * 60)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.obj", None, "no mesh at"),
        ("mesh.xyzzy", b"v 0 0 0", "has an ending that cannot be read"),
        ("packed.zip", b"PK", "has an ending that cannot be read"),
        ("empty.obj", b"", "cannot be read|no triangles"),
        ("points.obj", b"v 0 0 0\nv 1 0 0\n", "cannot be read|no triangles"),
        (
            "broken.ply",
            b"ply\nformat binary_little_endian 1.0\nelement vertex 99999999999\nproperty float x\n",
            "not a readable mesh: the PLY header has no end within 16 MiB",
        ),
        ("broken.stl", b"solid of nothing", "cannot be read|no triangles"),
        ("flat.obj", b"v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "no triangles|no extent|cannot be read"),
        ("huge.obj", b"v 0 0 0\nv 1 0 0\nv 0 inf 0\nf 1 2 3\n", "infinite|cannot be read"),
    ],
)
def test_what_is_no_mesh_is_refused_in_a_sentence(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        load_mesh(tmp_path / name)


def test_a_file_that_is_too_large_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("splatopt.data.mesh.MAX_FILE_BYTES", 10)
    (tmp_path / "large.obj").write_bytes(b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    with pytest.raises(InputError, match="is larger than"):
        load_mesh(tmp_path / "large.obj")


def box_of(**corners: str) -> bytes:
    """A cube in OBJ, some of whose corners (v0 to v7) are written otherwise."""
    lines = [f"v {x} {y} {z}" for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    for name, text in corners.items():
        lines[int(name[1:])] = text
    faces = "1 2 4,1 4 3,5 7 8,5 8 6,1 5 6,1 6 2,3 4 8,3 8 7,1 3 7,1 7 5,2 6 8,2 8 4"
    return "\n".join([*lines, *(f"f {face}" for face in faces.split(",")), ""]).encode()


HEADER = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\n"
FACES = "element face 1\nproperty list uchar int vertex_indices\nend_header\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.obj", box_of(v5="v 1 0 "), "the corner of line 6 should be three finite numbers, got '1 0'"),
        ("a.obj", box_of(v5="v"), "the corner of line 6 should be three finite numbers, got ''"),
        ("a.obj", box_of(v5="v 1 0 nan"), "should be three finite numbers, got '1 0 nan'"),
        ("a.obj", box_of(v5="v 1 0 \x1b[31m"), r"got '1 0 \\x1b\[31m'"),
        ("a.obj", box_of(v5="v 1 0 1e30"), r"reaches 1e\+30 from the origin"),
        ("a.obj", box_of(v5="# gone"), "a face names corner 8 of 7"),
        ("a.obj", box_of() + b"f 1 2 0\n", "name corners by numbers from 1 on, got '0'"),
        ("a.obj", box_of() + b"f 1 2 -9\n", "a face names corner 0 of 8"),
        ("a.obj", box_of() + b"f 1 2\n", "line 21 is a face of 2 corners"),
        ("a.obj", box_of() + b"f 1 2 x/y\n", "got 'x/y'"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "has no surface"),
        ("a.obj", b"v 0 0\nv 1 0\nv 0 1\nf 1 2 3\n", "should be three finite numbers"),
        (
            "a.ply",
            (HEADER + FACES + "0 0\n1 0\n0 1\n3 0 1 2\n").encode(),
            "cannot be read|expected corners of 3 numbers",
        ),
        (
            "a.ply",
            (HEADER + "property float z\n" + FACES + "0 0 0\n1 0 0\n0 1\n3 0 1 2\n").encode(),
            "row 2 of 'vertex' is '0 1', not 3 numbers",
        ),
        (
            "a.ply",
            (HEADER + "property float z\n" + FACES + "0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n").encode(),
            "cannot be read|a face names a corner that is not among its 3",
        ),
        ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1\n3 0 1 2\n", "cannot be read"),
        ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 9\n", "cannot be read"),
        ("a.off", b"OFF\n99999999999 1 0\n0 0 0\n", "cannot be read"),
        (
            "a.stl",
            b"solid a\nfacet\nvertex 0 0 0\nvertex 1 0\nvertex 0 1 0 0\nendfacet\nendsolid a\n",
            "line 4 should be",
        ),
        ("a.stl", bytes(80) + (10**9).to_bytes(4, "little") + bytes(50), "claims 1000000000 triangles but holds 134"),
        ("a.gltf", b'{"accessors": [{"count": 1000000000000}]}', "claims 1000000000000 numbers"),
        ("a.gltf", b"[" * 100_000, "its description is no JSON"),
        ("a.gltf", b"[]", "holds no glTF scene"),
        ("a.glb", b"glTF" + bytes(4) + bytes(4) + b"\xff\xff\xff\x7f" + bytes(4), "claims 2147483647 bytes of JSON"),
    ],
)
def test_what_trimesh_would_let_through_is_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        load_mesh(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_the_command_line_names_a_damaged_mesh(tmp_path, capsys):
    (tmp_path / "cube.obj").write_bytes(box_of(v5="v 1 0 "))
    words = ["fit", str(tmp_path / "cube.obj"), "--width", "8", "--steps", "2", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("splatopt: mesh ")
    assert "cube.obj cannot be read: the corner of line 6" in said
    assert said.count("\n") == 1


def test_instances_of_a_scene_are_counted_before_they_are_made(tmp_path, monkeypatch):
    trimesh.creation.box().export(tmp_path / "box.glb")
    assert len(load_mesh(tmp_path / "box.glb").faces) == 12
    monkeypatch.setattr("splatopt.data.mesh_files.MAX_FACES", 100)
    node = {"mesh": 0}
    values = {
        "accessors": [{"count": 36}],
        "meshes": [{"primitives": [{"indices": 0}]}],
        "nodes": [node] * 500,
    }
    (tmp_path / "many.gltf").write_text(json.dumps(values))
    with pytest.raises(InputError, match="its instances add up to 18000 faces"):
        load_mesh(tmp_path / "many.gltf")


def test_obj_with_all_that_a_mesh_does_not_need_is_read(tmp_path):
    text = box_of().decode().replace("f 1 2 4", "f 1 2 \\\n4")
    (tmp_path / "a.obj").write_text("mtllib none.mtl\nusemtl x\no box\ng y\ns 1\nvn 0 0 1\n" + text + "f 1 -7 -5\n")
    assert len(load_mesh(tmp_path / "a.obj").faces) == 13


def test_many_large_faces_take_no_memory_beyond_a_bound(monkeypatch):
    """Cells are made larger where faces lie in all of them; what lies inside is the same."""
    vertices, faces = cube()
    copies = [vertices * (1 - 0.01 * index) for index in range(20)]
    mesh = make_mesh(
        torch.cat(copies), torch.cat([faces + len(vertices) * index for index in range(20)]), watertight=True
    )
    points = torch.rand(500, 3, generator=generator(), dtype=torch.float64) * 2 - 1
    expected = crossings_above(mesh, points)
    asked = []
    cells = mesh_module._cells
    monkeypatch.setattr(mesh_module, "_cells", lambda *given: asked.append(given[3]) or cells(*given))
    assert torch.equal(crossings_above(mesh, points), expected)
    monkeypatch.setattr(mesh_module, "_LISTED", 1000)
    assert torch.equal(crossings_above(mesh, points), expected)
    assert asked[1] < asked[0]
