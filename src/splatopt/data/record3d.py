"""Record3D's export: ``metadata`` beside the photographs ``0.jpg``, ``1.jpg``, … of ``rgb`` or ``rgbd``.

Its ``poses`` are camera to world, quaternion x, y, z, w and place, with ARKit's axes of the camera (x right, y up, z
backward). ``K`` is the matrix of intrinsics column by column; ``perFrameIntrinsicCoeffs``, where it is there, has fx,
fy, cx and cy of each photograph, as the phone's focus changes them.

Source: https://record3d.app, and nerfstudio's ``record3d_utils``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from splatopt.core.checks import InputError, quoted
from splatopt.core.schema import rotation_entries
from splatopt.data.image_folders import image_files, unused_folders
from splatopt.data.image_lookup import unregistered
from splatopt.data.lens import Lens
from splatopt.data.point_files import find_points
from splatopt.data.source import PosedImage, Source, opengl_to_world_to_camera
from splatopt.data.transforms import finite_number, read_object

METADATA_FILES = ("metadata", "metadata.json")
"""Names of the file of poses."""

_FOLDERS = ("rgb", "rgbd")
_QUATERNION_LENGTHS = (1e-3, 1e3)


def find_metadata(path: Path) -> Path | None:
    """Return Record3D's file of poses in ``path``, where a folder of its photographs lies beside; None without both."""
    if not any((path / name).is_dir() for name in _FOLDERS):
        return None
    return next((path / name for name in METADATA_FILES if (path / name).is_file()), None)


def read_record3d(path: Path) -> Source:
    """Read the views of a recording; pose n is that of the photograph whose name is n.

    Args:
        path: The folder.

    Raises:
        InputError: The file is malformed.
    """
    file = find_metadata(path)
    if file is None:
        raise InputError(f"{path} has no {METADATA_FILES[0]} beside {_FOLDERS[0]}; export the recording again")
    content = read_object(file)
    poses = _table(content, "poses", 7, file)
    lenses = _lenses(content, len(poses), file)
    folder = next(path / name for name in _FOLDERS if (path / name).is_dir())
    numbered = {int(stem): name for name in image_files(folder) if (stem := Path(name).stem).isdecimal()}
    views = []
    for index, (row, lens) in enumerate(zip(poses, lenses, strict=True)):
        where = f"{file}, pose {index}"
        length = float(np.linalg.norm(row[:4]))
        if not _QUATERNION_LENGTHS[0] <= length <= _QUATERNION_LENGTHS[1]:
            raise InputError(
                f"{where}: the rotation is a quaternion of length {length:.3g}, expected 1; export the recording again"
            )
        x, y, z, w = row[:4] / length
        pose = np.eye(4)
        pose[:3, :3] = np.reshape(rotation_entries(w, x, y, z), (3, 3))
        pose[:3, 3] = row[4:]
        name = numbered.get(index, f"{index}.jpg")
        views.append(PosedImage(name, folder / name, opengl_to_world_to_camera(pose, where), lens))
    found = [*unused_folders(path), *unregistered(path, [view.path for view in views])]
    views.sort(key=lambda view: view.name)
    warnings: list[str] = []
    points = find_points(path, {}, views, warnings)
    return Source("record3d", tuple(views), points, tuple(warnings), found=tuple(found))


def _lenses(content: Mapping[str, object], count: int, file: Path) -> list[Lens]:
    """Return the lens of each photograph."""
    where = str(file)
    size = finite_number(content, "w", where), finite_number(content, "h", where)
    if size[0] is None or size[1] is None:
        raise InputError(f"{where}: 'w' and 'h', the size of the photographs, are missing; export the recording again")
    width, height = round(size[0]), round(size[1])
    if content.get("perFrameIntrinsicCoeffs"):
        rows = _table(content, "perFrameIntrinsicCoeffs", 4, file)
        if len(rows) != count:
            raise InputError(
                f"{where}: 'perFrameIntrinsicCoeffs' has {len(rows)} rows for {count} poses; export the recording again"
            )
    else:
        fx, _, _, _, fy, _, cx, cy, _ = np.ravel(_table({"K": [content.get("K")]}, "K", 9, file))
        rows = np.tile([fx, fy, cx, cy], (count, 1))
    return [Lens("PINHOLE", width, height, tuple(map(float, row)), where) for row in rows]


def _table(content: Mapping[str, object], key: str, numbers: int, file: Path) -> np.ndarray:
    """Return a list of rows of so many finite numbers, (N, numbers) float64."""
    rows = content.get(key)
    try:
        table = np.array(rows, dtype=np.float64) if isinstance(rows, list) else np.empty(0)
    except (TypeError, ValueError, OverflowError):
        table = np.empty(0)
    if table.ndim > 1 and table[0].size == numbers:
        table = table.reshape(len(table), numbers)
    if table.ndim != 2 or table.shape[1] != numbers or not np.isfinite(table).all():
        raise InputError(
            f"{file}: {key!r} must be rows of {numbers} finite numbers, got {quoted(rows)}; export the recording again"
        )
    return table
