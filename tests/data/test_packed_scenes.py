"""Packed scenes are told by what they hold, under any ending, wherever a scene file is taken."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from splatopt.cli import main
from splatopt.core.checks import InputError
from splatopt.data.packed_scenes import packed_kind
from splatopt.data.point_files import read_ply_points
from splatopt.scene.ply import load_ply
from train.toys import make_toy_capture


def compressed_ply() -> bytes:
    header = ["ply", "format binary_little_endian 1.0", "element chunk 1", "property float min_x"]
    header += ["element vertex 1", *(f"property uint packed_{name}" for name in ("position", "rotation", "scale"))]
    return "\n".join([*header, "end_header", ""]).encode() + bytes(16)


def splat(count: int = 40) -> bytes:
    rng = np.random.default_rng(0)
    rows = np.zeros(count, dtype=[("center", "<f4", 3), ("size", "<f4", 3), ("color", "u1", 4), ("quat", "u1", 4)])
    quats = rng.normal(size=(count, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    rows["center"], rows["size"] = rng.normal(size=(count, 3)), rng.uniform(0.001, 0.1, (count, 3))
    rows["color"], rows["quat"] = rng.integers(0, 256, (count, 4)), np.clip(quats * 128 + 128, 0, 255)
    return rows.tobytes()


def spz() -> bytes:
    return gzip.compress(b"NGSP" + struct.pack("<II", 2, 1) + bytes(40), mtime=0)


def ksplat() -> bytes:
    head = struct.pack("<BBHIIIIH", 0, 1, 0, 1, 1, 100, 100, 1)
    return head + bytes(4096 - len(head)) + bytes(1024) + bytes(4400)


def sog() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("meta.json", json.dumps({"version": 2}))
        for name in ("means_l.webp", "means_u.webp", "quats.webp"):
            archive.writestr(name, b"RIFF")
    return packed.getvalue()


def sog_parts() -> bytes:
    return json.dumps({"version": 2, "means": {"files": ["means_l.webp", "means_u.webp"]}}).encode()


PACKED = [
    (compressed_ply, "SuperSplat's compressed PLY"),
    (splat, "the .splat of web viewers"),
    (spz, "Niantic's SPZ"),
    (lambda: gzip.decompress(spz()), "Niantic's SPZ"),
    (ksplat, "the .ksplat of GaussianSplats3D"),
    (sog, "PlayCanvas' SOG"),
    (sog_parts, "PlayCanvas' SOG"),
]


@pytest.mark.parametrize(("content", "name"), PACKED)
@pytest.mark.parametrize("ending", ["ply", "splat", "spz", "bin"])
def test_each_is_called_by_its_name_under_any_ending(tmp_path, content, name, ending):
    path = tmp_path / f"scene.{ending}"
    path.write_bytes(content())
    kind = packed_kind(path)
    assert kind is not None
    assert kind.value == name
    for read in (load_ply, lambda file: read_ply_points(file, [])):
        with pytest.raises(InputError) as caught:
            read(path)
        assert f"is packed ({name}), where plain rows are expected; `splatopt convert FILE" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ply\nformat ascii 1.0\n",
        b"{}",
        bytes(32),
        bytes(6400),
        b"\xff" * 64,
        b"PK\x03\x04 and nothing",
        b"\x1f\x8b and nothing",
        gzip.compress(b"a log", mtime=0),
        np.random.default_rng(0).bytes(32 * 50),
        ksplat()[:4500],
    ],
)
def test_other_files_are_not(tmp_path, content):
    (tmp_path / "scene.splat").write_bytes(content)
    assert packed_kind(tmp_path / "scene.splat") is None
    with pytest.raises(InputError, match="is not a readable Gaussian scene"):
        load_ply(tmp_path / "scene.splat")


def test_commands_take_them_or_say_what_is_wrong(tmp_path, capsys):
    capture = make_toy_capture(tmp_path / "toy")
    for content, ending, code, said in (
        (splat(), "splat", 0, "split every-8th-test"),
        (splat(), "ply", 0, "split every-8th-test"),
        (spz()[:-4], "spz", 2, "is not a readable SPZ file"),
        (compressed_ply(), "ply", 2, "is not a readable compressed PLY"),
    ):
        scene: Path = tmp_path / f"scene.{ending}"
        scene.write_bytes(content)
        assert main(["eval", str(scene), str(capture)]) == code
        captured = capsys.readouterr()
        assert said in " ".join((captured.err if code else captured.out).split())
        if code:
            assert captured.err.count("\n") == 1
    (tmp_path / "scene.splat").write_bytes(splat())
    words = ["train", str(capture), "--init", str(tmp_path / "scene.splat"), "--steps", "1", "--sh-degree", "0"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert len(load_ply(tmp_path / "run" / "scene.ply")) == 40
