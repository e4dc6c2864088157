"""Point clouds in PLY files: the one that a file of poses names, or that lies beside it, and the frame it is in.

Readers of ``transforms.json`` and of Blender's files look for points here. Files are read within the bounds of
:mod:`splatopt.data.ply_table`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splatopt.core.checks import InputError, cut, quoted, short
from splatopt.core.constants import SH_C0
from splatopt.data.image_lookup import is_hidden
from splatopt.data.packed_scenes import check_not_packed
from splatopt.data.ply_table import read_vertices
from splatopt.data.source import Points, PosedImage, finite_points

POINT_FILES = ("sparse_pc.ply", "points3d.ply", "points3D.ply")
"""What is looked for beside a file of poses: ns-process-data's name, and those of 3DGS and BlenderNeRF."""

MIN_SEEN = 0.1
"""Points of a file that nobody named are used if at least this share of them lies within what the cameras see."""

_COLORS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
_BANDS = ("f_dc_0", "f_dc_1", "f_dc_2")
_MAX_UNIT_COLOR = 1.5
"""A float colour above this is one of 0 to 255."""

_CLEARLY_MORE = 1.25
_MAX_POINTS, _MAX_VIEWS = 2000, 64
_MARGIN = 0.25
"""Of an image's side: a lens that bends light sees a little more than a pinhole of its focal length."""


def find_points(
    folder: Path, content: Mapping[str, object], views: Sequence[PosedImage], warnings: list[str]
) -> Points | None:
    """Return the points that belong to a file of poses, in the frame of its poses; None where there are none.

    Those of ``ply_file_path`` are used where it is there, else the first of :data:`POINT_FILES` that fits. A file that
    nobody named does not fit if hardly any of its points is seen, or if all have one colour, as 3DGS draws them at
    random for captures without points.

    ``applied_transform`` has been applied to the poses and, since nerfstudio 1.0.1, to ``sparse_pc.ply`` as well. Older
    versions left the points as COLMAP had them; they are moved where the cameras then see clearly more of them.

    Args:
        folder: Where the file of poses lies.
        content: The file.
        views: The capture's views.
        warnings: Gets a sentence for each file that is missing or not used, and where points are moved.

    Raises:
        InputError: A file of points is malformed.
    """
    named = content.get("ply_file_path")
    if named is not None and (not isinstance(named, str) or not named):
        raise InputError(f"{folder}: 'ply_file_path' must name a file, got {quoted(named)}")
    missing = ""
    if named is not None:
        if os.path.isfile(file := folder / named.replace("\\", "/")):
            points = _in_frame_of_poses(read_ply_points(file, warnings), content, views, named, warnings)
            if len(points) and (share := _seen_share(points.positions, views)) < MIN_SEEN:
                warnings.append(f"only {share:.0%} of the points of {cut(named)} lie within what the cameras see")
            return replace(points, file=named)
        missing = f"the points {short(file)} are missing"
    for name in POINT_FILES:
        beside = _fitting(folder, name, content, views, warnings) if os.path.isfile(folder / name) else None
        if beside is not None:
            if missing:
                warnings.append(f"{missing}; those of {name} are used")
            return beside
    if missing:
        warnings.append(f"{missing}; the capture has none")
    others = sorted(one.name for one in folder.glob("*.ply") if one.name not in POINT_FILES and not is_hidden(one.name))
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        warnings.append(
            f"{quoted(others[0])}{more} beside the poses: not used; a file of points is to be named "
            f"{' or '.join(POINT_FILES[:2])}, or by ply_file_path"
        )
    return None


def _fitting(
    folder: Path, name: str, content: Mapping[str, object], views: Sequence[PosedImage], warnings: list[str]
) -> Points | None:
    """Return the points of a file that nobody named, or None and a warning where they are not to be used."""
    points, coloured = _read(folder / name, warnings)
    if not len(points):
        return None
    if coloured and len(points) > 1 and bool((points.colors.amax(dim=0) - points.colors.amin(dim=0) <= 1).all()):
        warnings.append(
            f"the {len(points):,} points of {name} all have one colour, as 3DGS draws them at random where a capture "
            f"has none; they are not used"
        )
        return None
    points = _in_frame_of_poses(points, content, views, name, warnings)
    share = _seen_share(points.positions, views)
    if share < MIN_SEEN:
        warnings.append(f"only {share:.0%} of the points of {name} lie within what the cameras see; they are not used")
        return None
    return replace(points, file=name)


def _in_frame_of_poses(
    points: Points, content: Mapping[str, object], views: Sequence[PosedImage], name: str, warnings: list[str]
) -> Points:
    """Return the points, moved by ``applied_transform`` if the cameras clearly see more of them there."""
    given = content.get("applied_transform")
    if given is None or not len(points):
        return points
    try:
        matrix = np.array(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.empty(0)
    if matrix.shape not in ((3, 4), (4, 4)) or not np.isfinite(matrix).all():
        warnings.append(
            f"'applied_transform' is no matrix of 3 rows of 4 numbers; the points of {name} stay as they are"
        )
        return points
    transform = torch.from_numpy(matrix[:3])
    moved = points.positions @ transform[:, :3].T + transform[:, 3]
    if _seen_pairs(moved, views) <= _CLEARLY_MORE * _seen_pairs(points.positions, views):
        return points
    warnings.append(
        f"the points of {name} are in the frame from before 'applied_transform', as older versions of nerfstudio "
        f"wrote them; they are moved to that of the poses"
    )
    return replace(points, positions=moved)


def _seen(positions: Tensor, views: Sequence[PosedImage]) -> Tensor:
    """Return which of some points lie before which of some views and within its image, (views, points); roughly."""
    points = positions[:: max(1, len(positions) // _MAX_POINTS)]
    rows = []
    for view in views[:: max(1, len(views) // _MAX_VIEWS)]:
        local = points @ view.world_to_camera[:3, :3].T + view.world_to_camera[:3, 3]
        inside, lens = local[:, 2] > 0, view.lens
        # The lenses of JSON files begin with two focal lengths and the principal point.
        if lens.model != "OPENCV_FISHEYE":
            fx, fy, cx, cy = lens.parameters[:4]
            for axis, focal, middle, side in ((0, fx, cx, lens.width), (1, fy, cy, lens.height)):
                at = focal * local[:, axis] / local[:, 2] + middle
                inside &= (at >= -_MARGIN * side) & (at <= (1 + _MARGIN) * side)
        rows.append(inside)
    return torch.stack(rows)


def _seen_share(positions: Tensor, views: Sequence[PosedImage]) -> float:
    """Return the share of points that at least one view sees."""
    return float(_seen(positions, views).any(dim=0).double().mean()) if views else 1.0


def _seen_pairs(positions: Tensor, views: Sequence[PosedImage]) -> float:
    """Return the share of pairs of a point and a view in which the view sees the point."""
    return float(_seen(positions, views).double().mean()) if views else 0.0


def read_ply_points(path: Path, warnings: list[str]) -> Points:
    """Read positions and, where there are any, colours of a PLY point cloud (grey otherwise).

    Colours are red, green and blue under the names of any tool: whole numbers of 8 bits, or of 16 where one is above
    255; floats of 0 to 1, or of 0 to 255 where one is above 1.5; or the constant band of a scene of Gaussians.

    Args:
        path: The PLY file.
        warnings: Gets a sentence if points are not finite, or rows hold nothing but zeros, and are left out.

    Raises:
        InputError: The file is no PLY, is packed or cut short, or its vertices lack x, y, z.
    """
    return _read(path, warnings)[0]


def _read(path: Path, warnings: list[str]) -> tuple[Points, bool]:
    """Return the points of a PLY, and whether it gives them colours."""
    check_not_packed(path)
    vertices = _without_zero_rows(path, read_vertices(path, "PLY point cloud").table, warnings)
    names = set(vertices.dtype.names or ())
    if not {"x", "y", "z"} <= names:
        given = ", ".join(vertices.dtype.names or ())
        raise InputError(f"{path}: points need the properties x, y and z, got {cut(given) or 'none'}")
    positions = np.stack([vertices[axis] for axis in "xyz"], axis=1).astype(np.float64)
    colors = np.full((len(vertices), 3), 128, dtype=np.uint8)
    channels = next((found for found in (*_COLORS, _BANDS) if set(found) <= names), None)
    if channels is not None:
        values = np.stack([vertices[channel] for channel in channels], axis=1)
        levels = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
        if channels == _BANDS:
            levels = 255 * (0.5 + SH_C0 * levels)
        else:
            levels *= _to_eight_bits(float(levels.max(initial=0)), is_float=values.dtype.kind == "f")
        colors = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return finite_points(positions, colors, warnings), channels is not None


def _without_zero_rows(path: Path, vertices: np.ndarray, warnings: list[str]) -> np.ndarray:
    """Return the rows that hold anything but zeros; one alone may be a black point at the origin and stays."""
    filled = np.zeros(len(vertices), dtype=bool)
    for name in vertices.dtype.names or ():
        filled |= vertices[name] != 0
    count = len(vertices) - int(filled.sum())
    if count < 2:
        return vertices
    warnings.append(f"{count:,} of {len(vertices):,} rows of {short(path)} hold nothing but zeros and are left out")
    return vertices[filled]


def _to_eight_bits(highest: float, *, is_float: bool) -> float:
    """Return what colours are multiplied by to lie within 0 and 255; the highest of all tells their range."""
    if is_float and highest <= _MAX_UNIT_COLOR:
        return 255.0
    return 1.0 if highest < 256 else 255 / 65535
