"""Packed scene files, told from others by what they hold and called by their names.

- SuperSplat's compressed PLY: a PLY with the properties ``packed_position`` and so on, in chunks of 256.
- ``.spz`` (Niantic): ``NGSP``, gzipped in its first versions.
- ``.sog`` (PlayCanvas): a ZIP of WebP pictures and ``meta.json``, or that file beside the pictures.
- ``.ksplat`` (mkkellogg's GaussianSplats3D): 4096 bytes of header that begin with the version 0.1.
- ``.splat`` (antimatter15): rows of 32 bytes without a header, centre and size as float32, colour and quaternion as
  bytes.
"""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from enum import Enum
from pathlib import Path

import numpy as np

from splatopt.core.checks import InputError, short

SCENE_ENDINGS = frozenset({".ply", ".splat", ".spz", ".ksplat", ".sog"})
"""Endings of scene files."""


class Packed(Enum):
    """The packed kinds, by what people call them."""

    COMPRESSED_PLY = "SuperSplat's compressed PLY"
    SPZ = "Niantic's SPZ"
    SOG = "PlayCanvas' SOG"
    KSPLAT = "the .ksplat of GaussianSplats3D"
    SPLAT = "the .splat of web viewers"


_LOOKED_AT = 1 << 16
_KSPLAT_HEADER = struct.Struct("<BBHIIIIH")
_KSPLAT_HEADER_BYTES, _KSPLAT_SECTION_BYTES = 4096, 1024
SPLAT_ROW = np.dtype([("center", "<f4", 3), ("size", "<f4", 3), ("color", "u1", 4), ("quat", "u1", 4)])
"""A row of a ``.splat``: standard deviations, RGB and opacity as bytes, wxyz as (byte - 128) / 128."""

_UNIT_QUATERNION = 0.05
"""How far the length of a quaternion of four bytes is from 1, at most."""
_MIN_GOOD = 0.9


def check_not_packed(path: Path) -> None:
    """Raise InputError where a file is a packed scene, whatever its ending; says which and what to do."""
    kind = packed_kind(path)
    if kind:
        raise InputError(
            f"{short(path)} is packed ({kind.value}), where plain rows are expected; `splatopt convert FILE scene.ply` "
            "unpacks it"
        )


def packed_kind(path: Path) -> Packed | None:
    """Return what kind of packed scene a file is; None for any other file, and for one that cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(_LOOKED_AT)
        return _kind(path, head, path.stat().st_size)
    except OSError:
        return None


def _kind(path: Path, head: bytes, size: int) -> Packed | None:
    if head[:3] == b"ply":
        is_packed = b"packed_position" in head.partition(b"end_header")[0]
        return Packed.COMPRESSED_PLY if is_packed else None
    if head[:4] == b"NGSP" or (head[:2] == b"\x1f\x8b" and _unzipped(path) == b"NGSP"):
        return Packed.SPZ
    if _is_sog(path, head):
        return Packed.SOG
    if _is_ksplat(head, size):
        return Packed.KSPLAT
    return Packed.SPLAT if _is_splat(head, size) else None


def _unzipped(path: Path) -> bytes:
    """Return the first four bytes of a gzipped file, as far as there are any."""
    try:
        with gzip.open(path) as file:
            return file.read(4)
    except (OSError, EOFError, zlib.error):
        return b""


def _is_sog(path: Path, head: bytes) -> bool:
    if head[:1] == b"{":
        return b'"means"' in head and b"means_l.webp" in head
    if head[:4] != b"PK\x03\x04":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False
    return "meta.json" in names and any(name.startswith("means") for name in names)


def _is_ksplat(head: bytes, size: int) -> bool:
    if len(head) < _KSPLAT_HEADER_BYTES:
        return False
    major, minor, _, max_sections, sections, max_splats, splats, level = _KSPLAT_HEADER.unpack_from(head)
    return (
        (major, minor) == (0, 1)
        and sections <= max_sections
        and 0 < splats <= max_splats
        and level <= 2
        and _KSPLAT_HEADER_BYTES + max_sections * _KSPLAT_SECTION_BYTES <= size
    )


def _is_splat(head: bytes, size: int) -> bool:
    """Whether nearly all rows are finite, of a positive size and turned by a unit quaternion."""
    if size == 0 or size % SPLAT_ROW.itemsize:
        return False
    rows = np.frombuffer(head, SPLAT_ROW, count=len(head) // SPLAT_ROW.itemsize)
    length = np.linalg.norm((rows["quat"].astype(np.float64) - 128) / 128, axis=1)
    good = np.isfinite(rows["center"]).all(axis=1) & np.isfinite(rows["size"]).all(axis=1)
    good &= (rows["size"] > 0).all(axis=1) & (np.abs(length - 1) < _UNIT_QUATERNION)
    return bool(good.mean() >= _MIN_GOOD)
