"""PLY tables: whatever the header claims is held against the file before anything is allocated."""

from __future__ import annotations

import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from capture_cases import write_transforms

from splatopt.cli import main
from splatopt.core.checks import InputError
from splatopt.data.ply_table import MAX_HEADER, MAX_PROPERTIES, check_rows, read_vertices
from splatopt.data.point_files import read_ply_points
from splatopt.scene.ply import load_ply

POINT = ["property float x", "property float y", "property float z"]
GAUSSIAN = [
    *POINT,
    *(
        f"property float {name}_{index}"
        for name, count in (("f_dc", 3), ("scale", 3), ("rot", 4))
        for index in range(count)
    ),
    "property float opacity",
]
FORMS = ["ascii", "binary_little_endian", "binary_big_endian"]


def write(path: Path, form: str, lines: list[str], body: bytes) -> Path:
    path.write_bytes("\n".join(["ply", f"format {form} 1.0", *lines, "end_header", ""]).encode() + body)
    return path


def comments(length: int) -> list[str]:
    """Comments of so many bytes together, in lines of a thousand."""
    return ["comment " + "x" * 991] * (length // 1000)


@pytest.fixture
def bounded():
    """Less address space than any of the claims of these tests would take."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [0, 70_000, 2_000_000])
@pytest.mark.parametrize("one_line", [True, False])
def test_a_count_behind_a_long_comment(tmp_path, form, length, one_line):
    before = ["comment " + "x" * length] if one_line else comments(length)
    file = write(tmp_path / "a.ply", form, [*before, "element vertex 1000000000000", *GAUSSIAN], b"0 0 0\n")
    with pytest.raises(InputError, match=r"a\.ply is not a readable PLY point cloud: it claims 1000000000000 points"):
        read_ply_points(file, [])
    with pytest.raises(InputError, match=r"a\.ply is not a readable Gaussian scene: it claims 1000000000000 points"):
        load_ply(file)
    with pytest.raises(InputError, match=r"a\.ply is not a readable mesh: it claims 1000000000000 points"):
        check_rows(file, "mesh")


def test_the_command_line_says_it_in_a_sentence(tmp_path, capsys):
    lens = {"fl_x": 60, "fl_y": 60, "ply_file_path": "sparse.ply"}
    write_transforms(tmp_path, lens, views=3)
    lines = ["comment " + "x" * 70_000, "element vertex 1000000000000", *POINT]
    write(tmp_path / "sparse.ply", "ascii", lines, b"0 0 0\n")
    assert main(["inspect", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("splatopt: ")
    assert "sparse.ply is not a readable PLY point cloud: it claims 1000000000000 points" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_file_with_a_long_comment_is_read(tmp_path, form):
    order = {"binary_little_endian": "<", "binary_big_endian": ">"}.get(form)
    body = struct.pack(f"{order}6f", 1, 2, 3, 4, 5, 6) if order else b"1 2 3\n4 5 6"
    file = write(tmp_path / "a.ply", form, [*comments(100_000), "element vertex 2", *POINT], body)
    assert read_ply_points(file, []).positions.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_header_without_end_is_not_read_for_ever(tmp_path):
    file = tmp_path / "a.ply"
    file.write_bytes(b"ply\nformat ascii 1.0\ncomment " + b"x" * (MAX_HEADER + 10) + b"\nend_header\n")
    with pytest.raises(InputError, match="the PLY header has no end"):
        read_vertices(file, "table")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["element vertex 1", "property float x", "property float x"], "names the property 'x' twice"),
        (["element vertex 1", "element vertex 1"], "names the element 'vertex' twice"),
        (["property float x"], "names a property before the first element"),
        (["element vertex 1", "property list float int x"], "expected 'property TYPE NAME'"),
        (["element vertex 1", "property quad x"], "says 'property quad x', expected 'property TYPE NAME'"),
        (["element vertex ١"], "expected 'element NAME COUNT'"),
        (["element vertex 1e3"], "expected 'element NAME COUNT'"),
        (["elephant"], "its header says 'elephant'"),
        (
            ["element vertex 1"] + [f"property float x{i}" for i in range(MAX_PROPERTIES + 1)],
            "more than 4096 properties",
        ),
        (["element face 30", "property list uchar int i", "element vertex 1", "property float x"], "30 rows of 'face'"),
        (["comment " + "\x1b[31m" * 100, "nonsense " + "\x1b[31m" * 1000], r"'nonsense \\x1b\[31m.*…'"),
    ],
)
def test_headers_without_sense(tmp_path, lines, said):
    file = write(tmp_path / "a.ply", "binary_little_endian", lines, b"")
    with pytest.raises(InputError, match=said) as caught:
        read_vertices(file, "table")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [100, 2**31 - 1, 2**32 - 1, -1])
def test_a_list_that_claims_more_than_there_is(tmp_path, form, length):
    order = {"binary_little_endian": "<", "binary_big_endian": ">"}.get(form)
    kind = "i" if length < 0 else "I"
    body = struct.pack(f"{order}f{kind}3f", 1, length, 2, 3, 4) if order else f"1 {length} 2 3 4\n".encode()
    lines = ["element vertex 1", "property float x", f"property list {'int' if length < 0 else 'uint'} float l"]
    file = write(tmp_path / "a.ply", form, lines, body)
    said = "not 2 numbers that can be read" if form == "ascii" else f"row 0 of 'vertex' claims a list of {length}"
    with pytest.raises(InputError, match=said):
        read_vertices(file, "table")


def test_elements_before_the_vertices_are_passed_over(tmp_path):
    lines = ["element face 2", "property list uchar short i", "element vertex 1", "property double x", "element end 0"]
    body = struct.pack("<BhhBhd", 2, 7, 7, 1, 7, 0.5)
    assert read_vertices(write(tmp_path / "a.ply", FORMS[1], lines, body), "table").table.tolist() == [(0.5,)]
    text = read_vertices(write(tmp_path / "a.ply", "ascii", lines, b"2 7 7\n1 7\n0.5\n"), "table").table
    assert text.tolist() == [(0.5,)]
    assert text.dtype == np.dtype([("x", "f8")])


@pytest.mark.parametrize("word", ["256", "-1", "1.5", "nan", "inf", "1e300"])
def test_text_that_does_not_fit_its_type(tmp_path, word):
    file = write(tmp_path / "a.ply", "ascii", ["element vertex 1", "property uchar red"], f"{word}\n".encode())
    with pytest.raises(InputError, match="property 'red' holds a number that is no whole one of 8 bits"):
        read_vertices(file, "table")
