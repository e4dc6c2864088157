"""Packed scenes: round trips, files made by hand from the formats' descriptions, and files that cannot be used."""

from __future__ import annotations

import gzip
import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from raster.cases import make_camera, random_cloud
from splatopt.core.checks import InputError
from splatopt.core.schema import rotation_matrices
from splatopt.metrics.image import psnr
from splatopt.raster.reference import render_reference
from splatopt.raster.types import RenderOptions
from splatopt.scene import gsply_files
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.ply import load_ply, save_ply
from splatopt.scene.scene_files import load_scene, save_scene

PACKED = [".spz", ".compressed.ply", ".splat"]


def make_cloud(degree: int = 3, count: int = 50) -> GaussianCloud:
    return random_cloud(torch.Generator().manual_seed(degree), count, degree).to(torch.float32)


def written(folder, ending: str, cloud: GaussianCloud | None = None) -> bytes:
    save_scene(make_cloud() if cloud is None else cloud, folder / f"scene{ending}", [])
    return (folder / f"scene{ending}").read_bytes()


def covariance(cloud: GaussianCloud) -> torch.Tensor:
    axes = rotation_matrices(cloud.quats) * cloud.log_scales.exp()[:, None, :]
    return axes @ axes.transpose(1, 2)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize(("ending", "least"), [(".spz", 45), (".compressed.ply", 45), (".splat", 45)])
def test_a_round_trip_looks_the_same(ending, least, degree, tmp_path):
    cloud, camera = make_cloud(degree), make_camera(48, 36)
    if ending == ".splat":
        cloud = cloud.with_sh_degree(0)
        cloud.sh_dc.clamp_(-1.7, 1.7)  # whose colours are within [0, 1]
    path, warnings = tmp_path / f"scene{ending}", []
    save_scene(cloud, path, warnings)
    # Whatever it is called.
    read = load_scene(path.rename(tmp_path / "other.bin"), warnings)
    assert (len(read), read.sh_degree, warnings) == (50, cloud.sh_degree, [])
    assert read.means.dtype == torch.float32
    assert set(os.listdir(tmp_path)) == {"other.bin"}
    pictures = [render_reference(one, camera, RenderOptions()).image for one in (read, cloud)]
    assert psnr(*pictures) > least
    assert pictures[0].std() > 0.05


def spz_by_hand(version: int, quat_xyzw: tuple[float, ...]) -> bytes:
    """One Gaussian of degree 1, as the format's description has it, x right, y up, z back."""
    header = struct.pack("<4sIIBBBB", b"NGSP", version, 1, 1, 12, 0, 0)
    place = b"".join(round(value * 4096).to_bytes(3, "little", signed=True) for value in (1.0, 2.0, -3.0))
    look = bytes([51, 200, 100, 50, 80, 96, 112])  # opacity 0.2, three colours, log-scales -5, -4, -3
    if version == 2:
        turn = bytes(round((value + 1) * 127.5) for value in quat_xyzw[:3])
    else:
        largest = max(range(4), key=lambda place: abs(quat_xyzw[place]))
        word = largest
        for place_of, value in enumerate(quat_xyzw):
            if place_of != largest:
                word = word << 10 | (value < 0) << 9 | round(511 * abs(value) * math.sqrt(2))
        turn = struct.pack("<I", word)
    harmonics = bytes([192, 128, 64, 160, 128, 96, 144, 128, 112])  # 0.5 0 -0.5 of y, a quarter of z, an eighth of x
    return gzip.compress(header + place + look + turn + harmonics, mtime=0)


@pytest.mark.parametrize("version", [2, 3])
def test_spz_made_by_hand(version, tmp_path):
    quat = np.array([0.1, -0.2, 0.3, math.sqrt(1 - 0.14)])
    (tmp_path / "one.spz").write_bytes(spz_by_hand(version, tuple(quat)))
    cloud = load_scene(tmp_path / "one.spz")
    assert cloud.means.tolist() == [[1, -2, 3]]
    assert cloud.log_scales.tolist() == [[-5, -4, -3]]
    assert float(cloud.logit_opacities.sigmoid()) == pytest.approx(0.2, abs=1e-6)
    np.testing.assert_allclose(cloud.sh_dc[0], (np.array([200, 100, 50]) / 255 - 0.5) / 0.15, atol=1e-5)
    np.testing.assert_allclose(
        cloud.sh_rest[0], [[-0.5, 0, 0.5], [-0.25, 0, 0.25], [0.125, 0, -0.125]], atol=1e-6
    )  # y and z point the other way
    flip, wxyz = torch.diag(torch.tensor([1.0, -1, -1])), torch.tensor(quat[[3, 0, 1, 2]], dtype=torch.float32)[None]
    axes = rotation_matrices(wxyz) * torch.tensor([-5.0, -4, -3]).exp()
    expected = flip @ axes @ axes.transpose(1, 2) @ flip
    torch.testing.assert_close(covariance(cloud), expected, rtol=0.03, atol=1e-5)


def test_spz_that_we_write_is_upright_in_its_own_frame(tmp_path):
    cloud = make_cloud(0, 2)
    cloud.means[:] = torch.tensor([[0.5, -1.0, 2.0], [-4.0, 3.0, 0.25]])
    content = gzip.decompress(written(tmp_path, ".spz", cloud))
    _, version, count, degree, bits, _, _ = struct.unpack("<4sIIBBBB", content[:16])
    assert (version, count, degree) == (3, 2, 0)
    words = [int.from_bytes(content[16 + 3 * at : 19 + 3 * at], "little", signed=True) for at in range(6)]
    assert [word / 2**bits for word in words] == [0.5, 1, -2, -4, -3, -0.25]
    assert 2**22 <= max(abs(word) for word in words) < 2**23, "as finely as 24 bits hold"


def test_compressed_ply_made_by_hand(tmp_path):
    names = [("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b")]
    header = ["ply", "format binary_little_endian 1.0", "comment by hand", "element chunk 1"]
    header += [f"property float {end}_{name}" for group in names for end in ("min", "max") for name in group]
    header += [
        "element vertex 1",
        *(f"property uint packed_{name}" for name in ("position", "rotation", "scale", "color")),
    ]
    header += ["element sh 1", *(f"property uchar f_rest_{index}" for index in range(9)), "end_header", ""]
    bounds = [-1, -2, -3, 1, 2, 3, -8, -7, -6, -4, -3, -2, 0, 0, 0, 1, 1, 1]
    position = 2047 << 21 | 0 << 11 | 1024  # x at its end, y at its beginning, z in the middle
    rotation = 1 << 30 | 512 << 20 | 512 << 10 | 1023  # x is the largest; w and y nothing, z √½
    scale = 0 << 21 | 1023 << 11 | 2047
    color = 255 << 24 | 0 << 16 | 51 << 8 | 128
    body = struct.pack("<18f4I", *bounds, position, rotation, scale, color)
    harmonics = bytes([128, 160, 96, 128, 128, 128, 255, 0, 128])  # all of red, of green, of blue
    (tmp_path / "one.ply").write_bytes("\n".join(header).encode() + body + harmonics)
    cloud = load_scene(tmp_path / "one.ply")
    np.testing.assert_allclose(cloud.means, [[1, -2, 0]], atol=2e-3)
    np.testing.assert_allclose(cloud.log_scales, [[-8, -3, -2]], atol=1e-5)
    np.testing.assert_allclose(cloud.quats, [[0, math.sqrt(0.5), 0, math.sqrt(0.5)]], atol=2e-3)
    assert float(cloud.logit_opacities.sigmoid()) == pytest.approx(128 / 255, abs=1e-5)
    np.testing.assert_allclose(cloud.sh_dc, (np.array([[1, 0, 0.2]]) - 0.5) / 0.28209479, atol=1e-4)
    np.testing.assert_allclose(cloud.sh_rest[0, :, 0], [1 / 64, 65 / 64, -63 / 64], atol=1e-6)
    np.testing.assert_allclose(cloud.sh_rest[0, :, 2], [255 / 64, -255 / 64, 1 / 64], atol=1e-6)


def test_splat_made_by_hand(tmp_path):
    row = struct.pack("<6f8B", 1, 2, 3, 0.1, 0.2, 0.3, 255, 0, 51, 204, 128, 255, 128, 128)
    (tmp_path / "rows.splat").write_bytes(row * 3)
    cloud = load_scene(tmp_path / "rows.splat")
    assert cloud.means.tolist() == [[1, 2, 3]] * 3
    np.testing.assert_allclose(cloud.log_scales.exp()[0], [0.1, 0.2, 0.3], atol=1e-6)
    np.testing.assert_allclose(cloud.quats[0], [0, 127 / 128, 0, 0])
    assert float(cloud.logit_opacities[0].sigmoid()) == pytest.approx(0.8, abs=1e-6)
    np.testing.assert_allclose(0.28209479 * cloud.sh_dc[0] + 0.5, [1, 0, 0.2], atol=1e-6)


@pytest.mark.parametrize("ending", [".ply", *PACKED])
def test_opacities_at_their_ends_stay_there(ending, tmp_path):
    cloud, count = make_cloud(0), 50
    cloud.logit_opacities[:20], cloud.logit_opacities[20:] = math.inf, -math.inf
    save_ply(cloud, tmp_path / "edited.ply")
    edited = load_ply(tmp_path / "edited.ply", [])
    save_scene(edited, tmp_path / f"scene{ending}", [])
    opacities = load_scene(tmp_path / f"scene{ending}").logit_opacities.sigmoid()
    assert sorted((opacities > 0.998).tolist()) == [False] * (count - 20) + [True] * 20
    assert int((opacities < 1 / 255).sum()) == 30


def test_what_spz_cannot_hold_is_counted(tmp_path):
    cloud = make_cloud(1)
    cloud.log_scales[:3, 0], cloud.sh_dc[4], cloud.sh_rest[5, 1, 2] = 7.0, 4.0, -1.5
    warnings = []
    save_scene(cloud, tmp_path / "scene.spz", warnings)
    assert [warning.split(" beyond")[0] for warning in warnings] == [
        "3 of 50 Gaussians have sizes",
        "1 of 50 Gaussians have colours",
        "1 of 50 Gaussians have view-dependent colours",
    ]
    read = load_scene(tmp_path / "scene.spz")
    assert float(read.log_scales.max()) == 5.9375
    with pytest.warns(UserWarning, match="beyond what SPZ holds") as caught:
        save_scene(cloud, tmp_path / "scene.spz")
    assert len(caught) == 3
    with pytest.raises(InputError, match="positions up to 5e[+]06 do not fit SPZ"):
        save_scene(GaussianCloud(**{**cloud.tensors, "means": cloud.means + 5e6}), tmp_path / "utm.spz")
    assert not (tmp_path / "utm.spz").exists()


def test_positions_that_spz_rounds_are_told(tmp_path):
    cloud = make_cloud(0)
    cloud.log_scales[:], warnings = -6.0, []
    far = GaussianCloud(**{**cloud.tensors, "means": cloud.means + 1e5})
    save_scene(far, tmp_path / "far.spz", warnings)
    assert warnings == [
        "SPZ holds positions to 0.016 here, where Gaussians are 0.0025 large; give --center, or --crop what is far away"
    ]


@pytest.mark.parametrize("ending", PACKED)
def test_damaged_files_are_refused_in_a_sentence(ending, tmp_path):
    content, path = written(tmp_path, ending), tmp_path / f"damaged{ending}"
    is_gzip = ending == ".spz"
    plain = gzip.decompress(content) if is_gzip else content
    rng = np.random.default_rng(0)
    refused = 0
    cases = [content[:size] for size in rng.integers(1, len(content), 12)]
    for _ in range(60):
        damaged = bytearray(plain)
        # Half of the blows go to what the file says of itself.
        at = rng.integers(0, 100 if rng.random() < 0.5 else len(plain), 3)
        damaged[at[0]], damaged[at[1]], damaged[at[2]] = rng.integers(0, 256, 3).tolist()
        cases.append(gzip.compress(bytes(damaged), 1, mtime=0) if is_gzip else bytes(damaged))
    for case in cases:
        path.write_bytes(case)
        try:
            assert len(load_scene(path, [])) > 0
        except InputError:
            refused += 1
    assert refused >= 10


def spz_claiming(version: int, count: int, degree: int = 0, bits: int = 12) -> bytes:
    return struct.pack("<4sIIBBBB", b"NGSP", version, count, degree, bits, 0, 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(spz_claiming(3, 2_000_000_000, 3), mtime=0), "2,000,000,000 Gaussians in .* bytes cannot be"),
        (gzip.compress(spz_claiming(3, 50, 3) + bytes(100), mtime=0), "it promises .* bytes of rows and holds 100"),
        (
            gzip.compress(spz_claiming(3, 1) + bytes(80 << 20), 1, mtime=0),
            "it unpacks to more than its 1 Gaussians take",
        ),
        (gzip.compress(spz_claiming(1, 1) + bytes(40), mtime=0), "it is of version 1, and 2 to 4 are read"),
        (gzip.compress(spz_claiming(3, 1, 4) + bytes(99), mtime=0), "its header gives degree 4"),
        (gzip.compress(spz_claiming(3, 0), mtime=0), "holds no Gaussians"),
        (spz_claiming(4, 2_000_000_000) + bytes(16), "cannot be"),
        (spz_claiming(4, 1) + bytes(16), "its parts are not those of its header"),
        (spz_claiming(3, 1) + bytes(16), "it is of version 3, and not gzipped"),
    ],
)
def test_spz_that_promises_what_it_does_not_hold(content, said, tmp_path):
    (tmp_path / "scene.spz").write_bytes(content)
    with pytest.raises(InputError, match=said):
        load_scene(tmp_path / "scene.spz")


def test_spz_of_version_4(tmp_path):
    pytest.importorskip("zstandard", reason="SPZ of version 4 is compressed by zstandard")
    from gsply.gsdata import GSData
    from gsply.spz import write_spz

    rows = gsply_files._rows(make_cloud(2))
    write_spz(tmp_path / "four.spz", GSData.from_arrays(**rows, format="ply"), version=4)
    cloud = load_scene(tmp_path / "four.spz")
    assert (len(cloud), cloud.sh_degree) == (50, 2)
    np.testing.assert_allclose(cloud.means * torch.tensor([1, -1, -1]), rows["means"], atol=2e-4)
    content = bytearray((tmp_path / "four.spz").read_bytes())
    # The second part says that it unpacks to more than it may.
    import zstandard

    sizes = [struct.unpack_from("<QQ", content, 32 + 16 * part) for part in range(6)]
    start = 32 + 16 * 6 + sizes[0][0]
    bomb = zstandard.ZstdCompressor().compress(bytes(10_000))
    struct.pack_into("<Q", content, 32 + 16, len(bomb))
    content[start : start + sizes[1][0]] = bomb
    (tmp_path / "bomb.spz").write_bytes(content)
    with pytest.raises(InputError, match="a part is shorter than its header says"):
        load_scene(tmp_path / "bomb.spz")


def test_a_damaged_stream_of_version_4_is_refused_in_a_sentence(tmp_path):
    pytest.importorskip("zstandard", reason="SPZ of version 4 is compressed by zstandard")
    from gsply.gsdata import GSData
    from gsply.spz import write_spz

    write_spz(tmp_path / "four.spz", GSData.from_arrays(**gsply_files._rows(make_cloud(2)), format="ply"), version=4)
    content = (tmp_path / "four.spz").read_bytes()
    for offset in (8, 12, 20, 40):
        damaged = bytearray(content)
        damaged[32 + 16 * 6 + offset] ^= 0xFF
        (tmp_path / "damaged.spz").write_bytes(damaged)
        with pytest.raises(InputError, match="is not a readable SPZ file"):
            load_scene(tmp_path / "damaged.spz")


def test_what_splat_and_compressed_ply_cannot_hold_is_told(tmp_path):
    cloud, said = make_cloud(1), []
    cloud.sh_dc.clamp_(-1.7, 1.7)
    cloud.sh_dc[:3] = 2.0
    save_scene(cloud, tmp_path / "a.splat", said)
    assert said == [
        ".splat holds no colours that depend on the view: those of degree 1 are left out",
        "3 of 50 Gaussians have colours beyond what .splat holds, and are brought to its ends",
    ]
    said.clear()
    cloud.log_scales[:2, 1], cloud.sh_rest[:4, 0, 0] = -25.0, 9.0
    save_scene(cloud, tmp_path / "a.compressed.ply", said)
    assert said == [
        "2 of 50 Gaussians have sizes beyond what compressed PLY holds, and are brought to its ends",
        "4 of 50 Gaussians have view-dependent colours beyond what compressed PLY holds, and are brought to its ends",
    ]


def test_a_splat_of_rows_without_turn_or_size_is_read_back(tmp_path):
    cloud = make_cloud(0)
    cloud.quats[:10], cloud.log_scales[10:20, 0] = 0, -120
    save_scene(cloud, tmp_path / "a.splat", [])
    read = load_scene(tmp_path / "a.splat", [])
    assert len(read) == 50
    assert int((read.quats == torch.tensor([127 / 128, 0, 0, 0])).all(dim=1).sum()) == 10
    with pytest.raises(
        InputError, match=r"no scene of a kind that is read \(the rows of a .splat take 32 bytes each, and"
    ):
        (tmp_path / "cut.splat").write_bytes((tmp_path / "a.splat").read_bytes()[:-5])
        load_scene(tmp_path / "cut.splat")


def test_spz_alone_says_that_a_scene_wants_antialiasing(tmp_path):
    cloud, said = make_cloud(1), []
    for ending in (".spz", ".ply"):
        save_scene(cloud, tmp_path / f"a{ending}", said, antialiased=True)
        load_scene(tmp_path / f"a{ending}", said)
    assert [sentence for sentence in said if "antialias" in sentence] == [
        f"{tmp_path / 'a.spz'} says that it was trained with antialiasing; render it with --footprint antialiased",
        ".ply does not say that the scene wants antialiasing; switch it on in the viewer",
    ]
    plain, flagged = (
        gzip.decompress(content) for content in (written(tmp_path, ".spz", cloud), (tmp_path / "a.spz").read_bytes())
    )
    assert (plain[14], flagged[14]) == (0, 1)
    assert plain[15:] == flagged[15:]


def test_compressed_ply_with_comments_of_any_kind_is_read(tmp_path):
    content = written(tmp_path, ".compressed.ply")
    head, mark, rows = content.partition(b"end_header\n")
    lines = head.replace(b"element chunk", b"element\tchunk").splitlines(keepends=True)
    lines.insert(2, "comment généré\n".encode())
    (tmp_path / "other.ply").write_bytes(b"".join(lines) + mark + rows)
    for ours, theirs in zip(
        load_scene(tmp_path / "scene.compressed.ply").tensors.values(),
        load_scene(tmp_path / "other.ply").tensors.values(),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("ending", [".spz", ".compressed.ply"])
def test_without_gsply_the_extra_is_named(ending, tmp_path, monkeypatch):
    content = written(tmp_path, ending)
    for name in [name for name in sys.modules if name.split(".")[0] == "gsply"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    for act in (
        lambda: load_scene(tmp_path / f"scene{ending}"),
        lambda: save_scene(make_cloud(), tmp_path / f"b{ending}"),
    ):
        with pytest.raises(InputError, match=r"needs gsply\S*, which is not here; pip install 'splatopt\[packed\]'"):
            act()
    assert (tmp_path / f"scene{ending}").read_bytes() == content


def test_rows_without_a_turn_and_odd_endings(tmp_path):
    cloud = make_cloud()
    cloud.quats[3] = 0
    for ending in PACKED[:2]:
        save_scene(cloud, tmp_path / f"scene{ending}", [])
        assert torch.isfinite(load_scene(tmp_path / f"scene{ending}").quats).all()
    for name in ("scene.obj", "scene", "scene.ksplat"):
        with pytest.raises(
            InputError, match=r"scenes are written as \.compressed\.ply, \.ply, \.spz, \.splat, \.sog, got"
        ):
            save_scene(cloud, tmp_path / name)


@pytest.mark.slow
def test_compiled_as_uncompiled(tmp_path):
    """What gsply compiles gives what it gives uncompiled, which the other tests look at."""
    code = """
import sys, torch
from pathlib import Path
from splatopt.scene.ply import load_ply
from splatopt.scene.scene_files import load_scene, save_scene
folder = Path(sys.argv[1])
for ending in (".spz", ".compressed.ply"):
    save_scene(load_ply(folder / "scene.ply"), folder / f"compiled{ending}")
    torch.save(load_scene(folder / f"plain{ending}").tensors, folder / f"read{ending}.pt")
"""
    save_ply(make_cloud(3, 300), tmp_path / "scene.ply")
    for ending in PACKED[:2]:
        save_scene(load_ply(tmp_path / "scene.ply"), tmp_path / f"plain{ending}")
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    for ending in PACKED[:2]:
        compiled = torch.load(tmp_path / f"read{ending}.pt", weights_only=True)
        for name, tensor in load_scene(tmp_path / f"plain{ending}").tensors.items():
            torch.testing.assert_close(compiled[name], tensor, atol=2e-5, rtol=1e-5)
        for name, tensor in load_scene(tmp_path / f"compiled{ending}").tensors.items():
            assert (tensor - compiled[name]).abs().max() < 0.02, name
