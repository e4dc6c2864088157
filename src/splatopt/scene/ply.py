"""Gaussian scenes as PLY files in the layout that 3DGS wrote first and every viewer reads.

Per vertex: x y z, nx ny nz (zeros), f_dc_0..2, f_rest_* channel by channel (all K coefficients of red,
then green, then blue), opacity (before the sigmoid), scale_0..2 (logarithms), rot_0..3 (wxyz); all
float32, binary little-endian. Whatever it is trained in, the scene keeps the capture's own frame.
"""

from __future__ import annotations

import re
import warnings as python_warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from plyfile import PlyData, PlyElement

from splatopt.core.checks import InputError
from splatopt.core.files import make_folder, whole_file
from splatopt.core.schema import SH_REST_COUNTS
from splatopt.data.packed_scenes import check_not_packed
from splatopt.data.ply_table import read_vertices
from splatopt.scene.gaussians import GaussianCloud

_COLUMNS = {
    "means": ("x", "y", "z"),
    "sh_dc": ("f_dc_0", "f_dc_1", "f_dc_2"),
    "logit_opacities": ("opacity",),
    "log_scales": ("scale_0", "scale_1", "scale_2"),
    "quats": ("rot_0", "rot_1", "rot_2", "rot_3"),
}
_OPAQUE, _SEE_THROUGH = 18.0, -104.0
"""Logits whose sigmoid is 1 and 0 in float32."""

_WITHOUT_MEANING = frozenset(("nx", "ny", "nz", "red", "green", "blue", "alpha"))
_MIP_FILTER = "filter_3D"

_MAX_LOG_RATIO = float(np.log(1e6))
"""Of the median size and the one that stands for none."""

_REST_COUNTS = tuple(3 * count for count in SH_REST_COUNTS)


def row_bytes(sh_degree: int) -> int:
    """Return the bytes of one Gaussian in a scene's file: 62 numbers at degree 3, normals included."""
    return 4 * (17 + _REST_COUNTS[sh_degree])


def save_ply(cloud: GaussianCloud, path: Path | str) -> None:
    """Write ``cloud`` to ``path`` so that it appears whole or not at all.

    Args:
        cloud: N Gaussians; rounded to float32 if they are not.
        path: The file; its folder is made if absent, an existing file is replaced.

    Raises:
        InputError: The file cannot be written, for example on a full disk. What was at ``path`` before
            is still there.
    """
    path = Path(path)
    rows = {name: tensor.detach().to("cpu", torch.float32).numpy() for name, tensor in cloud.tensors.items()}
    rest = rows["sh_rest"].transpose(0, 2, 1).reshape(len(cloud), 3 * cloud.sh_rest.shape[1])
    columns = {
        **dict(zip(_COLUMNS["means"], rows["means"].T, strict=True)),
        **dict.fromkeys(("nx", "ny", "nz"), np.float32(0)),
        **dict(zip(_COLUMNS["sh_dc"], rows["sh_dc"].T, strict=True)),
        **{f"f_rest_{index}": column for index, column in enumerate(rest.T)},
        "opacity": rows["logit_opacities"],
        **dict(zip(_COLUMNS["log_scales"], rows["log_scales"].T, strict=True)),
        **dict(zip(_COLUMNS["quats"], rows["quats"].T, strict=True)),
    }
    table = np.empty(len(cloud), dtype=[(name, "<f4") for name in columns])
    for name, column in columns.items():
        table[name] = column
    write_whole(path, PlyData([PlyElement.describe(table, "vertex")], byte_order="<").write)


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have ``write`` write a scene beside ``path`` and rename it, so that a failure leaves what was there.

    Raises:
        InputError: The file cannot be written, for example on a full disk.
    """
    try:
        make_folder(path.parent)
        with whole_file(path) as stream:
            write(stream)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"cannot write the scene to {path}: {reason}; free some space or choose another place, "
            f"nothing that was there has changed"
        ) from error


def load_ply(path: Path | str, warnings: list[str] | None = None) -> GaussianCloud:
    """Read a Gaussian scene, whoever wrote it: binary or ASCII, degree 0 to 3, properties in any order.

    Properties that are not of a Gaussian are left out, and named. Quaternions are taken as they are, of any length.
    Numbers at the ends of their range are brought within it and counted: an opacity of 1, whose logit is ∞, and one of
    0 become the nearest logits whose sigmoid is 1 and 0 in float32; a size of 0, whose logarithm is -∞, becomes a
    millionth of the scene's median one. Rows that hold nothing but zeros, which broken exporters leave, are left out
    and counted.

    Args:
        path: The file.
        warnings: Gets a sentence for each thing that was counted; when None, they are Python's warnings.

    Returns:
        The cloud, float32, on the CPU, at the degree that is stored.

    Raises:
        InputError: No such file, no PLY, packed, truncated, a point cloud without Gaussians, missing properties,
            nothing but zeros, or numbers that are NaN or infinite.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no scene at {path}; give the path of a .ply file")
    check_not_packed(path)
    found = read_vertices(path, "Gaussian scene")
    table, names = found.table, (*(found.table.dtype.names or ()), *found.lists)
    rest_count = _check_properties(path, names)
    columns = {name: _stack(path, table, group) for name, group in _COLUMNS.items()}
    columns["sh_rest"] = _stack(path, table, tuple(f"f_rest_{index}" for index in range(rest_count)))
    columns["logit_opacities"] = columns["logit_opacities"][:, 0]
    columns["sh_rest"] = columns["sh_rest"].reshape(len(table), 3, rest_count // 3).transpose(0, 2, 1)
    said = [*_left_out(path, names), *_rounded(path, table, columns)]
    cloud = checked_cloud(path, columns, said)
    tell(said, warnings, 3)
    return cloud


def _left_out(path: Path, names: tuple[str, ...]) -> list[str]:
    """Return a sentence about properties that are not of a Gaussian; normals and points' colours need none."""
    known = {name for group in _COLUMNS.values() for name in group} | _WITHOUT_MEANING
    others = [name for name in names if name not in known and not name.startswith("f_rest_")]
    if _MIP_FILTER in others:
        return [
            f"{path} holds {_MIP_FILTER}, by which Mip-Splatting changes sizes and opacities, and it is not applied; "
            "write the scene with Mip-Splatting's create_fused_ply.py"
        ]
    shown = ", ".join(others[:5]) + (f" and {len(others) - 5:,} more" if len(others) > 5 else "")
    return [f"{path} holds properties that are not of a Gaussian and are left out: {shown}"] if others else []


def _rounded(path: Path, table: np.ndarray, columns: Mapping[str, np.ndarray]) -> list[str]:
    """Return a sentence where float32 moves centres that are stored more finely by more than a Gaussian's size."""
    if not len(table) or all(table[name].dtype.itemsize <= 4 for name in _COLUMNS["means"]):
        return []
    stored = np.stack([table[name].astype(np.float64) for name in _COLUMNS["means"]], axis=1)
    moved = float(np.nan_to_num(np.abs(stored - columns["means"]), nan=0.0, posinf=0.0).max())
    size = float(np.exp(np.nanmedian(columns["log_scales"].astype(np.float64))))
    if moved <= 0.1 * size:
        return []
    return [
        f"{path}: centres are stored in float64 and read in float32, which moves them by up to {moved:.2g} where "
        f"Gaussians are {size:.2g} large; move the scene towards the origin and write it again"
    ]


def unit_quaternions(quats: torch.Tensor) -> torch.Tensor:
    """Return quaternions of length 1 in float64; no turn where one is zero, as scenes are rendered."""
    unit = torch.nn.functional.normalize(quats.detach().double(), dim=1)
    unit[(unit == 0).all(dim=1)] = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64, device=unit.device)
    return unit


def warn_of_ends(
    cloud: GaussianCloud, ranges: Mapping[str, tuple[float, float, str]], format_name: str, warnings: list[str]
) -> None:
    """Add a sentence for each tensor that has rows beyond what a format holds.

    Args:
        cloud: The scene.
        ranges: By tensor, the least and the greatest number that the format holds, and what it is called.
        format_name: Of the format.
        warnings: Gets the sentences.
    """
    for name, (low, high, what) in ranges.items():
        values = getattr(cloud, name).reshape(len(cloud), -1)
        beyond = int(((values < low) | (values > high)).any(dim=1).sum())
        if beyond:
            warnings.append(
                f"{beyond:,} of {len(cloud):,} Gaussians have {what} beyond what {format_name} holds, and are brought "
                "to its ends"
            )


def checked_cloud(path: Path, columns: Mapping[str, np.ndarray], warnings: list[str] | None) -> GaussianCloud:
    """Return the cloud of a file's rows, these brought within range as :func:`load_ply` says.

    Args:
        path: The file, for messages.
        columns: The six tensors by name, float32.
        warnings: Gets a sentence for each thing that was counted; when None, they are Python's warnings.

    Raises:
        InputError: There are no rows, nothing but zeros, or numbers that are NaN or infinite.
    """
    if not len(columns["means"]):
        raise InputError(f"{path}: the scene holds no Gaussians; expected at least one, export it again")
    said: list[str] = []
    kept = _without_zero_rows(path, dict(columns), said)
    _bring_within_range(path, kept, said)
    cloud = GaussianCloud(**{name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in kept.items()})
    cloud.check_finite(str(path))
    tell(said, warnings)
    return cloud


def tell(said: list[str], warnings: list[str] | None, depth: int = 4) -> None:
    """Add sentences to ``warnings``, or have Python warn of them in the name of who stands ``depth`` calls above."""
    if warnings is not None:
        warnings += said
        return
    for sentence in said:
        python_warnings.warn(sentence, stacklevel=depth)


def _without_zero_rows(path: Path, columns: dict[str, np.ndarray], said: list[str]) -> dict[str, np.ndarray]:
    """Return the columns without the rows that hold nothing but zeros."""
    empty = ~np.any([part.reshape(len(part), -1).any(axis=1) for part in columns.values()], axis=0)
    count = int(empty.sum())
    if not count:
        return columns
    if count == len(empty):
        raise InputError(f"{path}: the scene holds nothing but zeros in all {count:,} rows; export it again")
    said.append(f"{count:,} of {len(empty):,} rows of {path} hold nothing but zeros and are left out")
    return {name: part[~empty] for name, part in columns.items()}


def _bring_within_range(path: Path, columns: dict[str, np.ndarray], said: list[str]) -> None:
    """Replace infinite logits and logarithms that mean an opacity of 1 or 0 and a size of 0."""
    logits, sizes = columns["logit_opacities"], columns["log_scales"]
    finite = sizes[np.isfinite(sizes)]
    smallest = (float(np.median(finite)) if len(finite) else 0.0) - _MAX_LOG_RATIO
    for values, end, instead, meaning in (
        (logits, np.inf, _OPAQUE, "an opacity of 1"),
        (logits, -np.inf, _SEE_THROUGH, "an opacity of 0"),
        (sizes, -np.inf, smallest, "a size of 0"),
    ):
        rows = (values == end).reshape(len(values), -1).any(axis=1)
        if rows.any():
            said.append(
                f"{int(rows.sum()):,} of {len(rows):,} Gaussians of {path} have {meaning}, stored as {end:+}; "
                f"{instead:.4g} is taken for it"
            )
            values[values == end] = instead


def _stack(path: Path, table: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Return the columns ``names`` side by side, float32."""
    result = np.empty((len(table), len(names)), dtype=np.float32)
    for index, name in enumerate(names):
        if name not in (table.dtype.names or ()):
            raise InputError(f"{path}: property {name} holds lists, expected one number per Gaussian; export it again")
        # A double beyond float32 becomes infinite and is reported as such with its count.
        with np.errstate(over="ignore"):
            result[:, index] = table[name]
    return result


def _check_properties(path: Path, names: tuple[str, ...]) -> int:
    """Return the number of f_rest properties; raise where the rows are not Gaussians."""
    missing = [name for group in _COLUMNS.values() for name in group if name not in names]
    if {"f_dc_0", "scale_0", "rot_0", "opacity"} <= set(missing):
        raise InputError(
            f"{path} holds points, not Gaussians (it has no f_dc_0, opacity, scale_0 and rot_0); expected a scene "
            f"that a Gaussian-splatting trainer wrote, so give one or train from a capture instead"
        )
    if missing:
        raise InputError(
            f"{path}: the scene lacks the {'property' if len(missing) == 1 else 'properties'} {', '.join(missing)}; "
            f"export it again in the 3DGS layout"
        )
    count = sum(bool(re.fullmatch(r"f_rest_\d+", name)) for name in names)
    if count not in _REST_COUNTS:
        raise InputError(
            f"{path}: the scene has {count} f_rest properties; expected 0, 9, 24 or 45 (degree 0 to 3), "
            f"export it again in the 3DGS layout"
        )
    gaps = [name for name in (f"f_rest_{index}" for index in range(count)) if name not in names]
    if gaps:
        raise InputError(f"{path}: the scene lacks {', '.join(gaps)}; export it again in the 3DGS layout")
    return count
