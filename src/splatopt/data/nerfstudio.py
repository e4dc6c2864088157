"""nerfstudio's and instant-ngp's ``transforms.json``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from splatopt.core.checks import InputError, cut, short
from splatopt.data.ply_table import read_vertices
from splatopt.data.source import Points, Source, finite_points, registered_once
from splatopt.data.transforms import read_frames, read_json

TRANSFORMS_FILE = "transforms.json"
"""The file whose presence makes a folder a nerfstudio or instant-ngp capture."""


def read_nerfstudio(path: Path) -> Source:
    """Read views and, where ``ply_file_path`` names them, sparse points.

    The world is the one of the file's poses: ``applied_transform`` has been applied to poses and
    points alike by whoever wrote it. A file with ``aabb_scale`` is instant-ngp's.

    Raises:
        InputError: The file, or the PLY it names, is malformed.
    """
    file = path / TRANSFORMS_FILE
    content = read_json(file)
    warnings: list[str] = []
    frames = registered_once(read_frames(file, content), str(file), warnings)
    views = tuple(sorted(frames, key=lambda view: view.name))
    points = _points(path, content, warnings)
    kind = "instant-ngp" if "aabb_scale" in content and "camera_model" not in content else "nerfstudio"
    return Source(kind, views, points, tuple(warnings))


def _points(path: Path, content: dict[str, object], warnings: list[str]) -> Points | None:
    name = content.get("ply_file_path")
    if name is None:
        return None
    file = path / str(name)
    if not os.path.isfile(file):
        warnings.append(f"the points {short(file)} are missing; the capture has none")
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
    vertices = read_vertices(path, "PLY point cloud").table
    names = vertices.dtype.names or ()
    if not {"x", "y", "z"} <= set(names):
        raise InputError(f"{path}: points need the properties x, y and z, got {cut(', '.join(names)) or 'none'}")
    positions = np.stack([vertices[axis] for axis in "xyz"], axis=1).astype(np.float64)
    colors = np.full((len(vertices), 3), 128, dtype=np.uint8)
    if {"red", "green", "blue"} <= set(names):
        values = np.stack([vertices[channel] for channel in ("red", "green", "blue")], axis=1)
        if np.issubdtype(values.dtype, np.floating):
            values = np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255)
        colors = np.clip(values, 0, 255).astype(np.uint8)
    return finite_points(positions, colors, warnings)
