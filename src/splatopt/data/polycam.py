"""Polycam's raw data: ``keyframes`` with one JSON file per photograph.

``t_00`` … ``t_23`` are the rows of the camera-to-world matrix, with ARKit's axes of the camera (x right, y up, z
backward); the world has y up.

Source: https://github.com/PolyCam/polyform, "Camera data".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from splatopt.core.checks import InputError, short
from splatopt.data.image_folders import unused_folders
from splatopt.data.image_lookup import find_images, is_hidden, unregistered
from splatopt.data.lens import Lens
from splatopt.data.point_files import find_points
from splatopt.data.source import PosedImage, Source, opengl_to_world_to_camera
from splatopt.data.transforms import finite_number, read_object

KEYFRAMES = "keyframes"
"""The folder in which Polycam's photographs and cameras lie."""

_CORRECTED = ("corrected_cameras", "corrected_images")
_AS_RECORDED = ("cameras", "images")
_POSE = tuple(f"t_{row}{column}" for row in range(3) for column in range(4))


def find_keyframes(path: Path) -> Path | None:
    """Return the folder with Polycam's folders of cameras: ``keyframes`` in ``path``, or ``path``; None without one."""
    for folder in (path / KEYFRAMES, path):
        if (folder / _CORRECTED[0]).is_dir() or ((folder / _AS_RECORDED[0]).is_dir() and folder.name == KEYFRAMES):
            return folder
    return None


def read_polycam(path: Path) -> Source:
    """Read the corrected cameras and photographs, else those as they were recorded.

    Args:
        path: The folder, or its ``keyframes``.

    Raises:
        InputError: A file is malformed.
    """
    folder = find_keyframes(path)
    if folder is None:
        raise InputError(f"{path} has no folder {KEYFRAMES} of Polycam's; export the raw data")
    warnings: list[str] = []
    corrected = [folder / name for name in _CORRECTED]
    cameras, images = corrected if all(map(_holds_files, corrected)) else (folder / name for name in _AS_RECORDED)
    if cameras.name == _AS_RECORDED[0]:
        warnings.append(
            f"there are no corrected cameras in {short(folder)}; those are used that the phone recorded, which drift"
        )
    files = sorted(file for file in cameras.glob("*.json") if not is_hidden(file.name))
    named = find_images(images, [f"{file.stem}.jpg" for file in files], warnings)
    views = [_view(file, image.path) for file, image in zip(files, named, strict=True)]
    found = [*unused_folders(folder), *unregistered(folder, [view.path for view in views])]
    points = find_points(path, {}, views, warnings)
    return Source("polycam", tuple(views), points, tuple(warnings), found=tuple(found))


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and not all(is_hidden(one.name) for one in folder.iterdir())


def _view(file: Path, image: Path) -> PosedImage:
    """Return the view of ``image`` that one file describes."""
    content, where = read_object(file), str(file)

    def value(key: str) -> float:
        given = finite_number(content, key, where)
        if given is None:
            raise InputError(f"{where}: {key!r} is missing; export the raw data again")
        return given

    pose = np.eye(4)
    pose[:3] = np.reshape([value(key) for key in _POSE], (3, 4))
    size = round(value("width")), round(value("height"))
    lens = Lens("PINHOLE", *size, (value("fx"), value("fy"), value("cx"), value("cy")), where)
    return PosedImage(image.name, image, opengl_to_world_to_camera(pose, where), lens)
