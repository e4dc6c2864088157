"""The files of a COLMAP model, binary and text.

They are walked here and not by pycolmap: a model that is cut short makes its reader loop for
ever or come back with fewer views, without a word. Every count is checked against the bytes that
are there before anything is allocated, and every line of a text is read or refused. pycolmap stays
the authority on camera models (:mod:`splatopt.data.lens`), and the tests compare this reader with
pycolmap's.

File format: https://colmap.github.io/format.html
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splatopt.core.checks import InputError, quoted
from splatopt.core.schema import rotation_entries
from splatopt.data.lens import Lens, lens_model
from splatopt.data.source import Points, check_translation, finite_points
from splatopt.data.text_files import text_lines

_DAMAGED = "is cut short or damaged; copy it again or run COLMAP's model_converter"
_POINT_BYTES = 51  # id 8, position 24, colour 3, error 8, track length 8
_MIN_IMAGE_BYTES = 4 + 56 + 4 + 1 + 8
_MIN_CAMERA_BYTES = 24 + 3 * 8
_CHUNK = 65_536
_QUATERNION_LENGTHS = (1e-3, 1e3)
USUAL_LENGTHS = (0.9, 1.1)
"""Lengths of quaternions that are said to be 1."""

_IMAGE_WORDS = 10
_POINT_WORDS = 8
_DECLARED = re.compile(r"#\s*Number of (?:cameras|images|points)\D{0,3}(\d{1,18})")


@dataclass(frozen=True)
class Pose:
    """World to camera, (4, 4), and how long the quaternion was that it was given as."""

    matrix: Tensor
    length: float


@dataclass(frozen=True)
class RegisteredImage:
    """One image of a model: its number, its name, the number of its camera, its pose."""

    number: int
    name: str
    camera: int
    pose: Pose


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


def _pose(quaternion: tuple[float, ...], translation: tuple[float, ...], where: str) -> Pose:
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
    return Pose(torch.from_numpy(matrix), length)


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


def _images_binary(path: Path) -> list[RegisteredImage]:
    file, images = _Bytes(path), []
    for _ in range(file.count(_MIN_IMAGE_BYTES)):
        values = file.take("<I7dI")
        name = file.text()
        file.skip(24 * file.count(24))
        pose = _pose(values[1:5], values[5:8], f"{path}, image {quoted(name)}")
        images.append(RegisteredImage(values[0], name, values[8], pose))
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


class _Lines:
    """A text file that is read line by line; comments are left out, and what they say of the number of records kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.declared: int | None = None

    def __iter__(self) -> Iterator[str]:
        for line in text_lines(self.path):
            stripped = line.strip()
            if not stripped.startswith("#"):
                yield stripped
            elif found := _DECLARED.match(stripped):
                self.declared = int(found[1])

    def check_count(self, count: int, what: str, warnings: list[str]) -> None:
        """Warn where the file says of itself that it holds more records than there are."""
        if self.declared is not None and count < self.declared:
            said = f"says that it holds {self.declared} {what}, and holds {count}"
            warnings.append(f"{self.path} {said}; it may have been cut short")


def _numbers(words: list[str], kind: type, where: str) -> tuple:
    try:
        return tuple(kind(word) for word in words)
    except ValueError as error:
        raise InputError(f"{where} {_DAMAGED}: expected numbers, got {quoted(' '.join(words))}") from error


def _cameras_text(path: Path, warnings: list[str]) -> dict[int, Lens]:
    lenses: dict[int, Lens] = {}
    lines, count = _Lines(path), 0
    for line in filter(None, lines):
        words = line.split()
        number, *size = _numbers([words[0], *words[2:4]], int, str(path))
        where = f"{path}, camera {number}"
        if len(size) != 2:
            raise InputError(f"{where} {_DAMAGED}")
        lens_model(words[1], where)
        lens = Lens(words[1], size[0], size[1], _numbers(words[4:], float, where), where)
        _add_camera(lenses, number, lens, warnings)
        count += 1
    lines.check_count(count, "cameras", warnings)
    return lenses


def _images_text(path: Path, cameras: Container[int], warnings: list[str]) -> list[RegisteredImage]:
    """Read images, each with or without the line of 2D points that COLMAP writes after it, which may be empty."""
    images: list[RegisteredImage] = []
    lines, after_image = _Lines(path), False
    for line in lines:
        if not line or (after_image and _are_points(line, cameras, path)):
            after_image = False
            continue
        images.append(_image(line, path))
        after_image = True
    lines.check_count(len(images), "images", warnings)
    return images


def _image(line: str, path: Path) -> RegisteredImage:
    words = line.split(maxsplit=_IMAGE_WORDS - 1)
    if len(words) != _IMAGE_WORDS:
        raise InputError(f"{path} {_DAMAGED}: expected 10 words about an image, got {quoted(line)}")
    where = f"{path}, image {quoted(words[9])}"
    values = _numbers(words[1:8], float, where)
    number, camera = _numbers([words[0], words[8]], int, where)
    return RegisteredImage(number, words[9], camera, _pose(values[:4], values[4:], where))


def _are_points(line: str, cameras: Container[int], path: Path) -> bool:
    """Whether the line after an image holds its 2D points, X Y POINT3D_ID each; else it is the next image.

    An image whose name consists of numbers looks like points where these come in threes. It is an image for certain
    only if its quaternion has a length of 1 and its camera exists.

    Raises:
        InputError: It holds numbers and is neither, or could be both.
    """
    words = line.split()
    is_image = False
    try:
        values = [float(word) for word in words]
        if len(words) >= _IMAGE_WORDS and words[0].isdecimal() and words[8].isdecimal():
            is_image = int(words[8]) in cameras
    except ValueError:  # also of more digits than Python reads
        return False
    in_threes = len(words) % 3 == 0
    is_image = is_image and USUAL_LENGTHS[0] <= float(np.linalg.norm(values[1:5])) <= USUAL_LENGTHS[1]
    if in_threes and is_image:
        raise InputError(
            f"{path}: {quoted(line)} can be an image or the 2D points of the image before; write the line of 2D "
            "points, which may be empty, after every image"
        )
    if not in_threes and not is_image:
        raise InputError(
            f"{path} {_DAMAGED}: expected 2D points of three numbers each or 10 words about an image, got "
            f"{quoted(line)}"
        )
    return in_threes


def _points_text(path: Path, warnings: list[str]) -> Points:
    rows, lines = [], _Lines(path)
    for line in filter(None, lines):
        words = line.split()
        if len(words) < _POINT_WORDS:
            raise InputError(f"{path} {_DAMAGED}: expected 8 numbers about a point, got {quoted(line)}")
        _numbers([words[0], *words[_POINT_WORDS:]], float, str(path))
        if len(words) % 2:
            raise InputError(f"{path} {_DAMAGED}: expected two numbers about each view of a point, got {quoted(line)}")
        rows.append(_numbers(words[1:_POINT_WORDS], float, str(path))[:6])
    lines.check_count(len(rows), "points", warnings)
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    colors = table[:, 3:]
    if not ((colors >= 0) & (colors <= 255)).all():
        raise InputError(f"{path} {_DAMAGED}: a colour lies outside 0 to 255")
    if (colors != np.rint(colors)).any() and colors.max() <= 1:
        warnings.append(f"the colours of {path} are fractions, and are taken for parts of 1")
        colors = colors * 255
    return finite_points(table[:, :3], np.rint(colors).astype(np.uint8), warnings)


@dataclass(frozen=True)
class Model:
    """Where the files of a model lie, and how they are read.

    Attributes:
        folder: Holds them.
        suffix: ``.bin`` or ``.txt``.
    """

    folder: Path
    suffix: str

    def file(self, name: str) -> Path:
        """Return the place of ``cameras``, ``images`` or ``points3D``."""
        return self.folder / f"{name}{self.suffix}"

    @property
    def is_binary(self) -> bool:
        """Whether its files are binary."""
        return self.suffix == ".bin"

    def count(self) -> int:
        """Return how many images it says it has, read cheaply where it is binary."""
        if self.is_binary:
            return _Bytes(self.file("images")).count(_MIN_IMAGE_BYTES)
        return len(self.images(self.cameras([]), []))

    def cameras(self, warnings: list[str]) -> dict[int, Lens]:
        """Return its lenses by number; raises InputError where the file is damaged."""
        return (_cameras_binary if self.is_binary else _cameras_text)(self.file("cameras"), warnings)

    def images(self, cameras: Container[int], warnings: list[str]) -> list[RegisteredImage]:
        """Return its images; raises InputError where the file is damaged.

        Args:
            cameras: Numbers of its cameras.
            warnings: Gets a sentence where the file is odd.
        """
        file = self.file("images")
        return _images_binary(file) if self.is_binary else _images_text(file, cameras, warnings)

    def points(self, warnings: list[str]) -> Points | None:
        """Return its points, None where there is no file of them; raises InputError where it is damaged."""
        file = self.file("points3D")
        if not file.is_file():
            return None
        return (_points_binary if self.is_binary else _points_text)(file, warnings)


def model_in(folder: Path) -> Model | None:
    """Return the model in ``folder``, None where there is none; of two the binary one, as COLMAP does."""
    for suffix in (".bin", ".txt"):
        model = Model(folder, suffix)
        if model.file("cameras").is_file() and model.file("images").is_file():
            return model
    return None
