"""nerfstudio's and instant-ngp's ``transforms.json``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import plyfile

from splatopt.core.checks import InputError
from splatopt.data.source import Points, Source, finite_points
from splatopt.data.transforms import read_frames, read_json

TRANSFORMS_FILE = "transforms.json"
"""The file whose presence makes a folder a nerfstudio or instant-ngp capture."""

_HEADER_BYTES = 65_536
_SMALLEST_POINT = 6


def read_nerfstudio(path: Path) -> Source:
    """Read views and, where ``ply_file_path`` names them, sparse points.

    The world is the one of the file's poses: ``applied_transform`` has been applied to poses and
    points alike by whoever wrote it. A file with ``aabb_scale`` is instant-ngp's.

    Raises:
        InputError: The file, or the PLY it names, is malformed.
    """
    file = path / TRANSFORMS_FILE
    content = read_json(file)
    views = tuple(sorted(read_frames(file, content), key=lambda view: view.name))
    warnings: list[str] = []
    points = _points(path, content, warnings)
    kind = "instant-ngp" if "aabb_scale" in content and "camera_model" not in content else "nerfstudio"
    return Source(kind, views, points, tuple(warnings))


def _points(path: Path, content: dict[str, Any], warnings: list[str]) -> Points | None:
    name = content.get("ply_file_path")
    if name is None:
        return None
    file = path / str(name)
    if not file.is_file():
        warnings.append(f"the points {file} are missing; the capture has none")
        return None
    return read_ply_points(file, warnings)


def read_ply_points(path: Path, warnings: list[str]) -> Points:
    """Read positions and, where there are any, colours of a PLY point cloud (grey otherwise).

    Args:
        path: The PLY file.
        warnings: Gets a sentence if points are not finite and left out.

    Raises:
        InputError: The file is no PLY, is cut short, or its vertices lack x, y, z.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES).split(b"end_header", 1)[0]
    claimed = sum(int(number) for number in re.findall(rb"element\s+\S+\s+(\d{1,18})\s", header))
    if claimed * _SMALLEST_POINT > path.stat().st_size:
        raise InputError(f"{path} claims {claimed} points but holds {path.stat().st_size} bytes; it is cut short")
    try:
        vertices = plyfile.PlyData.read(str(path))["vertex"].data
    except (plyfile.PlyParseError, KeyError, ValueError, OSError, IndexError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable PLY point cloud ({error}); export it again") from error
    names = vertices.dtype.names or ()
    if not {"x", "y", "z"} <= set(names):
        raise InputError(f"{path}: points need the properties x, y and z, got {', '.join(names)}")
    positions = np.stack([vertices[axis] for axis in "xyz"], axis=1).astype(np.float64)
    colors = np.full((len(vertices), 3), 128, dtype=np.uint8)
    if {"red", "green", "blue"} <= set(names):
        values = np.stack([vertices[channel] for channel in ("red", "green", "blue")], axis=1)
        if np.issubdtype(values.dtype, np.floating):
            values = np.rint(np.nan_to_num(values) * 255)
        colors = np.clip(values, 0, 255).astype(np.uint8)
    return finite_points(positions, colors, warnings)
