"""Whatever lies in a file from elsewhere: readers use it, or refuse it in a sentence.

Damaged files of every kind are read in a process of their own (:mod:`faults.reader_campaign`); what hypothesis makes
up is read here.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plyfile import PlyData, PlyElement

from faults.inputs import kinds, read_capture, write
from faults.reader_campaign import campaign, damaged
from splatopt.core.checks import InputError, cut, quoted, shown
from splatopt.data.capture import read_source
from splatopt.data.ply_table import read_vertices

SEED = 20_261_129
quick = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def check(counts) -> None:
    """No input may end in anything but use or a sentence, within the time and the memory."""
    assert not counts.failures, json.dumps(counts.failures[:5], indent=1)
    assert counts.used + counts.refused == counts.inputs
    assert 0 < counts.peak_mebibytes < 1024


def test_damaged_files_are_used_or_refused() -> None:
    counts = campaign(150, SEED)
    check(counts)
    assert counts.inputs == 150
    assert counts.used > 20
    assert counts.refused > 60


@pytest.mark.slow
def test_more_damaged_files_are_used_or_refused() -> None:
    counts = campaign(500, SEED + 1)
    check(counts)
    assert counts.inputs == 500


@pytest.mark.slow
def test_a_campaign_sees_a_signal_and_goes_on() -> None:
    counts = campaign(2, SEED, only="trial-signals")
    assert (counts.inputs, counts.signals, len(counts.failures)) == (2, 2, 2)
    assert [one["index"] for one in counts.failures] == [0, 1]
    with pytest.raises(AssertionError):
        check(counts)


@pytest.mark.slow
@pytest.mark.parametrize("outcome", ["traces", "unsafe", "bloated", "hangs", "used"])
def test_a_campaign_sees_other_faults(outcome) -> None:
    counts = campaign(1, SEED, only=f"trial-{outcome}", hang_seconds=3 if outcome == "hangs" else 30)
    assert (counts.inputs, getattr(counts, outcome), len(counts.failures)) == (1, 1, int(outcome != "used"))


def test_inputs_follow_from_the_seed(tmp_path) -> None:
    assert [damaged(3, index, tmp_path) for index in range(20)] == [damaged(3, index, tmp_path) for index in range(20)]
    assert damaged(3, 0, tmp_path) != damaged(4, 0, tmp_path)


def test_whole_files_of_every_kind_are_used(tmp_path) -> None:
    (tmp_path / "scratch").mkdir()
    for name, kind in kinds(tmp_path / "scratch").items():
        if not name.startswith("trial"):
            write(kind.files, tmp_path / name)
            kind.read(tmp_path / name)


# ---------------------------------------------------------------------- what hypothesis makes up


@settings(quick, max_examples=300)
@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_any_text_can_be_shown(text) -> None:
    seen = shown(text)
    assert shown(seen) == seen
    assert all(one.isprintable() or one in "\u00a0\u3000\u2000" or one.isspace() for one in seen)
    assert not set(seen) & {chr(code) for code in (*range(32), *range(127, 160))}
    seen.encode()
    assert len(quoted(text)) <= 2 + 10 * 80
    assert cut(text) == seen or len(text) > 80


NUMBERS = ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"]


@st.composite
def tables(draw) -> tuple[np.ndarray, str, bool]:
    """A table of vertices with numbers and lists of any type, a byte order, and whether it is text."""
    types = draw(st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=4))
    lists = draw(st.lists(st.sampled_from(["i4", "f4"]), max_size=2))
    order = draw(st.permutations(range(len(types) + len(lists))))
    fields = [(f"a{index}", kind) for index, kind in enumerate(types)]
    fields += [(f"l{index}", "O") for index in range(len(lists))]
    table = np.zeros(draw(st.integers(0, 5)), dtype=[fields[index] for index in order])
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    for name, kind in fields:
        for row in range(len(table)):
            if kind == "O":
                table[name][row] = rng.integers(0, 9, rng.integers(0, 4)).astype(lists[int(name[1:])])
            else:
                table[name][row] = rng.integers(0, 100) if kind[0] != "f" else rng.normal()
    return table, draw(st.sampled_from("<>")), draw(st.booleans())


@pytest.mark.filterwarnings("ignore:loadtxt")  # plyfile's, of empty tables
@quick
@given(tables())
def test_tables_are_read_as_plyfile_reads_them(tmp_path, made) -> None:
    table, order, text = made
    faces = PlyElement.describe(np.array([(1,)], dtype=[("a", "i4")]), "first")
    kinds_of_lists = {
        name: (table[name][0].dtype.str[1:] if len(table) else "i4") for name in table.dtype.names if name[0] == "l"
    }
    vertex = PlyElement.describe(table, "vertex", val_types=kinds_of_lists)
    PlyData([faces, vertex], text=text, byte_order=order, comments=["x" * 70_000]).write(str(tmp_path / "a.ply"))
    theirs = PlyData.read(str(tmp_path / "a.ply"))["vertex"].data
    ours = read_vertices(tmp_path / "a.ply", "table")
    assert ours.lists == tuple(name for name in table.dtype.names if name[0] == "l")
    assert len(ours.table) == len(table)
    for name in ours.table.dtype.names or ():
        np.testing.assert_array_equal(ours.table[name], theirs[name])
        assert ours.table[name].dtype.newbyteorder("=") == theirs[name].dtype.newbyteorder("=")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["camera_model", "fl_x", "fl_y", "cx", "cy", "w", "h", "k1", "k4", "p1", "ply_file_path", "frames", "aabb_scale"]


@quick
@given(st.dictionaries(st.sampled_from(KEYS), anything, min_size=1, max_size=3), st.booleans())
def test_frames_with_any_value_in_any_place(tmp_path, values, in_frame) -> None:
    (tmp_path / "scratch").mkdir(exist_ok=True)
    kind = kinds(tmp_path / "scratch")["nerfstudio"]
    content = json.loads(kind.files["transforms.json"])
    (content["frames"][1] if in_frame else content).update(values)
    write({**kind.files, "transforms.json": json.dumps(content).encode()}, tmp_path / "input")
    said = ""
    try:
        read_capture(tmp_path / "input")
    except InputError as error:
        said = str(error)
    assert len(said) < 2000


angles = st.floats(-math.pi, math.pi)
places = st.floats(-1e6, 1e6)


@quick
@given(
    st.lists(st.tuples(angles, places, places, places), min_size=1, max_size=4), st.floats(2, 1e4), st.floats(0.2, 5)
)
def test_whatever_is_a_camera_is_read_as_it_was_written(tmp_path, poses, focal, length) -> None:
    """Poses come back to rounding, whatever the quaternion's length within reason, from text."""
    lines = []
    for index, (angle, *place) in enumerate(poses):
        quaternion = [length * math.cos(angle / 2), 0.0, length * math.sin(angle / 2), 0.0]
        lines += [f"{index + 1} {' '.join(map(repr, (*quaternion, *place)))} 1 v{index}.jpg", ""]
    files = {
        "sparse/0/cameras.txt": f"1 PINHOLE 16 12 {focal!r} {focal!r} 8 6\n".encode(),
        "sparse/0/images.txt": ("\n".join(lines) + "\n").encode(),
        "images/v0.jpg": b"",
    }
    write(files, tmp_path)
    source = read_source(tmp_path)
    assert [image.name for image in source.images] == [f"v{index}.jpg" for index in range(len(poses))]
    for image, (angle, *place) in zip(source.images, poses, strict=True):
        expected = np.eye(4)
        expected[:3, :3] = [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
        expected[:3, 3] = place
        np.testing.assert_allclose(image.world_to_camera.numpy(), expected, atol=1e-12)
        assert image.lens.parameters == (focal, focal, 8, 6)
