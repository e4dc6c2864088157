"""Small valid files of every kind that splatopt reads from elsewhere, and how each kind is read."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import signal
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image
from plyfile import PlyData, PlyElement

from splatopt.bench.suite import read_suite
from splatopt.cli import main
from splatopt.core.checks import InputError, shown
from splatopt.data import CaptureOptions, load_capture
from splatopt.data.images import read_header, read_pixels
from splatopt.data.mesh import load_mesh, sample_surface
from splatopt.data.point_files import read_ply_points
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.initialization import start_from_points
from splatopt.scene.ply import load_ply, save_ply

WIDTH, HEIGHT, VIEWS = 20, 16, 4


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        files: All that is needed, by name.
        damaged: Names of those that are damaged.
        read: Reads the folder; raises InputError where it cannot be used.
    """

    files: Mapping[str, bytes]
    damaged: tuple[str, ...]
    read: Callable[[Path], None]


class UnsafeOutputError(AssertionError):
    """The command line printed what it must not, or ended as it must not."""


# ---------------------------------------------------------------------- reading


def command(*words: str) -> int:
    """Run a command of splatopt in process: exit code 0 or 2, and nothing printed that acts on a terminal."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    printed = out.getvalue() + err.getvalue()
    if code not in (0, 2) or any(shown(line) != line for line in printed.split("\n")):
        raise UnsafeOutputError(f"exit code {code}, printed {printed!r}")
    if code == 2 and not err.getvalue().splitlines()[-1].startswith("splatopt: "):
        raise UnsafeOutputError(f"no sentence: {err.getvalue()!r}")
    if len(printed) > 20_000 or "overflow" in printed:
        raise UnsafeOutputError(f"{len(printed)} characters: {printed[:500]!r}")
    return code


def read_capture(folder: Path) -> None:
    """What a run begins with: cameras in float32, photographs, points, a start."""
    command("inspect", str(folder))
    capture = load_capture(folder, CaptureOptions(skip_missing=True))
    for index, camera in enumerate(capture.cameras):
        numbers = [camera.fx, camera.fy, camera.cx, camera.cy, *camera.world_to_camera.flatten().tolist()]
        assert torch.isfinite(torch.tensor(numbers, dtype=torch.float32)).all(), numbers
        assert tuple(capture.images[index].shape) == (camera.height, camera.width, 3)
        camera.name.encode()
    assert 0 < capture.extent < math.inf
    if capture.points is not None and len(capture.points):
        start_from_points(capture.points.positions, capture.points.colors, sh_degree=0).check_finite("start")


def train_on(folder: Path) -> None:
    """What accepted values lead to: two steps, scores, a page."""
    run = folder.with_name("run")
    shutil.rmtree(run, ignore_errors=True)
    words = ["--steps", "2", "--threads", "1", "--skip-missing", "--out", str(run)]
    start = ["--init", "random", "--random-points", "50"] if (folder / "transforms_train.json").exists() else []
    if command("train", str(folder), *words, *start):
        raise InputError("refused")
    for after in (["eval", str(run)], ["report", str(run), "--views", "1"]):
        assert command(*after) == 0, after


def read_points(folder: Path) -> None:
    read_ply_points(folder / "sparse.ply", [])


def read_scene(folder: Path) -> None:
    load_ply(folder / "scene.ply").check_finite("scene")


def read_mesh(folder: Path) -> None:
    (file,) = (path for path in folder.iterdir() if path.suffix != ".bin")
    mesh = load_mesh(file)
    assert mesh.vertices.abs().max() <= 1
    assert torch.isfinite(sample_surface(mesh, 10, torch.Generator().manual_seed(0))).all()


def read_image(folder: Path) -> None:
    (file,) = folder.iterdir()
    header = read_header(file)
    assert header.width * header.height == read_pixels(file, (1.0, 1.0, 1.0)).size // 3
    read_pixels(file, (1.0, 1.0, 1.0), upright=True)


def read_bench(folder: Path) -> None:
    read_suite(folder / "suite.toml")


# ---------------------------------------------------------------------- captures


def _photographs(folder: str = "images") -> dict[str, bytes]:
    return {f"{folder}/v{index}.jpg": _encoded("JPEG", seed=index) for index in range(VIEWS)}


def _picture(seed: int, channels: int = 3) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8).squeeze())


def _encoded(form: str, seed: int = 0, channels: int = 3, **options: object) -> bytes:
    buffer = io.BytesIO()
    _picture(seed, channels).save(buffer, form, **options)
    return buffer.getvalue()


def _colmap_text() -> dict[str, bytes]:
    cameras = "# cameras\n1 OPENCV 20 16 15 15 10 8 0.0001 0 0 0\n2 PINHOLE 20 16 15 15 10 8\n"
    images = "# images\n" + "".join(
        f"{index + 1} 1 0 {0.05 * index} 0 {0.3 * index - 0.5} 0 4 {1 + index % 2} v{index}.jpg\n1.0 2.0 1 3.0 4.0 -1\n"
        for index in range(VIEWS)
    )
    points = "# points\n" + "".join(f"{i} {i % 3} {i % 5} {i % 7} {i} 0 255 0.5 1 0 2 0\n" for i in range(1, 10))
    texts = {"cameras": cameras, "images": images, "points3D": points}
    return {f"sparse/0/{name}.txt": text.encode() for name, text in texts.items()} | _photographs()


def _colmap_binary() -> dict[str, bytes]:
    cameras = struct.pack("<QIiQQ8d", 2, 1, 4, WIDTH, HEIGHT, 15, 15, 10, 8, 0.0001, 0, 0, 0)
    cameras += struct.pack("<IiQQ4d", 2, 1, WIDTH, HEIGHT, 15, 15, 10, 8)
    images = struct.pack("<Q", VIEWS) + b"".join(
        struct.pack("<I7dI", index + 1, 1, 0, 0.05 * index, 0, 0.3 * index - 0.5, 0, 4, 1 + index % 2)
        + f"v{index}.jpg".encode()
        + b"\0"
        + struct.pack("<QddQ", 1, 1, 2, 1)
        for index in range(VIEWS)
    )
    points = struct.pack("<Q", 9) + b"".join(
        struct.pack("<Q3d3BdQII", i, i % 3, i % 5, i % 7, i, 0, 255, 0.5, 1, 1, 0) for i in range(1, 10)
    )
    parts = {"cameras": cameras, "images": images, "points3D": points}
    return {f"sparse/0/{name}.bin": part for name, part in parts.items()} | _photographs()


def _frames(names: list[str]) -> list[dict[str, object]]:
    return [
        {"file_path": name, "transform_matrix": [[1, 0, 0, 0.2 * i], [0, -1, 0, 0], [0, 0, -1, -4], [0, 0, 0, 1]]}
        for i, name in enumerate(names)
    ]


def _transforms(extra: Mapping[str, object], names: list[str]) -> bytes:
    return json.dumps({**extra, "frames": _frames(names)}).encode()


def _nerfstudio() -> dict[str, bytes]:
    names = [f"images/v{index}.jpg" for index in range(VIEWS)]
    lens = {
        "camera_model": "OPENCV",
        "fl_x": 15,
        "fl_y": 15,
        "cx": 10,
        "cy": 8,
        "w": 20,
        "h": 16,
        "k1": 0.01,
        "p1": 0.0,
    }
    return {
        "transforms.json": _transforms({**lens, "ply_file_path": "sparse.ply"}, names),
        "sparse.ply": points_ply("<"),
        **_photographs(),
    }


def _instant_ngp() -> dict[str, bytes]:
    names = [f"./images/v{index}" for index in range(VIEWS)]
    return {"transforms.json": _transforms({"camera_angle_x": 0.9, "aabb_scale": 4}, names), **_photographs()}


def _blender() -> dict[str, bytes]:
    train, test = ([f"./images/v{index}.jpg" for index in part] for part in ((0, 1), (2, 3)))
    return {
        "transforms_train.json": _transforms({"camera_angle_x": 0.9}, train),
        "transforms_test.json": _transforms({"camera_angle_x": 0.9}, test),
        **_photographs(),
    }


def _own_split() -> dict[str, bytes]:
    names = [f"images/v{index}.jpg" for index in range(VIEWS)]
    said = {
        "applied_scale": 0.5,
        "train_filenames": names[:2],
        "val_filenames": names[2:3],
        "test_filenames": names[3:],
    }
    return {"transforms.json": _transforms({"camera_angle_x": 0.9, **said}, names), **_photographs()}


def _llff() -> dict[str, bytes]:
    pose = [[1, 0, 0, 0, HEIGHT], [0, 1, 0, 0, WIDTH], [0, 0, 1, 4, 15]]
    rows = np.array([[*np.ravel(pose), 0.1, 10]] * VIEWS)[:, :]
    rows[:, 3] = np.arange(VIEWS)
    buffer = io.BytesIO()
    np.save(buffer, rows)
    return {"poses_bounds.npy": buffer.getvalue(), **_photographs()}


def _polycam() -> dict[str, bytes]:
    files = {}
    for index in range(VIEWS):
        values = {f"t_{row}{column}": float(row == column) for row in range(3) for column in range(4)}
        values |= {"t_03": 0.2 * index, "fx": 15, "fy": 15, "cx": 10, "cy": 8, "width": WIDTH, "height": HEIGHT}
        files[f"keyframes/corrected_cameras/v{index}.json"] = json.dumps(values).encode()
    return files | _photographs("keyframes/corrected_images")


def _record3d() -> dict[str, bytes]:
    poses = [[0, 0, 0, 1, 0.2 * index, 0, 0] for index in range(VIEWS)]
    content = {"K": [15, 0, 0, 0, 15, 0, 10, 8, 1], "w": WIDTH, "h": HEIGHT, "poses": poses, "fps": 30}
    named = {name.replace("/v", "/"): data for name, data in _photographs("rgb").items()}
    return {"metadata": json.dumps(content).encode(), **named}


# ---------------------------------------------------------------------- points, scenes, meshes, suites


def points_ply(order: str, *, lists: bool = False) -> bytes:
    """A PLY point cloud of ten points; text where ``order`` is empty, with a list in each row where asked."""
    kinds = [*((axis, "f4") for axis in "xyz"), *((color, "u1") for color in ("red", "green", "blue"))]
    table = np.zeros(10, dtype=[*kinds, ("views", "O")] if lists else kinds)
    for row in range(10):
        values = (row % 3, row % 5, row % 7, row, 0, 255)
        table[row] = (*values, np.arange(row % 3, dtype="i4")) if lists else values
    return _written(PlyData([PlyElement.describe(table, "vertex")], text=not order, byte_order=order or "="))


def _written(data: PlyData) -> bytes:
    buffer = io.BytesIO()
    data.write(buffer)
    return buffer.getvalue()


def scene_ply(folder: Path, *, text: bool) -> bytes:
    """A scene of five Gaussians of degree 1."""
    rng = torch.Generator().manual_seed(0)
    sizes = {"means": (3,), "log_scales": (3,), "quats": (4,), "logit_opacities": (), "sh_dc": (3,), "sh_rest": (3, 3)}
    parts = {name: torch.randn((5, *size), generator=rng) for name, size in sizes.items()}
    save_ply(GaussianCloud(**parts), folder / "scene.ply")
    data = PlyData.read(str(folder / "scene.ply"))
    (folder / "scene.ply").unlink()
    data.text = text
    return _written(data)


def _mesh(form: str) -> dict[str, bytes]:
    box = trimesh.creation.box()
    if form == "gltf":
        return {
            ("mesh.gltf" if name == "model.gltf" else name): data for name, data in box.export(file_type=form).items()
        }
    ending, options = {
        "ply_ascii": ("ply", {"file_type": "ply", "encoding": "ascii"}),
        "stl_text": ("stl", {"file_type": "stl_ascii"}),
    }.get(form, (form, {"file_type": form}))
    data = box.export(**options)
    return {f"mesh.{ending}": data.encode() if isinstance(data, str) else data}


_SUITE = b"""title = "small"
seeds = 2
points = [0, 10, 20]
seconds = [1.0, 2.5]
reference = "adam"

[train]
steps = 20
sh_degree = 1

[[scenes]]
name = "toy"
path = "toy"
downscale = 2

[[optimizers]]
name = "adam"
options = { means_rate = 1e-4 }

[[optimizers]]
name = "lm"
label = "LM"
steps = 5
"""


def _fail(_: Path) -> None:
    raise KeyError("no sentence")


def _print_escape(_: Path) -> None:
    raise UnsafeOutputError("printed an escape")


_TRIALS: dict[str, Callable[[Path], None]] = {
    "used": lambda _: None,
    "traces": _fail,
    "unsafe": _print_escape,
    "signals": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
    "hangs": lambda _: time.sleep(1000),
    "bloated": lambda _: bytes(bytearray(1100 << 20))[:0] and None,
}
"""Faults that a campaign must see; it reads them only when it is asked for them."""


@cache
def kinds(scratch: Path) -> dict[str, Kind]:
    """Return all kinds by name; ``scratch`` is an empty folder."""

    def capture(files: dict[str, bytes]) -> Kind:
        return Kind(files, tuple(name for name in files if not name.startswith("images/v0")), read_capture)

    found = {
        "colmap-text": capture(_colmap_text()),
        "colmap-binary": capture(_colmap_binary()),
        "nerfstudio": capture(_nerfstudio()),
        "instant-ngp": capture(_instant_ngp()),
        "blender": capture(_blender()),
        "own-split": capture(_own_split()),
        "llff": capture(_llff()),
        "polycam": capture(_polycam()),
        "record3d": capture(_record3d()),
        "suite": Kind({"suite.toml": _SUITE}, ("suite.toml",), read_bench),
    }
    for name in ("colmap-text", "colmap-binary", "nerfstudio", "blender"):
        found[f"train-{name}"] = Kind(found[name].files, found[name].damaged, train_on)
    for name, order, lists in (("little", "<", False), ("big", ">", False), ("text", "", False), ("lists", "<", True)):
        found[f"points-{name}"] = Kind({"sparse.ply": points_ply(order, lists=lists)}, ("sparse.ply",), read_points)
    found["points-text-lists"] = Kind({"sparse.ply": points_ply("", lists=True)}, ("sparse.ply",), read_points)
    for name, text in (("scene", False), ("scene-text", True)):
        found[name] = Kind({"scene.ply": scene_ply(scratch, text=text)}, ("scene.ply",), read_scene)
    for form in ("obj", "ply", "ply_ascii", "stl", "stl_text", "off", "glb", "gltf"):
        files = _mesh(form)
        found[f"mesh-{form}"] = Kind(files, tuple(files), read_mesh)
    for form, options in (
        *(("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("GIF", {}), ("BMP", {}), ("PPM", {})),
        *(("TGA", {}), ("JPEG2000", {}), ("AVIF", {}), ("TIFF-LZW", {"compression": "tiff_lzw"}), ("QOI", {})),
    ):
        data = _encoded(form.partition("-")[0], **options)
        found[f"image-{form}"] = Kind({"photo.img": data}, ("photo.img",), read_image)
    for name, read in _TRIALS.items():
        found[f"trial-{name}"] = Kind({"file": b"data"}, ("file",), read)
    found["image-PNG-alpha"] = Kind({"photo.img": _encoded("PNG", channels=4)}, ("photo.img",), read_image)
    found["image-PNG-grey"] = Kind({"photo.img": _encoded("PNG", channels=1)}, ("photo.img",), read_image)
    return found


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Write ``files`` into ``folder``."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


__all__ = ["InputError", "Kind", "UnsafeOutputError", "kinds", "write"]
