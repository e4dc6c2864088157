"""Looks at a mesh file before trimesh reads it, which takes counts as they come and skips what it cannot parse."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from splatopt.core.checks import InputError, quoted
from splatopt.data.ply_table import check_rows

MAX_FACES = 20_000_000
"""Faces that the instances of a glTF scene may add up to; more where the file itself is larger."""

_GLB_HEADER = struct.Struct("<4sIIII")
_STL_HEADER, _STL_FACE = 84, 50


def check_mesh_file(path: Path) -> None:
    """Make sure that a mesh file means what it says, as far as trimesh does not look itself.

    Raises:
        InputError: A corner has not three numbers, a face names a corner that is not there, or counts go beyond
            what the file holds.
    """
    check = _CHECKS.get(path.suffix.lower())
    if check is None:
        return
    try:
        check(path)
    except OSError as error:
        raise InputError(f"mesh {path} cannot be read: {error.strerror}; check the file and its rights") from error


def _refuse(path: Path, what: str) -> NoReturn:
    raise InputError(f"mesh {path} cannot be read: {what}; save it anew")


def _check_ply(path: Path) -> None:
    check_rows(path, "mesh")


# ---------------------------------------------------------------------- OBJ


def _check_obj(path: Path) -> None:
    corners, last, first = 0, 0, 1
    for number, line in _lines(path):
        words = line.split()
        if not words:
            continue
        if words[0] == b"v":
            corners += 1
            _check_corner(path, number, words[1:])
        elif words[0] == b"f":
            indices = [_index(path, number, word) for word in words[1:]]
            if len(indices) < 3:
                _refuse(path, f"line {number} is a face of {len(indices)} corners")
            last = max(last, *indices)
            # A negative number counts back from the corners so far.
            first = min(first, *(corners + 1 + index if index < 0 else index for index in indices))
    if last > corners or first < 1:
        _refuse(path, f"a face names corner {last if last > corners else first} of {corners}")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of an OBJ file with their numbers, those that go on after a backslash joined."""
    joined = b""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.rstrip(b"\r\n").endswith(b"\\"):
                joined += line.rstrip(b"\r\n")[:-1] + b" "
                continue
            yield number, (joined + line).partition(b"#")[0]
            joined = b""
    yield 0, joined


def _check_corner(path: Path, number: int, words: list[bytes]) -> None:
    try:
        good = len(words) >= 3 and all(math.isfinite(float(word)) for word in words[:3])
    except ValueError:
        good = False
    if not good:
        said = b" ".join(words).decode("utf-8", "surrogateescape")
        _refuse(path, f"the corner of line {number} should be three finite numbers, got {quoted(said)}")


def _index(path: Path, number: int, word: bytes) -> int:
    try:
        index = int(word.split(b"/")[0])
    except ValueError:
        index = 0
    if index == 0:
        said = word.decode("utf-8", "surrogateescape")
        _refuse(path, f"the face of line {number} should name corners by numbers from 1 on, got {quoted(said)}")
    return index


# ---------------------------------------------------------------------- STL


def _check_stl(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_STL_HEADER)
        if len(head) == _STL_HEADER:
            (faces,) = struct.unpack_from("<I", head, _STL_HEADER - 4)
            if size == _STL_HEADER + faces * _STL_FACE:
                return
            if not head.lstrip().lower().startswith(b"solid"):
                _refuse(path, f"it claims {faces} triangles but holds {size} bytes")
        file.seek(0)
        for number, line in enumerate(file, start=1):
            words = line.split()
            if b"vertex" in line.lower() and words[0].lower() != b"solid" and words[0].lower() != b"endsolid":
                if words[0].lower() != b"vertex" or len(words) != 4:
                    _refuse(path, f"line {number} should be one corner of three numbers")
                _check_corner(path, number, words[1:])


# ---------------------------------------------------------------------- glTF


def _check_gltf(path: Path) -> None:
    """Hold the counts of accessors and of instances against the bytes that are there; trimesh tells all else."""
    size = path.stat().st_size
    values = _gltf_header(path, size)
    if not isinstance(values, dict):
        _refuse(path, "it holds no glTF scene")
    for buffer in _objects(values, "buffers"):
        uri = buffer.get("uri")
        if isinstance(uri, str) and not uri.startswith("data:"):
            file = path.parent / uri
            size += file.stat().st_size if file.is_file() else 0
    accessors = [_whole(one.get("count")) for one in _objects(values, "accessors")]
    if max(accessors, default=0) > size:
        _refuse(path, f"it claims {max(accessors)} numbers but holds {size} bytes")
    faces = [
        sum(_faces(primitive, accessors) for primitive in _objects(mesh, "primitives"))
        for mesh in _objects(values, "meshes")
    ]
    shown = [_whole(node.get("mesh", -1)) for node in _objects(values, "nodes")]
    total = sum(faces[mesh] for mesh in shown if 0 <= mesh < len(faces))
    if total > max(MAX_FACES, size):
        _refuse(path, f"its instances add up to {total} faces")


def _gltf_header(path: Path, size: int) -> object:
    """Return the JSON part of a .glb or .gltf file."""
    with path.open("rb") as file:
        if path.suffix.lower() == ".glb":
            head = file.read(_GLB_HEADER.size)
            if len(head) < _GLB_HEADER.size or head[:4] != b"glTF":
                _refuse(path, "it does not begin as a .glb file does")
            length = _GLB_HEADER.unpack(head)[3]
            if length > size - _GLB_HEADER.size:
                _refuse(path, f"it claims {length} bytes of JSON but holds {size}")
            text = file.read(length)
        else:
            text = file.read()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"mesh {path} cannot be read: its description is no JSON; save it anew") from error


def _objects(values: dict[str, object], key: str) -> list[dict[str, object]]:
    """Return the list of objects under ``key``; an entry that is no object counts as an empty one."""
    found = values.get(key)
    return [one if isinstance(one, dict) else {} for one in found] if isinstance(found, list) else []


def _whole(value: object) -> int:
    return value if isinstance(value, int) else -1


def _faces(primitive: dict[str, object], accessors: list[int]) -> int:
    """Faces of a primitive: a third of its indices, or of its corners where it has none, at least; a strip has more."""
    attributes = primitive.get("attributes")
    corners = attributes.get("POSITION") if isinstance(attributes, dict) else None
    index = _whole(primitive.get("indices", corners))
    return accessors[index] if 0 <= index < len(accessors) else 0


_CHECKS = {
    ".obj": _check_obj,
    ".ply": _check_ply,
    ".stl": _check_stl,
    ".stl_ascii": _check_stl,
    ".glb": _check_gltf,
    ".gltf": _check_gltf,
}
