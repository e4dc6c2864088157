"""nerfstudio's and instant-ngp's ``transforms.json``."""

from __future__ import annotations

from pathlib import Path

from splatopt.data.point_files import find_points
from splatopt.data.source import Source, registered_once
from splatopt.data.transforms import read_frames, read_json

TRANSFORMS_FILE = "transforms.json"
"""The file whose presence makes a folder a nerfstudio or instant-ngp capture."""


def read_nerfstudio(path: Path) -> Source:
    """Read views and, where ``ply_file_path`` names them or they lie beside the file, sparse points.

    The world is the one of the file's poses, see :func:`splatopt.data.point_files.find_points`. A file with
    ``aabb_scale`` is instant-ngp's.

    Raises:
        InputError: The file, or the PLY it names, is malformed.
    """
    file = path / TRANSFORMS_FILE
    content = read_json(file)
    warnings: list[str] = []
    frames = registered_once(read_frames(file, content, warnings), str(file), warnings)
    views = tuple(sorted(frames, key=lambda view: view.name))
    points = find_points(path, content, views, warnings)
    kind = "instant-ngp" if "aabb_scale" in content and "camera_model" not in content else "nerfstudio"
    return Source(kind, views, points, tuple(warnings))
