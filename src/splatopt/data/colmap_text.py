"""Writes captures as COLMAP's text files, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from splatopt.core.checks import InputError, writing
from splatopt.core.files import whole_folder
from splatopt.data.colmap import PROCEDURAL_MARK


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """Return the unit quaternion wxyz of a rotation matrix R.

    4 q qᵀ is linear in R and 1; its longest column, normalised, is q up to sign.
    """
    (a, b, c), (d, e, f), (g, h, i) = rotation
    outer = np.array(
        [
            [1 + a + e + i, h - f, c - g, d - b],
            [h - f, 1 + a - e - i, b + d, c + g],
            [c - g, b + d, 1 - a + e - i, f + h],
            [d - b, c + g, f + h, 1 - a - e + i],
        ]
    )
    column = outer[:, int(np.argmax(np.diag(outer)))]
    return column / np.linalg.norm(column)


def write_model(
    folder: Path, names: Sequence[str], poses: Sequence[np.ndarray], focal: float, size: tuple[int, int]
) -> None:
    """Write cameras.txt, one pinhole for all, and images.txt.

    Args:
        folder: Exists.
        names: Of the photographs.
        poses: World to camera, (4, 4) each, OpenCV axes.
        focal: Focal length, pixels.
        size: Width and height, pixels; the principal point is the middle.
    """
    width, height = size
    _write(
        folder / "cameras.txt",
        f"# CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]\n1 PINHOLE {width} {height} {focal!r} {focal!r} "
        f"{width / 2!r} {height / 2!r}\n",
    )
    lines = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then its 2D points, of which there are none"]
    for index, (name, pose) in enumerate(zip(names, poses, strict=True), start=1):
        numbers = " ".join(repr(float(value)) for value in (*quaternion(pose[:3, :3]), *pose[:3, 3]))
        lines += [f"{index} {numbers} 1 {name}", ""]
    _write(folder / "images.txt", "\n".join(lines) + "\n")


def write_points(folder: Path, positions: np.ndarray, colors: np.ndarray) -> None:
    """Write points3D.txt from positions (P, 3), to six decimals, and colours (P, 3); no point has a track."""
    lines = ["# POINT3D_ID X Y Z R G B ERROR TRACK[]"]
    for index, (position, color) in enumerate(zip(positions.tolist(), colors.tolist(), strict=True), start=1):
        lines.append(f"{index} {' '.join(f'{value:.6f}' for value in position)} {' '.join(map(str, color))} 0")
    _write(folder / "points3D.txt", "\n".join(lines) + "\n")


def _write(path: Path, text: str) -> None:
    with writing(path):
        path.write_text(text, encoding="utf-8")


@contextmanager
def whole_capture(folder: Path, mark: Mapping[str, object]) -> Iterator[Path]:
    """Hand out a folder beside ``folder`` to write into, and put it in place, marked as made, once that is done.

    Args:
        folder: Must not exist or be empty.
        mark: What the capture was made from, kept as JSON.

    Raises:
        InputError: The folder exists and is not empty, or another process is making it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty; name a new folder or remove it first")
    with whole_folder(folder, f"the capture {folder}") as partial:
        yield partial
        _write(partial / PROCEDURAL_MARK, json.dumps(mark, indent=1) + "\n")
