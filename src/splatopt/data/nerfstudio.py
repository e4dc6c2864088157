"""nerfstudio's and instant-ngp's ``transforms.json``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from splatopt.data.image_folders import in_named_folder, shrunk_folder, unused_folders
from splatopt.data.image_lookup import unregistered
from splatopt.data.own_split import own_split
from splatopt.data.point_files import find_points
from splatopt.data.source import Finding, PosedImage, Source, registered_once
from splatopt.data.transforms import check_frames, read_frames, read_json
from splatopt.data.unused_keys import unused_keys

TRANSFORMS_FILE = "transforms.json"
"""The file whose presence makes a folder a nerfstudio or instant-ngp capture."""

TEST_FRAMES = "test_frames"
"""ScanNet++'s list of the frames that are held out, beside ``frames``."""


def read_nerfstudio(path: Path, images: str | None = None) -> Source:
    """Read views and, where ``ply_file_path`` names them or they lie beside the file, sparse points.

    The world is the one of the file's poses, see :func:`splatopt.data.point_files.find_points`, and the split its own
    where it names one, see :func:`splatopt.data.own_split.own_split`. A file with ``aabb_scale`` is instant-ngp's.

    Args:
        path: The folder, or the file itself, whatever its name.
        images: Name of the folder that holds the photographs; None for the files that the frames name.

    Raises:
        InputError: The file, or the PLY it names, is malformed.
    """
    file = path if path.is_file() else path / TRANSFORMS_FILE
    folder = file.parent
    content = read_json(file)
    warnings: list[str] = []
    split = TEST_FRAMES if content.get(TEST_FRAMES) else ""
    listed = read_frames(file, content, warnings, "train" if split else "")
    if split:
        listed += read_frames(file, content, warnings, "test", TEST_FRAMES)
    every = sorted(registered_once(listed, str(file), warnings), key=lambda view: view.name)
    points = find_points(folder, content, every, warnings)
    views = every
    if not split:
        views, split = own_split(folder, content, every, warnings)
    if images is None and every and not any(os.path.isfile(view.path) for view in every):
        images = shrunk_folder(folder)
        if images is not None:
            warnings.append(f"the photographs are not there; the smaller copies in {images} are used")
    if images is not None:
        views = in_named_folder(folder, views, images, warnings)
    frames = [
        frame for key in ("frames", TEST_FRAMES) if content.get(key) for frame in check_frames(file, content, key)
    ]
    found = findings(folder, content, frames, every)
    kind = "instant-ngp" if "aabb_scale" in content and "camera_model" not in content else "nerfstudio"
    return Source(kind, tuple(views), points, tuple(warnings), split or "own", tuple(found))


def findings(
    folder: Path, content: Mapping[str, object], frames: Sequence[Mapping[str, object]], views: Sequence[PosedImage]
) -> list[Finding]:
    """Return what a file of frames says, and what lies beside its photographs, without being used.

    Args:
        folder: Where the file lies.
        content: The file.
        frames: All its frames.
        views: What was read of them.
    """
    said = unused_keys(content, frames)
    named = [
        folder / value
        for frame in frames
        for key, value in frame.items()
        if key.endswith("_path") and key != "file_path" and isinstance(value, str)
    ]
    depth = [] if any("depth" in one.what for one in said) else unused_folders(folder)
    named += [view.mask for view in views if view.mask is not None]
    return [*said, *depth, *unregistered(folder, [view.path for view in views], named)]
