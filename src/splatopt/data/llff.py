"""LLFF's captures: ``poses_bounds.npy`` beside the photographs.

Each of its N rows has 17 numbers: a matrix of 3 x 5 row by row, whose columns are the camera's axes down, right and
backwards in the world, its place, and the height, the width and the focal length of the photograph in pixels; then the
nearest and the farthest depth, which are not used.

Source: https://github.com/Fyusion/LLFF, "Using your own poses without running COLMAP".
"""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError

import numpy as np

from splatopt.core.checks import InputError, quoted, short
from splatopt.data.image_folders import image_files, named_folder, shrunk_folder
from splatopt.data.lens import Lens
from splatopt.data.point_files import find_points
from splatopt.data.source import PosedImage, Source, opengl_to_world_to_camera

POSES_FILE = "poses_bounds.npy"
"""The file whose presence makes a folder an LLFF capture."""

_NUMBERS = 17
_MAX_HEADER_BYTES = 10_000
_MAX_BYTES = 512 * 2**20
_DAMAGED = (
    *(ValueError, TypeError, SyntaxError, EOFError, ArithmeticError, LookupError, AttributeError),
    *(MemoryError, RecursionError, TokenError),
)
"""What NumPy raises of a header that is none."""


def read_llff(path: Path, images: str | None = None) -> Source:
    """Read the views of an LLFF capture; the n-th row is the n-th photograph by name.

    Args:
        path: The folder.
        images: Name of the folder that holds the photographs; None for ``images``, without which that of ``images_2``,
            ``images_4``, … that shrinks the photographs least.

    Raises:
        InputError: The file is malformed, or there are not as many photographs as rows.
    """
    file = path / POSES_FILE
    rows = _rows(file)
    warnings: list[str] = []
    folder = named_folder(path, images or _folder(path, warnings))
    names = image_files(folder)
    if len(names) != len(rows):
        raise InputError(
            f"{file} has {len(rows)} poses but {short(folder)} {len(names)} photographs, and which belongs to which "
            "cannot be known; put those of the poses alone there"
        )
    views = []
    for name, row in zip(names, rows, strict=True):
        where = f"{file}, view {quoted(name)}"
        down, right, backwards, place, (height, width, focal) = row[:15].reshape(3, 5).T
        pose = np.eye(4)
        pose[:3] = np.stack([right, -down, backwards, place], axis=1)
        world_to_camera = opengl_to_world_to_camera(pose, where)
        if not np.isfinite([height, width, focal]).all() or max(height, width) > 1e9:
            raise InputError(f"{where}: height, width and focal length must be finite numbers of pixels")
        size = round(width), round(height)
        lens = Lens("PINHOLE", *size, (focal, focal, width / 2, height / 2), where)
        views.append(PosedImage(name, folder / name, world_to_camera, lens))
    points = find_points(path, {}, views, warnings)
    return Source("llff", tuple(views), points, tuple(warnings))


def _folder(path: Path, warnings: list[str]) -> str:
    """Return the name of the folder with the photographs."""
    if (path / "images").is_dir():
        return "images"
    shrunk = shrunk_folder(path)
    if shrunk is None:
        raise InputError(f"no folder {short(path / 'images')} beside {POSES_FILE}; put the photographs there")
    warnings.append(f"there is no folder images; the smaller copies in {shrunk} are used")
    return shrunk


def _rows(file: Path) -> np.ndarray:
    """Return the rows, (N, 17) float64; mapped, so that no header makes us allocate more than the file holds."""
    expected = f"expected a NumPy array of N rows of {_NUMBERS} numbers; make it anew with LLFF's imgs2poses.py"
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InputError(f"{file} is larger than {_MAX_BYTES >> 20} MiB, which no file of camera poses is")
        with file.open("rb") as opened:
            is_array = opened.read(6) == b"\x93NUMPY"
        rows = np.load(file, mmap_mode="r", allow_pickle=False, max_header_size=_MAX_HEADER_BYTES) if is_array else None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}; {expected}") from error
    except InputError:
        raise
    except _DAMAGED as error:
        raise InputError(f"{file} is damaged or no array of numbers; {expected}") from error
    if rows is None or rows.ndim != 2 or rows.shape[1] != _NUMBERS or rows.dtype.kind not in "fiu":
        raise InputError(f"{file} is no table of poses; {expected}")
    return np.array(rows, dtype=np.float64)
