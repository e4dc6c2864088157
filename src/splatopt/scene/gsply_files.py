"""SPZ and SuperSplat's compressed PLY through gsply; what a file claims is held against its bytes first.

SPZ (Niantic, https://github.com/nianticlabs/spz) lies in a frame with x right, y up, z back, where scenes of captures
have y down and z forward as PLYs do: files are turned by half a turn about x both ways, as SuperSplat and Niantic's own
tools do. gsply turns nothing. Versions 2 and 3 are gzipped, 4 holds one zstd stream for each part.

Compressed PLY (PlayCanvas) holds rows in chunks of 256 as whole numbers between the chunk's bounds, so that rows which
are near each other belong together: they are ordered along a Z-curve before.
"""

from __future__ import annotations

import gzip
import importlib
import math
import struct
import tempfile
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from splatopt.core.checks import InputError, short
from splatopt.core.schema import SH_REST_COUNTS
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.ply import checked_cloud, unit_quaternions, warn_of_ends, write_whole
from splatopt.scene.similarity import HALF_TURN_ABOUT_X

_CHUNK = 256
_BOUNDED = (("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b"))
_BOUNDS = [f"{end}_{name}" for part in _BOUNDED for end in ("min", "max") for name in part]
_PACKED = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]
_MAX_HEADER = 1 << 16

_SPZ_HEADER = struct.Struct("<4sIIBBBB")
_SPZ_V4_HEADER = struct.Struct("<4sIIBBBBI")
_STREAM = struct.Struct("<QQ")
_FLAGS_AT, _ANTIALIASED = 14, 1
"""A header's byte of flags, and the bit in it."""
_MIN_ALLOWED, _MAX_RATIO = 64 << 20, 100
"""What a file unpacks to may take so many bytes, or so many times those of the file."""
_MAX_FRACTION_BITS, _POSITION_BITS = 24, 23
_SPZ_RANGES = {
    "log_scales": (-10.0, 5.9375, "sizes"),
    "sh_dc": (-10 / 3, 10 / 3, "colours"),
    "sh_rest": (-1.0, 127 / 128, "view-dependent colours"),
}
"""What the bytes of each part can say."""
_COMPRESSED_RANGES = {"log_scales": (-20.0, 20.0, "sizes"), "sh_rest": (-4.0, 4.0, "view-dependent colours")}


def _gsply(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{what} needs {error.name or name}, which is not here; pip install 'splatopt[packed]'"
        ) from None


def save_spz(cloud: GaussianCloud, path: Path, warnings: list[str], *, antialiased: bool = False) -> None:
    """Write a cloud as SPZ, version 3, which every reader takes.

    Args:
        cloud: In a frame with y down and z forward.
        path: The file.
        warnings: Gets a sentence for what SPZ cannot hold.
        antialiased: Whether the file says that the scene wants the antialiased footprint.

    Raises:
        InputError: gsply is missing, positions are beyond what SPZ holds, or the file cannot be written.
    """
    spz, data = _gsply("gsply.spz", "SPZ"), _gsply("gsply.gsdata", "SPZ")
    farthest = max(float(cloud.means.abs().max()), 1e-6)
    bits = min(_MAX_FRACTION_BITS, math.floor(_POSITION_BITS - math.log2(farthest) - 1e-6))
    if bits < 1:
        raise InputError(
            f"positions up to {farthest:.3g} do not fit SPZ, which ends at {1 << (_POSITION_BITS - 1):,}; "
            "give --center or --frame local, or write .ply"
        )
    middle = float(cloud.log_scales.double().mean(dim=1).median().exp())
    if 2.0**-bits > middle:
        warnings.append(
            f"SPZ holds positions to {2.0**-bits:.2g} here, where Gaussians are {middle:.2g} large; give --center, or "
            "--crop what is far away"
        )
    warn_of_ends(cloud, _SPZ_RANGES, "SPZ", warnings)
    rows = _rows(HALF_TURN_ABOUT_X.cloud(cloud))
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "scene.spz"
        spz.write_spz(packed, data.GSData.from_arrays(**rows, format="ply"), version=3, fractional_bits=bits)
        content = packed.read_bytes()
    if antialiased:
        plain = bytearray(gzip.decompress(content))
        plain[_FLAGS_AT] |= _ANTIALIASED
        content = gzip.compress(plain, mtime=0)
    write_whole(path, lambda stream: stream.write(content))


def save_compressed_ply(cloud: GaussianCloud, path: Path, warnings: list[str]) -> None:
    """Write a cloud as SuperSplat's compressed PLY.

    Args:
        cloud: The scene.
        path: The file.
        warnings: Gets a sentence for what the format cannot hold.

    Raises:
        InputError: gsply is missing, or the file cannot be written.
    """
    pack = _gsply("gsply.writer", "compressed PLY").compress_to_bytes
    warn_of_ends(cloud, _COMPRESSED_RANGES, "compressed PLY", warnings)
    order = _along_a_curve(cloud.means.detach().cpu())
    rows = _rows(cloud.map(lambda tensor: tensor.detach().cpu()[order]))
    packed = pack(*(rows[name] for name in ("means", "scales", "quats", "opacities", "sh0", "shN")))
    write_whole(path, lambda stream: stream.write(packed))


def load_compressed_ply(path: Path, warnings: list[str] | None = None) -> GaussianCloud:
    """Read SuperSplat's compressed PLY; errors and warnings as of :func:`~splatopt.scene.ply.load_ply`."""
    unpack = _gsply("gsply.reader", "compressed PLY").decompress_from_bytes
    content = path.read_bytes()
    header, rows = _check_compressed(path, content)
    return _cloud(path, unpack(header + content[rows:]), warnings)


def load_spz(path: Path, warnings: list[str] | None = None) -> GaussianCloud:
    """Read SPZ of the versions 2 to 4; errors and warnings as of :func:`~splatopt.scene.ply.load_ply`."""
    spz = _gsply("gsply.spz", "SPZ")
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    errors = () if is_gzip else (_gsply("zstandard", "SPZ of version 4").ZstdError,)
    flags = (_check_gzipped if is_gzip else _check_streams)(path)
    if flags & _ANTIALIASED and warnings is not None:
        warnings.append(
            f"{short(path)} says that it was trained with antialiasing; render it with --footprint antialiased"
        )
    try:
        data = spz.read_spz(path)
    except (ValueError, MemoryError, *errors) as error:
        raise InputError(f"{short(path)} is not a readable SPZ file: {error}; export or copy it again") from None
    return HALF_TURN_ABOUT_X.cloud(_cloud(path, data, warnings))


def _rows(cloud: GaussianCloud) -> dict[str, np.ndarray]:
    """Return the cloud's rows by gsply's names, quaternions of length 1."""
    parts = {
        "means": cloud.means,
        "scales": cloud.log_scales,
        "quats": unit_quaternions(cloud.quats),
        "opacities": cloud.logit_opacities.clamp(-30, 30),  # whose exponentials float32 holds
        "sh0": cloud.sh_dc,
        "shN": cloud.sh_rest,
    }
    return {name: part.detach().to("cpu", torch.float32).contiguous().numpy() for name, part in parts.items()}


def _cloud(path: Path, data: Any, warnings: list[str] | None) -> GaussianCloud:
    count = len(data.means)
    rest = data.shN if data.shN is not None and np.size(data.shN) else np.zeros((count, 0, 3), np.float32)
    parts = (data.means, data.scales, data.quats, np.reshape(data.opacities, count), data.sh0, rest)
    names = GaussianCloud.__dataclass_fields__
    columns = {name: np.array(part, np.float32) for name, part in zip(names, parts, strict=True)}
    # The bytes 0 and 255 stand for a range of opacities, not for its very end.
    np.clip(columns["logit_opacities"], -7.0, 7.0, out=columns["logit_opacities"])
    return checked_cloud(path, columns, warnings)


def _along_a_curve(means: Tensor) -> Tensor:
    """Return the order of rows along a Z-curve through the middle nine tenths of the scene, ten bits an axis."""
    positions = means.double()
    low, high = torch.from_numpy(np.quantile(positions.numpy(), (0.05, 0.95), axis=0))
    cells = ((positions - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).mul(1023).long()
    code = torch.zeros(len(means), dtype=torch.int64)
    for bit in range(10):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return code.argsort(stable=True)


# ---------------------------------------------------------------------- what a file claims


def _refuse(path: Path, what: str, reason: str) -> NoReturn:
    raise InputError(f"{short(path)} is not a readable {what}: {reason}; export or copy it again")


def _check_compressed(path: Path, content: bytes) -> tuple[bytes, int]:
    """Return a header without comments, and where the rows begin.

    Raises:
        InputError: The header is not of the layout that gsply unpacks by place, or rows are missing.
    """
    what = "compressed PLY"
    head, mark, _ = content[:_MAX_HEADER].partition(b"end_header\n")
    if not mark:
        _refuse(path, what, f"its header does not end within {_MAX_HEADER:,} bytes")
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    elements: list[tuple[str, int, list[str]]] = []
    for words in lines:
        if words[:1] == ["element"] and len(words) == 3 and words[2].isascii() and words[2].isdigit():
            elements.append((words[1], int(words[2][:18]), []))
        elif words[:1] == ["property"] and len(words) == 3 and elements:
            elements[-1][2].append(" ".join(words[1:]))
        elif words[:1] not in (["ply"], ["format"], ["comment"], ["obj_info"]):
            _refuse(path, what, "its header is of another layout")
    counts = {name: count for name, count, _ in elements}
    rest = [[f"uchar f_rest_{index}" for index in range(3 * count)] for count in SH_REST_COUNTS[1:]]
    wanted = {"chunk": [[f"float {name}" for name in _BOUNDS]], "vertex": [[f"uint {name}" for name in _PACKED]]}
    names = [name for name, _, _ in elements]
    is_known = names in (["chunk", "vertex"], ["chunk", "vertex", "sh"])
    if not is_known or any(found not in {**wanted, "sh": rest}[name] for name, _, found in elements):
        _refuse(path, what, "its properties are not those of the format, colours' bounds included")
    if ["format", "binary_little_endian", "1.0"] not in lines or counts["chunk"] != -(-counts["vertex"] // _CHUNK):
        _refuse(path, what, "its chunks do not fit its rows")
    if counts.get("sh", counts["vertex"]) != counts["vertex"]:
        _refuse(path, what, "its harmonics do not fit its rows")
    row = 16 + sum(len(found) for name, _, found in elements if name == "sh")
    needed = len(head) + len(mark) + 72 * counts["chunk"] + row * counts["vertex"]
    if needed > len(content):
        _refuse(path, what, f"it promises {needed:,} bytes and holds {len(content):,}")
    said = [words for words in lines if words[0] not in ("comment", "obj_info")]
    return "".join(f"{' '.join(words)}\n" for words in (*said, ["end_header"])).encode("ascii"), len(head) + len(mark)


def _spz_bytes(path: Path, version: int, count: int, degree: int, fraction_bits: int) -> list[int]:
    """Return what each part unpacks to, bytes; raise InputError where a header cannot be."""
    if not 2 <= version <= 4:
        _refuse(path, "SPZ file", f"it is of version {version}, and 2 to 4 are read")
    if degree > 3 or not 1 <= fraction_bits <= _MAX_FRACTION_BITS:
        _refuse(path, "SPZ file", f"its header gives degree {degree} and {fraction_bits} bits of fraction")
    needed = [size * count for size in (9, 1, 3, 3, 3 if version < 3 else 4, 3 * SH_REST_COUNTS[degree])]
    size = path.stat().st_size
    if sum(needed) > max(_MIN_ALLOWED, _MAX_RATIO * size):
        _refuse(path, "SPZ file", f"{count:,} Gaussians in {size:,} bytes cannot be")
    return needed


def _check_gzipped(path: Path) -> int:
    """Return its flags; raise InputError unless the file unpacks to its header and as many bytes as that says."""
    try:
        with gzip.open(path) as file:
            header = file.read(_SPZ_HEADER.size)
            if len(header) < _SPZ_HEADER.size:
                _refuse(path, "SPZ file", "it ends within its header")
            _, version, count, degree, fraction_bits, flags, _ = _SPZ_HEADER.unpack(header)
            if version > 3:
                _refuse(path, "SPZ file", f"it is gzipped, and of version {version}")
            needed, found = sum(_spz_bytes(path, version, count, degree, fraction_bits)), 0
            while part := file.read(1 << 20):
                found += len(part)
                # What follows the rows are extensions, small ones.
                if found > needed + _MIN_ALLOWED:
                    _refuse(path, "SPZ file", f"it unpacks to more than its {count:,} Gaussians take")
    except (OSError, EOFError, zlib.error) as error:
        _refuse(path, "SPZ file", f"it does not unpack ({error})")
    if found < needed:
        _refuse(path, "SPZ file", f"it promises {needed:,} bytes of rows and holds {found:,}")
    return int(flags)


def _check_streams(path: Path) -> int:
    """Return its flags; raise InputError unless each zstd stream says that it unpacks to what its part takes."""
    zstandard = _gsply("zstandard", "SPZ of version 4")
    content = path.read_bytes()
    if len(content) < _SPZ_V4_HEADER.size:
        _refuse(path, "SPZ file", "it ends within its header")
    _, version, count, degree, fraction_bits, flags, streams, place = _SPZ_V4_HEADER.unpack_from(content)
    if version < 4:
        _refuse(path, "SPZ file", f"it is of version {version}, and not gzipped")
    needed = [size for size in _spz_bytes(path, version, count, degree, fraction_bits) if size]
    start = place + _STREAM.size * streams
    if streams != len(needed) or start > len(content):
        _refuse(path, "SPZ file", "its parts are not those of its header")
    for index, size in enumerate(needed):
        packed, unpacked = _STREAM.unpack_from(content, place + _STREAM.size * index)
        part = content[start : start + packed]
        try:
            said = zstandard.frame_content_size(part)
        except zstandard.ZstdError as error:
            _refuse(path, "SPZ file", f"a part does not unpack ({error})")
        if len(part) < packed or unpacked != size or said not in (size, -1):
            _refuse(path, "SPZ file", "a part is shorter than its header says")
        start += packed
    return int(flags)
