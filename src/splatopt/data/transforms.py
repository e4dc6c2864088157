"""What Blender's, nerfstudio's and instant-ngp's JSON files have in common: frames and intrinsics."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splatopt.core.checks import InputError, quoted, short
from splatopt.data.image_folders import readable
from splatopt.data.image_lookup import find_images
from splatopt.data.images import UnreadableImageError, read_header
from splatopt.data.lens import Lens
from splatopt.data.source import PosedImage, opengl_to_world_to_camera
from splatopt.data.text_files import read_text

MAX_JSON_BYTES = 512 * 2**20
"""Largest file of poses that is read, bytes; a thousand frames take about one mebibyte."""

OTHER_LENSES = (
    *("k5", "k6", "s1", "s2", "s3", "s4", "ftheta_p0", "ftheta_p1", "ftheta_p2", "ftheta_p3", "ftheta_p4"),
    *("ocam", "latlong", "equirectangular", "orthographic"),
)
"""Keys of instant-ngp and others whose lenses would make another picture of the scene; 0 and false say nothing."""

_FOCAL_KEYS = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y")

_OTHER_AXES = ("normal_mts_args", "from_mitsuba")
"""Keys of instant-ngp that give the cameras Mitsuba's axes."""

_PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "SIMPLE_RADIAL", "RADIAL")


def read_json(path: Path) -> dict[str, object]:
    """Read a file of frames.

    Raises:
        InputError: It is no JSON, no object, or has no list ``frames`` of objects.
    """
    content = read_object(path)
    check_frames(path, content, "frames")
    return content


def check_frames(path: Path, content: Mapping[str, object], key: str) -> list[dict[str, object]]:
    """Return the list of frames under ``key`` of a file; raises InputError unless it is one."""
    frames = content.get(key)
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f"{path} must be a JSON object with a list {key!r} of objects; export it again")
    return frames


def read_object(path: Path) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        InputError: It is no JSON, or no object.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB, which no file of camera poses is")
    try:
        content = json.loads(read_text(path), object_pairs_hook=functools.partial(_named_once, path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        what = str(error) if isinstance(error, json.JSONDecodeError) else "not text"
        raise InputError(f"{path} is not valid JSON ({what}); export it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must be a JSON object with a list 'frames' of objects; export it again")
    return content


def _named_once(path: Path, pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object; raises InputError where it says two things under one name."""
    values: dict[str, object] = {}
    for name, value in pairs:
        if name in values and values[name] != value:
            raise InputError(f"{path} gives {quoted(name)} twice in one object, and differently; remove one of them")
        values[name] = value
    return values


def finite_number(values: Mapping[str, object], key: str, where: str) -> float | None:
    """Return ``values[key]`` as a finite number, or None where it is absent; raises InputError of anything else."""
    value = values.get(key)
    if value is None:
        return None
    try:
        finite = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        finite = math.inf
    if not math.isfinite(finite):
        raise InputError(f"{where}: {key!r} must be a finite number, got {quoted(value)}")
    return finite


def _matrix(frame: Mapping[str, object], where: str) -> np.ndarray:
    """Return a frame's camera-to-world matrix, (4, 4), with OpenGL axes of the camera."""
    try:
        matrix = np.array(frame.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.empty(0)
    if matrix.shape == (3, 4):
        matrix = np.vstack([matrix, [0.0, 0.0, 0.0, 1.0]])
    if matrix.shape != (4, 4):
        raise InputError(f"{where}: 'transform_matrix' must be 4 rows of 4 numbers; export the file again")
    if _has_opencv_axes(frame, where):
        matrix[:, 1:3] *= -1
    return matrix


def _has_opencv_axes(values: Mapping[str, object], where: str) -> bool:
    """Whether ``from_na`` says that a camera's axes are OpenCV's, y down and z forward, as NeuS2 reads it."""
    other = next((key for key in _OTHER_AXES if values.get(key) not in (None, False)), None)
    if other is not None:
        raise InputError(
            f"{where}: {other!r} says that the cameras have Mitsuba's axes, which are not supported; write the "
            "matrices with OpenGL's (x right, y up, z backward) and take the key out"
        )
    said = values.get("from_na")
    if said is not None and not isinstance(said, bool):
        raise InputError(f"{where}: 'from_na' must be true or false, got {quoted(said)}")
    return said is True


@dataclass(frozen=True)
class _Size:
    width: int
    height: int


def _header_size(path: Path) -> _Size | None:
    try:
        header = read_header(readable(path))
    except UnreadableImageError:
        return None
    return _Size(header.width, header.height)


def _file_size(values: Mapping[str, object], where: str) -> _Size | None:
    width, height = finite_number(values, "w", where), finite_number(values, "h", where)
    return None if width is None or height is None else _Size(round(width), round(height))


def _focal_lengths(values: Mapping[str, object], size: _Size, where: str) -> tuple[float, float]:
    """Return fx and fy from ``fl_x``/``fl_y``, or from ``camera_angle_x``/``_y``: f = side / (2 tan(angle/2))."""
    focal = {}
    for axis, side in (("x", size.width), ("y", size.height)):
        focal[axis] = finite_number(values, f"fl_{axis}", where)
        angle = finite_number(values, f"camera_angle_{axis}", where)
        if focal[axis] is None and angle is not None:
            if not 0 < angle < math.pi:
                raise InputError(f"{where}: 'camera_angle_{axis}' must lie between 0 and π radians, got {angle}")
            slope = math.tan(0.5 * angle)
            focal[axis] = 0.5 * side / slope if slope > 0 else math.inf
    across = focal["x"] if focal["x"] is not None else focal["y"]
    down = focal["y"] if focal["y"] is not None else focal["x"]
    if across is None or down is None:
        raise InputError(f"{where}: no focal length; expected 'fl_x' (pixels) or 'camera_angle_x' (radians)")
    return across, down


def _lens(values: Mapping[str, object], size: _Size, where: str) -> Lens:
    """Return the lens that the keys of nerfstudio and instant-ngp describe."""
    fx, fy = _focal_lengths(values, size, where)
    cx, cy = finite_number(values, "cx", where), finite_number(values, "cy", where)
    pinhole = (fx, fy, size.width / 2 if cx is None else cx, size.height / 2 if cy is None else cy)
    k1, k2, k3, k4, p1, p2 = (finite_number(values, key, where) or 0.0 for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    model = str(values.get("camera_model", "OPENCV")).upper()
    other = next((key for key in OTHER_LENSES if values.get(key)), None)
    if other is not None:
        raise InputError(
            f"{where}: {other!r} describes a lens that is not supported; use k1 to k4, p1 and p2 of OPENCV or "
            "OPENCV_FISHEYE, or undistort the photographs"
        )
    if model == "OPENCV_FISHEYE" or values.get("is_fisheye") is True:
        return Lens("OPENCV_FISHEYE", size.width, size.height, (*pinhole, k1, k2, k3, k4), where)
    if model not in _PERSPECTIVE:
        raise InputError(
            f"{where}: camera model {quoted(model)} is not supported; use OPENCV, OPENCV_FISHEYE or PINHOLE, "
            "or load the COLMAP model instead"
        )
    if k4:
        raise InputError(
            f"{where}: 'k4' = {k4} of a lens that is no fisheye has no COLMAP camera model; "
            "calibrate with at most k1, k2, k3, p1, p2, or load the COLMAP model instead"
        )
    if k3:
        return Lens("FULL_OPENCV", size.width, size.height, (*pinhole, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0), where)
    if k1 or k2 or p1 or p2:
        return Lens("OPENCV", size.width, size.height, (*pinhole, k1, k2, p1, p2), where)
    return Lens("PINHOLE", size.width, size.height, pinhole, where)


def _masks(path: Path, named: Sequence[object], taken: Sequence[Path], warnings: list[str]) -> list[Path | None]:
    """Return the files that values of ``mask_path`` name, found as photographs are; None for those that are null."""
    names = [name for name in named if name is not None]
    for name in names:
        if not isinstance(name, str) or not name:
            raise InputError(f"{path}: 'mask_path' must name an image, got {quoted(name)}")
    distinct = [str(name) for name in dict.fromkeys(names)]
    found = find_images(path.parent, distinct, warnings, "masks", taken)
    files = {name: one.path for name, one in zip(distinct, found, strict=True)}
    return [None if name is None else files[str(name)] for name in named]


def _with_shared(shared: Mapping[str, object], frame: Mapping[str, object]) -> dict[str, object]:
    """Return the keys of a frame and those of the file that it does not replace.

    A focal length of the frame's, in whatever form, replaces all of the file's; another width or height than the file's
    makes its principal point that of other photographs.
    """
    replaced = set(_FOCAL_KEYS) if any(frame.get(key) is not None for key in _FOCAL_KEYS) else set()
    for side, center in (("w", "cx"), ("h", "cy")):
        if shared.get(side) is not None and frame.get(side) not in (None, shared[side]):
            replaced.add(center)
    return {**{key: value for key, value in shared.items() if key not in replaced}, **frame}


def read_frames(
    path: Path, content: Mapping[str, object], warnings: list[str], part: str = "", key: str = "frames"
) -> list[PosedImage]:
    """Return the views of one file, in the file's order.

    Intrinsics of a frame win over those of the file, see :func:`_with_shared`. Where no size is given it is the
    image's own; a missing image then takes the size of the first that is there.

    Args:
        path: The JSON file.
        content: What :func:`read_json` returned for it.
        warnings: Gets a sentence where images lie under other names, see
            :func:`splatopt.data.image_lookup.find_images`.
        part: ``train`` or ``test`` where the file says so, else empty.
        key: Of the list of frames.

    Raises:
        InputError: A frame lacks its path, pose or focal length, or holds a NaN.
    """
    shared = {name: value for name, value in content.items() if name not in ("frames", key)}
    views: list[PosedImage] = []
    sizes: dict[int, _Size | None] = {}
    first: _Size | None = None
    prepared = []
    frames = check_frames(path, content, key)
    images = find_images(path.parent, _names(path, frames), warnings)
    for index, (frame, image) in enumerate(zip(frames, images, strict=True)):
        where = f"{path}, view {quoted(image.name)}"
        values = _with_shared(shared, frame)
        sizes[index] = _file_size(values, where) or _header_size(image.path)
        first = first or sizes[index]
        prepared.append((image, where, values))
    if moved := [
        image.name for image, _, values in prepared if any(key in shared.keys() - values for key in ("cx", "cy"))
    ]:
        warnings.append(
            f"{len(moved)} frames have another size than the file gives and no principal point of their own, such as "
            f"{quoted(moved[0])}; it is taken to be the middle"
        )
    named = [values.get("mask_path") for _, _, values in prepared]
    masks = _masks(path, named, [image.path for image in images], warnings)
    for index, ((image, where, values), mask) in enumerate(zip(prepared, masks, strict=True)):
        size = sizes[index] or first
        if size is None:
            raise InputError(
                f"{where}: neither the file gives 'w' and 'h' nor is an image there; looked for {short(image.path)}"
            )
        pose = opengl_to_world_to_camera(_matrix(values, where), where)
        views.append(PosedImage(image.name, image.path, pose, _lens(values, size, where), part, mask))
    return views


def _names(path: Path, frames: list[dict[str, object]]) -> list[str]:
    names = []
    for index, frame in enumerate(frames):
        name = frame.get("file_path")
        if not isinstance(name, str) or not name:
            raise InputError(f"{path}, frame {index}: 'file_path' must name an image")
        names.append(name)
    return names
