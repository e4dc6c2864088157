"""COLMAP models, binary and text.

The files are walked here and not by pycolmap: a model that is cut short makes its reader loop for
ever or come back with fewer views, without a word. Every count is checked against the bytes that
are there before anything is allocated. pycolmap stays the authority on camera models
(:mod:`splatopt.data.lens`), and the tests compare this reader with pycolmap's.

File format: https://colmap.github.io/format.html
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splatopt.core.checks import InputError, quoted
from splatopt.core.schema import rotation_entries
from splatopt.data.image_folders import copies, named_folder
from splatopt.data.lens import Lens, lens_model
from splatopt.data.source import Points, PosedImage, Source, check_translation, finite_points, registered_once

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse")
"""Where a model is looked for, below the capture."""

PROCEDURAL_MARK = "procedural.json"
"""A file that says that the capture was made by :mod:`splatopt.data.procedural`."""

_DAMAGED = "is cut short or damaged; copy it again or run COLMAP's model_converter"
_POINT_BYTES = 51  # id 8, position 24, colour 3, error 8, track length 8
_MIN_IMAGE_BYTES = 4 + 56 + 4 + 1 + 8
_MIN_CAMERA_BYTES = 24 + 3 * 8
_CHUNK = 65_536
_QUATERNION_LENGTHS = (1e-3, 1e3)
_USUAL_LENGTHS = (0.9, 1.1)


@dataclass(frozen=True)
class _RegisteredImage:
    number: int
    name: str
    camera: int
    pose: _Pose


@dataclass(frozen=True)
class _Pose:
    """World to camera, (4, 4), and how long the quaternion was that it was given as."""

    matrix: Tensor
    length: float


class _Bytes:
    """A binary file that is read from front to back and never beyond its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.data: bytes | mmap.mmap = b""
        self.size = 0
        try:
            with path.open("rb") as file:
                self.size = path.stat().st_size
                if self.size:
                    self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error

    def take(self, form: str) -> tuple:
        """Return the next fields of a ``struct`` format."""
        length = struct.calcsize(form)
        if self.offset + length > self.size:
            raise InputError(f"{self.path} {_DAMAGED}")
        values = struct.unpack_from(form, self.data, self.offset)
        self.offset += length
        return values

    def skip(self, length: int) -> None:
        """Go ``length`` bytes on."""
        if length > self.size - self.offset:
            raise InputError(f"{self.path} {_DAMAGED}")
        self.offset += length

    def count(self, smallest: int) -> int:
        """Return the next count, of records of at least ``smallest`` bytes each."""
        (number,) = self.take("<Q")
        if number * smallest > self.size - self.offset:
            raise InputError(f"{self.path} claims {number} records but holds {self.size} bytes; it {_DAMAGED}")
        return number

    def text(self) -> str:
        """Return the next zero-terminated string."""
        end = self.data.find(b"\0", self.offset)
        if end < 0:
            raise InputError(f"{self.path} {_DAMAGED}")
        value = self.data[self.offset : end].decode("utf-8", errors="surrogateescape")
        self.offset = end + 1
        return value

    def finish(self) -> None:
        """Refuse a file that goes on after its last record."""
        if self.offset != self.size:
            raise InputError(f"{self.path} holds {self.size - self.offset} bytes too many; it {_DAMAGED}")


def _pose(quaternion: tuple[float, ...], translation: tuple[float, ...], where: str) -> _Pose:
    """Return the world-to-camera matrix of a wxyz quaternion (normalised here) and a translation."""
    values = np.array([*quaternion, *translation], dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{where}: the pose holds a NaN or an infinite number; remove this view or mend its pose")
    with np.errstate(over="ignore"):
        length = float(np.linalg.norm(values[:4]))
    if length < 1e-12:
        raise InputError(f"{where}: the rotation is a zero quaternion; remove this view or mend its pose")
    if not _QUATERNION_LENGTHS[0] <= length <= _QUATERNION_LENGTHS[1]:
        raise InputError(
            f"{where}: the rotation is a quaternion of length {length:.3g}, expected 1; remove this view or "
            "mend its pose"
        )
    check_translation(values[4:], where)
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(rotation_entries(*(values[:4] / length)), (3, 3))
    matrix[:3, 3] = values[4:]
    return _Pose(torch.from_numpy(matrix), length)


def _add_camera(lenses: dict[int, Lens], number: int, lens: Lens, warnings: list[str]) -> None:
    """Keep a camera under its number; one that is given twice must be the same both times."""
    if lenses.setdefault(number, lens) is lens:
        return
    if lenses[number] != lens:
        raise InputError(f"{lens.where} is given twice, and differently; remove or renumber one of them")
    warnings.append(f"{lens.where} is given twice, the same both times")


def _cameras_binary(path: Path, warnings: list[str]) -> dict[int, Lens]:
    file, lenses = _Bytes(path), dict[int, Lens]()
    for _ in range(file.count(_MIN_CAMERA_BYTES)):
        number, model_number, width, height = file.take("<IiQQ")
        model = lens_model(int(model_number), str(path))
        parameters = file.take(f"<{model.parameter_count}d")
        lens = Lens(model.name, width, height, parameters, f"{path}, camera {number}")
        _add_camera(lenses, number, lens, warnings)
    file.finish()
    return lenses


def _images_binary(path: Path) -> list[_RegisteredImage]:
    file, images = _Bytes(path), []
    for _ in range(file.count(_MIN_IMAGE_BYTES)):
        values = file.take("<I7dI")
        name = file.text()
        file.skip(24 * file.count(24))
        pose = _pose(values[1:5], values[5:8], f"{path}, image {quoted(name)}")
        images.append(_RegisteredImage(values[0], name, values[8], pose))
    file.finish()
    return images


def _points_binary(path: Path, warnings: list[str]) -> Points:
    file = _Bytes(path)
    starts = np.empty(file.count(_POINT_BYTES), dtype=np.int64)
    data, size, offset, length_at = file.data, file.size, file.offset, _POINT_BYTES - 8
    for index in range(len(starts)):
        if offset + _POINT_BYTES > size:
            raise InputError(f"{path} {_DAMAGED}")
        starts[index] = offset
        offset += _POINT_BYTES + 8 * int.from_bytes(data[offset + length_at : offset + _POINT_BYTES], "little")
    if offset > size:
        raise InputError(f"{path} {_DAMAGED}")
    file.offset = offset
    file.finish()
    positions = np.empty((len(starts), 3), dtype=np.float64)
    colors = np.empty((len(starts), 3), dtype=np.uint8)
    raw = np.frombuffer(data, dtype=np.uint8)
    for first in range(0, len(starts), _CHUNK):
        rows = slice(first, first + _CHUNK)
        records = raw[starts[rows, None] + np.arange(8, 35)]
        positions[rows] = np.ascontiguousarray(records[:, :24]).view("<f8")
        colors[rows] = records[:, 24:]
    return finite_points(positions, colors, warnings)


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, stripped, without comments; empty lines stay."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                if not line.startswith("#"):
                    yield line.strip()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _numbers(words: list[str], kind: type, where: str) -> tuple:
    try:
        return tuple(kind(word) for word in words)
    except ValueError as error:
        raise InputError(f"{where} {_DAMAGED}: expected numbers, got {quoted(' '.join(words))}") from error


def _cameras_text(path: Path, warnings: list[str]) -> dict[int, Lens]:
    lenses: dict[int, Lens] = {}
    for line in filter(None, _lines(path)):
        words = line.split()
        number, *size = _numbers([words[0], *words[2:4]], int, str(path))
        where = f"{path}, camera {number}"
        if len(size) != 2:
            raise InputError(f"{where} {_DAMAGED}")
        lens_model(words[1], where)
        lens = Lens(words[1], size[0], size[1], _numbers(words[4:], float, where), where)
        _add_camera(lenses, number, lens, warnings)
    return lenses


def _images_text(path: Path) -> list[_RegisteredImage]:
    images, lines = [], _lines(path)
    for line in lines:
        if not line:
            continue
        words = line.split(maxsplit=9)
        if len(words) != 10:
            raise InputError(f"{path} {_DAMAGED}: expected 10 words about an image, got {quoted(line)}")
        where = f"{path}, image {quoted(words[9])}"
        values = _numbers(words[1:8], float, where)
        number, camera = _numbers([words[0], words[8]], int, where)
        images.append(_RegisteredImage(number, words[9], camera, _pose(values[:4], values[4:], where)))
        next(lines, None)  # the line of 2D points, which may be empty
    return images


def _points_text(path: Path, warnings: list[str]) -> Points:
    rows = []
    for line in filter(None, _lines(path)):
        words = line.split(maxsplit=8)
        if len(words) < 8:
            raise InputError(f"{path} {_DAMAGED}: expected 8 numbers about a point, got {quoted(line)}")
        rows.append(_numbers(words[1:7], float, str(path)))
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    if not ((table[:, 3:] >= 0) & (table[:, 3:] <= 255)).all():
        raise InputError(f"{path} {_DAMAGED}: a colour lies outside 0 to 255")
    return finite_points(table[:, :3], table[:, 3:].astype(np.uint8), warnings)


def _suffix(folder: Path) -> str | None:
    """Return ``.bin`` or ``.txt``, whichever a model in ``folder`` is made of, binary first as COLMAP does."""
    for suffix in (".bin", ".txt"):
        if (folder / f"cameras{suffix}").is_file() and (folder / f"images{suffix}").is_file():
            return suffix
    return None


def _registered(folder: Path) -> int:
    """Return how many images the model in ``folder`` says it has, read cheaply."""
    if _suffix(folder) == ".bin":
        return _Bytes(folder / "images.bin").count(_MIN_IMAGE_BYTES)
    lines = _lines(folder / "images.txt")
    count = 0
    for line in lines:
        if line:
            count += 1
            next(lines, None)
    return count


def find_model(path: Path, warnings: list[str]) -> Path | None:
    """Return the folder of the COLMAP model of a capture, the largest of several.

    Args:
        path: The capture.
        warnings: Gets a sentence if there were several.

    Returns:
        The folder, or None if there is no model.
    """
    found: list[Path] = []
    for name in MODEL_FOLDERS:
        folder = path / name
        if _suffix(folder) and folder not in found:
            found.append(folder)
        if folder.is_dir() and folder.name == "sparse":
            found += [sub for sub in sorted(folder.iterdir()) if _suffix(sub) and sub not in found]
    if len(found) < 2:
        return found[0] if found else None
    sizes = {folder: _registered(folder) for folder in found}
    best = max(found, key=lambda folder: sizes[folder])
    others = ", ".join(f"{folder.relative_to(path)} ({sizes[folder]})" for folder in found if folder != best)
    warnings.append(
        f"several models were found; used {best.relative_to(path)} with {sizes[best]} images and not {others}"
    )
    return best


def _image_folder(path: Path, images: str | None, warnings: list[str]) -> Path:
    """Return the folder of the images: ``images``, or else that of ``images_2``, ``images_4``, … that shrinks least.

    Where a folder is asked for by name, it is that one.
    """
    if images is not None:
        return named_folder(path, images)
    folder = path / "images"
    if folder.is_dir():
        return folder
    shrunk = [(int(sub.name[7:]), sub) for sub in path.glob("images_*") if sub.is_dir() and sub.name[7:].isdigit()]
    if not shrunk:
        raise InputError(f"no folder {folder} beside the COLMAP model; put the images there")
    chosen = min(shrunk)[1]
    warnings.append(f"there is no folder images; the smaller copies in {chosen.name} are used")
    return chosen


def _say_what_is_odd(registered: list[_RegisteredImage], images: Path, warnings: list[str]) -> None:
    """Warn of what does no harm here: numbers that are given twice, and quaternions that are not of length 1."""
    twice = [number for number, count in Counter(image.number for image in registered).items() if count > 1]
    if twice:
        warnings.append(f"{images} gives the image number {twice[0]} to several images; they are told apart by name")
    minimum, maximum = _USUAL_LENGTHS
    odd = [image for image in registered if not minimum <= image.pose.length <= maximum]
    if odd:
        warnings.append(
            f"{images}: {len(odd)} rotations are quaternions whose length is not 1, such as {odd[0].pose.length:.3g} "
            f"of {quoted(odd[0].name)}; they are normalised"
        )


def read_colmap(path: Path, model: Path, warnings: list[str], images_in: str | None = None) -> Source:
    """Read the model in ``model`` of the capture ``path``.

    Args:
        path: The capture, which holds ``images``.
        model: The folder found by :func:`find_model`.
        warnings: Sentences that go into the source.
        images_in: Name of the folder beside ``images`` that holds the photographs; None for ``images``.

    Raises:
        InputError: A file is missing, damaged, or says what no capture can mean.
    """
    suffix = _suffix(model)
    cameras, images, points3d = (model / f"{name}{suffix}" for name in ("cameras", "images", "points3D"))
    binary = suffix == ".bin"
    lenses = _cameras_binary(cameras, warnings) if binary else _cameras_text(cameras, warnings)
    registered = _images_binary(images) if binary else _images_text(images)
    points = None
    if points3d.is_file():
        points = _points_binary(points3d, warnings) if binary else _points_text(points3d, warnings)
    folder = _image_folder(path, images_in, warnings)
    files = None if images_in is None else copies(folder, [image.name for image in registered], warnings)
    views = []
    for image in sorted(registered, key=lambda image: image.name):
        if image.camera not in lenses:
            raise InputError(
                f"{images}, image {quoted(image.name)}: its camera {image.camera} is not in {cameras.name}; "
                "the model's files do not belong together"
            )
        file = folder / image.name if files is None else files[image.name]
        views.append(PosedImage(image.name, file, image.pose.matrix, lenses[image.camera]))
    _say_what_is_odd(registered, images, warnings)
    views = registered_once(views, str(images), warnings)
    kind = "procedural" if (path / PROCEDURAL_MARK).is_file() else "colmap"
    return Source(kind, tuple(views), points, tuple(warnings))
