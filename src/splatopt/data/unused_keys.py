"""What a file of camera poses says besides: named where it is not used, once for all its frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from splatopt.core.checks import cut
from splatopt.data.source import Finding
from splatopt.data.transforms import OTHER_LENSES

_READ = frozenset(
    (
        *("frames", "test_frames", "file_path", "transform_matrix", "ply_file_path", "mask_path", "w", "h", "fl_x"),
        *("fl_y", "cx", "cy", "k1", "k2", "k3", "k4", "p1", "p2", "camera_angle_x", "camera_angle_y", "camera_model"),
        *("from_na", "is_fisheye", "train_filenames", "val_filenames", "test_filenames", *OTHER_LENSES),
    )
)
"""Keys that are read, or refused where they say something."""

_APPLIED = ("applied_transform", "applied_scale")

_HARMLESS = frozenset(
    (
        *("aabb_scale", "scale", "offset", "n_frames", "sharpness", "colmap_im_id", "orientation_override"),
        *("rotation", "integer_depth_scale", "enable_depth_loading", "depth_unit_scale_factor", "render_aabb", "up"),
        *("fov", "fov_x", "fov_y", "fovx", "fovy", "id", "index", "frame_id", "image_id", "camera_id", "cam_idx"),
        *("name", "timestamp", "blur_score", "version", "has_mask", "driver_parameters", "n_extra_learnable_dims"),
        "exporter",
    )
)
"""Keys that change neither what a photograph shows nor where from; instant-ngp's box is its own."""

_MEANINGS = (
    (("time",), "the scene is taken to stand still"),
    (
        ("rolling_shutter", "rolling_shutter_time", "transform_matrix_start", "transform_matrix_end"),
        "each photograph is taken from one place",
    ),
    (("is_bad",), "every frame is used; take the bad ones out of the file"),
)
_MAX_NAMES = 8


def unused_keys(content: Mapping[str, object], frames: Sequence[Mapping[str, object]]) -> list[Finding]:
    """Return what is said of the keys of a file and its frames that are not read, grouped by what they mean.

    Args:
        content: The file.
        frames: Its frames.
    """
    counts = Counter(key for frame in frames for key, value in frame.items() if _says(value))
    counts.update({key: 0 for key, value in content.items() if _says(value)})
    found = []
    applied = [key for key in _APPLIED if key in counts]
    if applied:
        found.append(Finding(" and ".join(applied), True, "the poses hold it already; scenes are in their frame"))
    if "from_na" in counts:
        found.append(Finding("from_na", True, "the cameras' axes are OpenCV's, y down and z forward, as in NeuS2"))
    unread = [key for key in counts if key not in _READ and key not in _HARMLESS and key not in _APPLIED]
    files = [key for key in unread if key.endswith(("_path", "_paths"))]
    for key in files:
        how = "splatopt trains on colours alone" if "depth" in key or "normal" in key else "splatopt does not know it"
        found.append(Finding(f"{counts[key] or 1} file{'' if counts[key] < 2 else 's'} ({cut(key)})", False, how))
    for keys, how in _MEANINGS:
        named = [key for key in unread if key in keys]
        if named:
            found.append(Finding(" and ".join(named), False, how))
    explained = {key for keys, _ in _MEANINGS for key in keys} | set(files)
    others = sorted(key for key in unread if key not in explained)
    if others:
        more = ", …" if len(others) > _MAX_NAMES else ""
        names = ", ".join(cut(key) for key in others[:_MAX_NAMES])
        found.append(Finding(f"{names}{more}", False, "splatopt does not know what that means"))
    return found


def _says(value: object) -> bool:
    """Return whether a value says anything: not null, false or empty."""
    return value is not None and value is not False and value not in ("", [], {})
